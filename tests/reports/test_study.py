"""What counts and what is left out, in a report and in a comparison of any runs."""

import json
import shutil

import pytest

from fastvim.errors import UserError
from fastvim.reports import tables
from fastvim.reports.comparison import compare, study_of
from fastvim.reports.curves import read_curves
from fastvim.reports.evidence import collect_results
from fastvim.reports.study import read_study


def named(study):
    return {variant["name"]: variant for variant in study.results["variants"]}


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_results_hold_what_the_runs_say(finished, study, run_directory):
    for variant in ("columns", "alternating"):
        own = [
            json.loads((run_directory(finished, variant, seed) / "result.json").read_text())
            for seed in (0, 1)
        ]
        assert named(study)[variant]["metrics"]["top1"] == [r["metrics"]["top1"] for r in own]
    assert named(study)["hot"]["diverged"] == 2
    assert named(study)["hot"]["metrics"]["top1"] == [None, None]
    (contrast,) = [c for c in study.results["contrasts"] if c["variant"] == "alternating"]
    own, base = (named(study)[name]["metrics"]["top1"] for name in ("alternating", "columns"))
    assert contrast["difference"] == pytest.approx((sum(own) - sum(base)) / 2)


def test_curves_are_those_of_the_history(finished, study, run_directory):
    lines = (run_directory(finished, "columns", 1) / "history.csv").read_text().splitlines()[1:]
    (run,) = [run for run in study.runs_of("columns") if run.seed == 1]
    assert run.curves.loss.tolist() == [float(line.split(",")[2]) for line in lines]
    assert len(run.curves.validation["val_top1"][0]) == 2


def test_settings_that_differ(study):
    differing, shared = study.settings()
    assert list(differing) == ["model.schedule", "training.lr"]
    assert differing["training.lr"] == [0.002, 0.002, 1e30]
    assert shared["model.patch_size"] == [7, 7]


@pytest.mark.parametrize(
    "damage", ["torn result", "no number", "newer format", "no config", "unfinished"]
)
def test_a_run_that_cannot_be_believed_is_named_and_not_counted(output, run_directory, damage):
    directory = run_directory(output, "alternating", 1)
    result = directory / "result.json"
    content = json.loads(result.read_text())
    if damage == "torn result":
        result.write_text(result.read_text()[:50])
    elif damage == "no number":
        content["metrics"]["top1"] = "high"
        result.write_text(json.dumps(content))
    elif damage == "newer format":
        result.write_text(json.dumps({**content, "format": 99}))
    elif damage == "no config":
        (directory / "config.json").unlink()
    else:
        result.unlink()
    study = read_study(output)
    assert named(study)["alternating"]["seeds"] == [0]
    assert named(study)["alternating"]["missing"] == [1]
    state = "interrupted" if damage == "unfinished" else "damaged"
    assert study.states == (("alternating", 1, state),)
    (contrast,) = [c for c in study.results["contrasts"] if c["variant"] == "alternating"]
    assert contrast["seeds"] == [0] and contrast["interval"] is None
    if damage != "unfinished":
        assert any(directory.name in problem for problem in study.results["problems"])
    compared = compare([output])
    assert named(compared)["alternating"]["seeds"] == [0]
    assert any(directory.name in problem for problem in compared.results["problems"])


@pytest.mark.parametrize("text", ["", "step,loss\n1\n", "step,loss\n1,x\n", "a,b\n1,2\n", "\0"])
def test_a_damaged_history_costs_only_its_curve(output, run_directory, text):
    directory = run_directory(output, "columns", 0)
    (directory / "history.csv").write_text(text)
    problems = []
    curves = read_curves(directory, problems)
    assert len(curves.loss) == 0
    assert any("history.csv" in problem for problem in problems)
    assert named(read_study(output))["columns"]["seeds"] == [0, 1]


def test_compare_takes_runs_from_anywhere(finished, output, run_directory, tmp_path):
    moved = tmp_path / "elsewhere" / "a run"
    shutil.move(run_directory(output, "alternating", 0), moved)
    study = compare([run_directory(finished, "columns", 0), moved], baseline="alternating")
    assert study.variants == ["columns", "alternating"]
    (contrast,) = study.results["contrasts"]
    assert (contrast["variant"], contrast["seeds"]) == ("columns", [0])
    assert list(study.settings()[0]) == ["model.schedule"]


def test_compare_counts_a_run_once(finished, output, run_directory):
    study = compare([finished, finished, output, run_directory(finished, "columns", 0)])
    assert study.results["problems"] == []
    assert named(study)["columns"]["seeds"] == [0, 1]
    assert study.results["contrasts"][0]["baseline"] == "columns"


def test_other_settings_under_the_same_name_make_another_variant(finished, output):
    for path in (output / "runs").glob("*/config.json"):
        config = json.loads(path.read_text())
        config["training"]["weight_decay"] = 0.3
        config["hash"] = config["hash"][::-1]
        path.write_text(json.dumps(config))
    (output / "experiment.json").unlink()
    study = compare([finished, output])
    assert "alternating (weight_decay=0.3)" in study.variants
    assert len(study.variants) == 6
    assert all(variant["seeds"] == [0, 1] for variant in study.results["variants"])


def test_other_test_images_are_pointed_out(finished, output):
    for path in (output / "runs").glob("*/config.json"):
        config = json.loads(path.read_text())
        config["data"]["test_images"] = 39
        config["hash"] = config["hash"][::-1]
        path.write_text(json.dumps(config))
    (output / "experiment.json").unlink()
    problems = compare([finished, output]).results["problems"]
    assert any("tested on different images" in problem for problem in problems)


def test_without_experiment_json_the_runs_still_speak(output):
    (output / "experiment.json").unlink()
    study = study_of(output)
    assert set(study.variants) == {"columns", "alternating", "hot"}
    assert "experiment.json is missing" in study.results["problems"][0]


@pytest.mark.parametrize(
    "call",
    [
        lambda f: compare([f], metric="top2"),
        lambda f: compare([f], baseline="colums"),
        lambda f: compare([f / "nowhere"]),
        lambda f: compare([f.parent]),
        lambda f: study_of(f.parent),
        lambda f: collect_results(f / "nowhere"),
    ],
)
def test_what_cannot_be_compared_is_the_users_error(finished, call):
    with pytest.raises(UserError):
        call(finished)


def test_the_ledger_reads_results_and_names_the_damaged(output, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "results.json").write_text(json.dumps(read_study(output).results))
    for name, text in {"torn": "{", "other": "[]", "none": '{"experiment": 1}'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(text)
    results, problems = collect_results(tmp_path)
    assert [result["experiment"] for result in results] == ["tiny", "tiny"]
    assert len(problems) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["variants"][0].update(seeds=[0, 0]), "a seed comes twice"),
        (lambda r: r["variants"][0]["metrics"].update(top1=[1.0]), "1 values of top1 for 2 seeds"),
        (lambda r: r["variants"][0]["cost"].update(gflops="many"), "variants.0.cost.gflops"),
        (lambda r: r.update(contrasts=None), "contrasts: "),
        (lambda r: r.update(command=["fastvim"]), "command: "),
        (lambda r: r["contrasts"][0].pop("variant"), "contrasts.0.variant: "),
    ],
)
def test_results_that_were_edited_are_named_and_the_others_judged(
    output, tmp_path, change, message
):
    for name in ("good", "edited"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(read_study(output).results))
    edited = read_study(output).results
    change(edited)
    (tmp_path / "edited/results.json").write_text(json.dumps(edited))
    results, problems = collect_results(tmp_path)
    assert len(results) == 2  # That of `output` too, which lies there.
    (problem,) = problems
    assert problem.startswith(str(tmp_path / "edited/results.json")) and message in problem


def test_runs_on_other_images_are_another_variant_and_pointed_out(finished, output):
    for directory in (output / "runs").glob("alternating-*"):
        edit(directory / "config.json", lambda c: c.update(hash=c["hash"][::-1]))
        edit(directory / "result.json", lambda r: r.update(data_fingerprint="0123456789"))
    (output / "experiment.json").unlink()
    study = compare([finished, output])
    assert "alternating (files=01234567)" in study.variants
    assert all(variant["seeds"] == [0, 1] for variant in study.results["variants"])
    (problem,) = study.results["problems"]
    assert problem.startswith("data.files differs") and "tested on different images" in problem


def test_speeds_of_several_machines_are_not_put_together(output, run_directory):
    directory = run_directory(output, "columns", 1)
    edit(directory / "environment.json", lambda e: e.update(device="NVIDIA H200"))
    edit(directory / "result.json", lambda r: r.update(backend="triton"))
    study = read_study(output)
    columns, alternating = (named(study)[name] for name in ("columns", "alternating"))
    assert columns["cost"]["train_images_per_second"] is None
    assert columns["cost"]["peak_memory_mb"] is None and columns["cost"]["parameters"] > 0
    assert alternating["cost"]["train_images_per_second"] > 0
    said = " ".join(tables.notes(study.results))
    assert "device (cpu; NVIDIA H200)" in said and "triton)" in said


@pytest.mark.parametrize(
    ("device", "what", "value", "kept", "says"),
    [
        ("cpu", "threads", 7, False, "not all made alike: threads (1; 7). Speed"),
        ("cpu", "cpu", "a Z80", False, "; a Z80). Speed"),
        ("cpu", "revision", "an older one", True, "; an older one), between"),
        ("NVIDIA H200", "threads", 7, True, None),
        ("NVIDIA H200", "cpu", "a Z80", True, None),
    ],
)
def test_what_leaves_speeds_out_is_what_the_note_says(
    output, run_directory, device, what, value, kept, says
):
    for directory in (output / "runs").glob("*-seed*"):
        edit(directory / "environment.json", lambda e: e.update(device=device))
    other = run_directory(output, "columns", 1) / "environment.json"
    edit(other, lambda e: e.update({what: value}))
    study = read_study(output)
    assert (named(study)["columns"]["cost"]["train_images_per_second"] is not None) == kept
    said = " ".join(tables.notes(study.results))
    assert ("several revisions" in said, "not all made alike" in said) == (
        what == "revision",
        not kept,
    )
    assert says is None or says in said


def test_seeds_that_a_difference_leaves_out_are_named(finished, output, run_directory):
    shutil.rmtree(run_directory(output, "columns", 0))
    said = " ".join(tables.notes(read_study(output).results))
    assert "alternating without partner in seed 0: the difference is not that" in said
    shutil.copytree(finished, output, dirs_exist_ok=True)
    edit(
        run_directory(output, "alternating", 1) / "result.json",
        lambda r: r.update(status="diverged", metrics={}, diverged=True),
    )
    said = " ".join(tables.notes(read_study(output).results))
    assert "alternating diverged in seed 1: the difference is not that" in said
