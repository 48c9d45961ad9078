"""Real runs, small: reuse, stopping and going on, divergence, failure, and what is reported."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from fastvim.errors import UserError
from fastvim.experiments.estimate import estimate
from fastvim.experiments.experiment import load
from fastvim.experiments.plan import identified_runs, make_plan
from fastvim.experiments.record import write_plan
from fastvim.experiments.runner import Stopped, carry_out, every_run, to_train
from fastvim.experiments.store import Store
from fastvim.experiments.workers import carry_out_with_jobs
from fastvim.reports.gather import gather
from fastvim.reports.tables import csv_table, markdown, write_tables
from fastvim_cli.display import RunProgress

TEXT = """\
name: tiny
question: Which of the two?
base:
  data: {train_images: 40, validation_images: 20, test_images: 20}
  model: {name: fastvim_femto, patch_size: 7, depth: 1}
  training: {epochs: 2, batch_size: 20, lr: 1e-3, warmup_epochs: 0, checkpoint_every: 1}
variants:
  one: {}
  two: {model.pooling: max}
seeds: 2
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    file = tmp_path_factory.mktemp("plan") / "tiny.yaml"
    file.write_text(TEXT)
    return make_plan(load(str(file)))


@pytest.fixture(scope="module")
def runs(plan):
    return identified_runs(plan)


@pytest.fixture(scope="module")
def finished(plan, runs, tmp_path_factory):
    """An output folder with all four runs done, and what the listener was told."""
    output = tmp_path_factory.mktemp("results") / "tiny"
    write_plan(output, plan, runs, "fastvim ablate tiny.yaml")
    events = []
    carry_out(runs, Store(output), events.append, lambda: False)
    return output, events


def quietly(event: dict) -> None:
    """A listener to whom nothing matters."""


def results_of(output: Path, runs) -> dict:
    store = Store(output)
    return {run.name: store.lookup(run)[0].result["metrics"] for run in runs}


def test_runs_are_made_once(finished, runs):
    output, events = finished
    ends = [event["outcome"] for event in events if event["event"] == "end"]
    assert [(o.run.name, o.state, o.reused) for o in ends] == [
        ("one-seed0", "done", False),
        ("two-seed0", "done", False),
        ("one-seed1", "done", False),
        ("two-seed1", "done", False),
    ]
    before = {file: file.stat().st_mtime_ns for file in output.rglob("*.json")}
    again = carry_out(runs, Store(output), quietly, lambda: False)
    assert all(outcome.reused for outcome in again)
    assert {file: file.stat().st_mtime_ns for file in output.rglob("*.json")} == before


def test_every_step_and_evaluation_is_told(finished):
    _, events = finished
    kinds = [event["event"] for event in events if event.get("run", None) is not None]
    assert kinds.count("begin") == kinds.count("end") == 4
    assert kinds.count("evaluation") == 8
    steps = [event for event in events if event["event"] == "step"]
    assert {"step", "steps", "loss"} <= set(steps[0]) and steps[0]["steps"] == 4


def test_stopped_anywhere_and_continued_gives_the_same_metrics(finished, runs, tmp_path):
    output, _ = finished
    run, store = runs[0], Store(tmp_path / "stopped" / "out")
    asked = []

    def after_every_step() -> bool:
        # Asked before the run begins, too.
        asked.append(None)
        return len(asked) % 2 == 0

    stops = 0
    while True:
        try:
            (outcome,) = carry_out([run], store, quietly, after_every_step)
            break
        except Stopped:
            stops += 1
            assert store.state(run) == "interrupted"
    assert stops == 3 and outcome.state == "done"
    assert results_of(store.output, [run])[run.name] == results_of(output, [run])[run.name]
    for name in ("history.csv", "eval.csv"):
        original = Store(output).lookup(run)[0].directory / name
        assert (outcome.directory / name).read_bytes() == original.read_bytes()


def test_siblings_share_runs(finished, runs):
    output, _ = finished
    store = Store(output.parent / "another")
    (outcome,) = carry_out([runs[3]], store, quietly, lambda: False)
    assert outcome.reused and outcome.directory.parent == store.runs
    assert results_of(store.output, [runs[3]]) == results_of(output, [runs[3]])


@pytest.mark.parametrize("jobs", [1, 2])
def test_runs_of_a_sibling_are_said_to_be_taken_over(
    finished, runs, tmp_path, capsys, monkeypatch, jobs
):
    shutil.copytree(finished[0], tmp_path / "tiny")
    store = Store(tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    for said in ("done (adopted from tiny)", "done (already there)"):
        progress = RunProgress(4, 4)
        if jobs > 1:
            outcomes = carry_out_with_jobs(runs, store, progress, lambda: False, jobs)
        else:
            outcomes = carry_out(runs, store, progress, lambda: False)
        assert all(outcome.reused for outcome in outcomes)
        assert capsys.readouterr().err.count(said) == 4


def test_runs_of_another_backend_than_the_forced_one_are_not_used(finished, runs, monkeypatch):
    output, _ = finished
    here, beside = Store(output), Store(output.parent / "forced")
    backend = here.lookup(runs[0])[0].result["backend"]
    monkeypatch.setenv("FASTVIM_KERNELS", backend)
    assert every_run(runs, here) == runs and to_train(runs, beside) == []
    monkeypatch.setenv("FASTVIM_KERNELS", "triton")
    assert every_run(runs, beside) == to_train(runs, beside) == runs
    with pytest.raises(UserError, match=f"by the backend {backend}.*FASTVIM_KERNELS.*--output"):
        every_run(runs, here)


def test_a_misspelt_backend_is_named_before_anything_is_done(plan, monkeypatch):
    monkeypatch.setenv("FASTVIM_KERNELS", "referense")
    with pytest.raises(UserError, match=r"FASTVIM_KERNELS.*did you mean 'reference'"):
        identified_runs(plan)


def test_divergence_is_recorded_and_the_others_go_on(tmp_path):
    (tmp_path / "d.yaml").write_text(
        TEXT.replace("two: {model.pooling: max}", "two: {training.lr: 1e30}")
    )
    plan = make_plan(load(str(tmp_path / "d.yaml")), seeds="1")
    runs = identified_runs(plan)
    output = tmp_path / "d" / "out"
    write_plan(output, plan, runs, "fastvim ablate d.yaml")
    outcomes = carry_out(runs[::-1], Store(output), quietly, lambda: False)
    assert [(o.run.variant, o.state) for o in outcomes] == [("two", "diverged"), ("one", "done")]
    results = gather(output)
    one, two = results["variants"]
    assert (one["diverged"], two["diverged"]) == (0, 1)
    assert two["metrics"]["top1"] == [None] and len(one["metrics"]["top1"]) == 1
    assert "1 of 1" in markdown(results)


def test_failure_is_recorded_with_its_log_and_tried_again(finished, runs, tmp_path):
    output, _ = finished
    store = Store(tmp_path / "failing" / "out")
    directory = store.open(runs[0])
    (directory / "checkpoint.safetensors").mkdir()  # The weights cannot be written.
    outcomes = carry_out(runs[:2], store, quietly, lambda: False)
    assert [o.state for o in outcomes] == ["failed", "done"]
    assert "checkpoint.safetensors" in outcomes[0].message
    assert "checkpoint.safetensors" in (directory / "log.txt").read_text()
    assert store.state(runs[0]) == "failed"
    (directory / "checkpoint.safetensors").rmdir()
    outcomes = carry_out(runs[:2], store, quietly, lambda: False)
    assert [(o.state, o.reused) for o in outcomes] == [("done", False), ("done", True)]
    assert results_of(store.output, runs[:2]) == results_of(output, runs[:2])


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_damaged_image_whose_name_is_no_utf_8_fails_its_run_alone(tmp_path, jobs):
    for part in ("good/train", "good/val"):
        (tmp_path / part / "class").mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (28, 28)).save(tmp_path / part / "class" / f"{number}.png")
    shutil.copytree(tmp_path / "good", tmp_path / "bad")
    Path(os.fsdecode(os.fsencode(tmp_path / "bad/train/class") + b"/\xff.png")).write_bytes(b"no")
    data = f"{{name: imagefolder, image_size: 28, root: {tmp_path}/good}}"
    text = re.sub(r"data: .*", f"data: {data}", TEXT).replace("batch_size: 20", "batch_size: 2")
    file = tmp_path / "images.yaml"
    file.write_text(text.replace("one: {}", f"one: {{data.root: {tmp_path}/bad}}"))
    runs = identified_runs(make_plan(load(str(file)), seeds="1"))
    store = Store(tmp_path / "results/out")
    if jobs > 1:
        outcomes = carry_out_with_jobs(runs, store, quietly, lambda: False, jobs)
    else:
        outcomes = carry_out(runs, store, quietly, lambda: False)
    assert [outcome.state for outcome in outcomes] == ["failed", "done"]
    assert "\\udcff.png" in (outcomes[0].directory / "log.txt").read_text(encoding="utf-8")


def test_results_hold_what_they_should(finished, runs, plan):
    output, _ = finished
    results = gather(output)
    assert [v["name"] for v in results["variants"]] == ["one", "two"]
    metrics = results_of(output, runs)
    for variant in results["variants"]:
        assert variant["seeds"] == [0, 1] and variant["diverged"] == 0
        for name in ("top1", "top5", "loss"):
            expected = [metrics[f"{variant['name']}-seed{seed}"][name] for seed in (0, 1)]
            assert variant["metrics"][name] == expected
        assert variant["cost"]["parameters"] > 0 and variant["cost"]["gflops"] > 0
    (contrast,) = results["contrasts"]
    assert (contrast["variant"], contrast["baseline"]) == ("two", "one")
    one, two = (variant["metrics"]["top1"] for variant in results["variants"])
    assert contrast["difference"] == pytest.approx(sum(two) / 2 - sum(one) / 2)
    assert {"metric", "interval", "verdict"} <= set(contrast)
    assert results["scale"]["train_images"] == 40


def test_tables_come_from_the_run_directories_alone(finished, tmp_path):
    output, _ = finished
    write_tables(tmp_path, gather(output))
    first = {name: (tmp_path / name).read_text() for name in ("results.json", "table.md")}
    for name in first:
        (output / name).write_text("stale")
    write_tables(output, gather(output))
    for name, text in first.items():
        assert (output / name).read_text() == text
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["experiment"] == "tiny"
    assert csv_table(record).splitlines()[1].startswith("one,0 1,")


def test_a_run_that_cannot_be_believed_is_not_counted(finished, runs, plan, tmp_path):
    output = tmp_path / "damaged" / "out"
    shutil.copytree(finished[0], output)
    broken = Store(output).lookup(runs[1])[0].directory
    (broken / "result.json").write_text('{"status": "done"')
    results = gather(output)
    two = results["variants"][1]
    assert (two["seeds"], two["missing"]) == ([1], [0])
    assert str(broken) in results["problems"][0]
    assert f"Skipped: {broken}" in markdown(results)


def test_a_step_that_does_not_fit_is_no_estimate(runs, tmp_path, monkeypatch):
    def nothing_left(config):
        raise MemoryError

    monkeypatch.setattr("fastvim.experiments.estimate._seconds_per_image", nothing_left)
    (found,) = estimate(runs[:1], Store(tmp_path)).values()
    assert (found.seconds, found.basis) == (None, "a step could not be tried out: out of memory")


def test_time_is_estimated_from_earlier_runs_or_measured(finished, plan, runs, tmp_path):
    output, _ = finished
    more = identified_runs(make_plan(plan.experiment, seeds="4,"))
    known = estimate(more, Store(output))
    assert set(known) == {run.identity for run in more}
    assert {guess.basis for guess in known.values()} == {"an earlier run"}
    measured = estimate(more, Store(tmp_path / "elsewhere" / "out"))
    assert all(guess.seconds > 0 and "measured" in guess.basis for guess in measured.values())
    assert not (tmp_path / "elsewhere").exists()
