"""The resolution study measures what it says; nothing here depends on how long it took."""

import csv
import dataclasses
import json
import signal
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

from fastvim.analysis import ledger, load_claims
from fastvim.errors import UserError
from fastvim.models import create_model
from fastvim.models.presets import resolve_config
from fastvim.profiling import machine, stages
from fastvim.profiling.flops import own_gflops
from fastvim.profiling.measurement import NO_TIME
from fastvim.profiling.models import check
from fastvim.profiling.stages import block_stages
from fastvim.profiling.study import Study, default_batch
from fastvim.profiling.timing import interleaved
from fastvim.reports import profile, profile_tables
from fastvim.stability.readers import find_logs
from fastvim.training.costs import count_gflops
from fastvim_cli.main import main

CPU = torch.device("cpu")
MODELS = ["vim_femto", "fastvim_femto", "fastvim_femto:post_ssm_norm=false"]
COMMAND = ["profile", "--size", "femto", "--batch", "2", "--repeats", "2"]


@pytest.fixture(scope="module")
def measurements():
    found = []
    for part in Study(MODELS, CPU, batch=2, repeats=2, minutes=10).measure([28, 56]):
        found += part
    return found


def test_every_model_is_measured_at_every_size(measurements):
    assert [(m.model, m.resolution) for m in measurements] == [
        (model, size) for size in (28, 56) for model in MODELS
    ]
    sizes = resolve_config("vim_femto", {})
    for m in measurements:
        assert m.problem is None
        assert set(m.seconds) == {"forward", "training"} == set(m.peak_memory_mb)
        assert m.images_per_second("forward") > 0
        assert m.gflops == pytest.approx(m.own_gflops, rel=1e-6)
        scanned = 2 * sizes.depth * m.steps * sizes.d_inner * sizes.d_state
        assert m.literature_gflops == pytest.approx(m.gflops + 4e-9 * scanned)
        assert m.peak_memory_mb["training"] > m.peak_memory_mb["forward"] > 0


def test_vim_scans_all_tokens_and_fastvim_one_axis(measurements):
    steps = {(m.model, m.resolution): (m.tokens, m.steps) for m in measurements}
    assert steps["vim_femto", 56] == (28 * 28 + 1, 28 * 28 + 1)
    assert steps["fastvim_femto", 56] == (28 * 28, 28)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("fastvim_femto", {}),
        ("vim_femto", {}),
        ("vim_femto", {"class_token": "none", "scan_order": ["col", "row"], "pooling_scale": 2}),
        (
            "fastvim_femto",
            {
                "pooling": "max",
                "pooling_scale": 0.5,
                "direction_merge": "sum",
                "post_ssm_norm": False,
                "image_size": [28, 56],
            },
        ),
        ("fastvim_femto", {"post_ssm_norm": False, "gate_without_norm": False}),
    ],
)
def test_the_parts_together_are_the_block(name, settings):
    model = create_model(name, **settings).eval()
    tokens = torch.randn(2, len(model.grid), 32)
    with torch.no_grad():
        for block, axis in zip(model.blocks, model.schedule, strict=True):
            layout = model.layouts[axis]()
            found = stages.run_chain(stages._chain(model, block, layout), tokens)["y"]
            torch.testing.assert_close(found, block(tokens, layout), rtol=1e-5, atol=1e-5)


def test_parts_of_a_block_that_is_another_chain_are_refused():
    with pytest.raises(UserError, match="not by attention"):
        block_stages(create_model("fastvim_femto", pooling="attention"), 1)


def test_a_network_that_takes_any_size_is_measured_beside_the_others():
    check(["timm/resnet10t"], [57])
    ((row,),) = Study(["timm/resnet10t"], CPU, batch=1, repeats=1).measure([57])
    assert row.problem is None and set(row.seconds) == {"forward", "training"}


def test_counts_of_operations_differ_by_what_is_said():
    model = create_model("fastvim_femto", pooling="attention")
    norms = 2 * 5 * 196 * 64 / 1e9  # The mixers run in PyTorch, whose norms fvcore counts.
    fvcore = count_gflops(model, torch.zeros(1, 1, 28, 28))
    assert fvcore == pytest.approx(own_gflops(model, 28) + norms, rel=1e-6)


def test_files_hold_what_was_measured(measurements, tmp_path):
    claims = profile_tables.claims(measurements, *[MODELS[i] for i in (1, 0, 2)])
    environment = machine.describe(CPU)
    paths = profile.write(measurements, claims, environment, {}, True, tmp_path)
    assert {path.name for path in paths} >= {"profile.md", "growth.png", "shares.svg"}
    assert all(path.stat().st_size for path in paths)
    with open(tmp_path / "profile.csv") as file:
        assert len(list(csv.reader(file))) == 1 + len(measurements)
    with pytest.raises(UserError, match="no log in this folder"):
        find_logs([tmp_path])
    stored = json.loads((tmp_path / "profile.json").read_text())
    fast = stored["measurements"][1]
    assert fast["images_per_second"]["forward"] == 2 / fast["seconds"]["forward"]["median"]
    evidence = json.loads((tmp_path / "results.json").read_text())
    assert [v["name"] for v in evidence["variants"]][:2] == ["vim_femto@28", "fastvim_femto@28"]
    assert len(evidence["variants"][0]["cost"]["images_per_second"]) == 2
    texts = {claim["claim"] for claim in claims}
    assert {"FLOPs fewer than Vim", "SSM time of an image grows, vim_femto"} <= texts


def test_shares_add_up(measurements):
    for m in measurements:
        shares = profile_tables.shares(m)
        assert sum(shares.values()) == pytest.approx(1) and set(shares) <= set(
            profile_tables.SHARES
        )
        assert ("broadcast" in shares) == m.model.startswith("fastvim")


def test_the_ledger_of_claims_judges_a_study(measurements):
    fast, vim = ({"d_model": 192, "depth": 24, "patch_size": 16, "image_size": 224} for _ in "ab")
    command = "fastvim profile --size tiny"
    evidence = profile.results(measurements, {"device": "cpu", "cpu": "x", "command": command})
    assert evidence["variants"][0]["scale"]["image_size"] == 28
    for name, scale, gflops in (("fastvim_tiny@224", fast, 1.15), ("vim_tiny@224", vim, 1.62)):
        variant = {"name": name, "seeds": [0], "metrics": {}, "cost": {"literature_gflops": gflops}}
        evidence["variants"].append(variant | {"scale": {"device": "x", **scale}})
    rows = {row["claim"]: row for row in ledger(load_claims(), [evidence])}
    assert rows["fewer-flops"]["state"] == "judged"
    assert rows["fewer-flops"]["verdict"] != "unresolved"
    assert rows["fewer-flops"]["command"] == command


def test_no_budget_is_said_not_hidden():
    (part,) = Study(["fastvim_femto"], CPU, repeats=1, minutes=0).measure([28])
    assert part[0].problem == NO_TIME and not part[0].seconds


def test_sizes_that_had_no_time_are_measured_by_the_same_command(tmp_path):
    command = [*COMMAND, "--resolutions", "28", "--output", str(tmp_path), "--minutes"]
    result = CliRunner().invoke(main, [*command, "1e-9"])
    assert "the same command goes on" in result.output, result.output
    result = CliRunner().invoke(main, [*command, "5"])
    assert result.exit_code == 0 and NO_TIME not in result.output, result.output
    stored = json.loads((tmp_path / "profile.json").read_text())
    assert stored["complete"] and all(m["seconds"] for m in stored["measurements"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda stored: None, "is complete"),
        (lambda stored: stored["environment"].update(revision="0000000"), "differs in revision"),
        (lambda stored: stored["settings"].update(repeats=9), "differs in repeats"),
        (lambda stored: stored.pop("settings"), "is of another version of fastvim, or damaged"),
    ],
)
def test_why_a_profile_is_measured_anew_is_said_before_it_is_replaced(change, reason, tmp_path):
    settings = {"models": MODELS, "modes": ["forward", "training"], "batch": 2, "repeats": 2}
    settings["resolutions"] = [28]
    environment = machine.describe(torch.device("cpu"))
    content = {"environment": environment, "settings": settings, "complete": True}
    content["measurements"] = []
    change(content)
    (tmp_path / "profile.json").write_text(json.dumps(content))
    command = [*COMMAND, "--resolutions", "28", "--output", str(tmp_path), "--minutes", "1e-9"]
    result = CliRunner().invoke(main, command)
    assert f"the profile there {reason}; it will be replaced" in result.output, result.output


def test_a_size_that_was_measured_in_part_is_measured_again(measurements, tmp_path):
    vim = dataclasses.replace(measurements[3], seconds={}, problem=None)
    vim.seconds["forward"] = measurements[3].seconds["forward"]
    vim.add_problem(f"{NO_TIME} (training)")
    before = [*measurements[:3], vim, *measurements[4:]]
    settings = {"models": MODELS, "modes": ["forward", "training"], "batch": 2, "repeats": 2}
    settings["resolutions"] = [28, 56]
    environment = machine.describe(torch.device("cpu"))
    profile.write(before, [], environment, settings, False, tmp_path)

    command = [*COMMAND, "--resolutions", "28,56", "--output", str(tmp_path), "--minutes"]
    result = CliRunner().invoke(main, [*command, "1e-9"])
    assert "56 pixels not all done, for want of time (1 of 2)" in result.output, result.output
    stored = json.loads((tmp_path / "profile.json").read_text())
    assert stored["measurements"] == json.loads(json.dumps([m.to_dict() for m in before]))
    result = CliRunner().invoke(main, [*command, "5"])
    assert "goes on after 28 pixels" in result.output, result.output
    assert "56 pixels done (2 of 2)" in result.output, result.output
    again = json.loads((tmp_path / "profile.json").read_text())
    assert again["complete"] and again["measurements"][:3] == stored["measurements"][:3]
    for old, new in zip(stored["measurements"][3:], again["measurements"][3:], strict=True):
        assert (new["model"], new["resolution"]) == (old["model"], 56)
        assert set(new["seconds"]) == {"forward", "training"} and new["seconds"] != old["seconds"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resolutions", "28,57"], "the nearest that fits is 58"),
        (["--resolutions", "0"], "is not a list of pixels"),
        (["--models", "timm/deit_tiny_patch16_224", "--resolutions", "230"], "fits is 224"),
        (["--minutes", "-1"], "range 0<x<=525600"),
        (["--minutes", "nan"], "nan is not in the range 0<x<=525600"),
        (["--modes", "training,forwrd"], "did you mean 'forward'"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything(options, message, tmp_path):
    result = CliRunner().invoke(main, [*COMMAND, "--output", str(tmp_path / "out"), *options])
    assert result.exit_code == 2 and message in result.output, result.output
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_measured(tmp_path):
    (tmp_path / "file").touch()
    result = CliRunner().invoke(main, [*COMMAND, "--output", str(tmp_path / "file/out")])
    assert result.exit_code == 2 and "cannot write in" in result.output, result.output
    assert "pixels done" not in result.output


def test_rounds_are_interleaved_and_the_first_is_not_counted():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    timings = interleaved(calls, CPU, repeats=2)
    assert order == ["a", "b"] * 3 and len(timings["a"].calls) == 2
    interleaved(calls, CPU, repeats=1, warm=True)
    assert order == ["a", "b"] * 4


def test_batches_shrink_with_the_pixels():
    assert [default_batch(size) for size in (224, 512, 1024, 2048)] == [8, 2, 1, 1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fastvim_tny", "did you mean 'fastvim_tiny'"),
        ("fastvim_tiny:norm", "not a setting"),
        ("timm/deit_tny_patch16_224", "did you mean 'timm/deit_tiny_patch16_224'"),
    ],
)
def test_unknown_models_are_named(name, message):
    with pytest.raises(UserError, match=message):
        check([name], [224])


PROFILE = "from fastvim_cli.main import main; main()"


def test_an_interrupt_during_a_study_keeps_the_sizes_done_and_the_same_command_goes_on(tmp_path):
    command = [sys.executable, "-c", PROFILE, *COMMAND, "--resolutions", "28,56", "--output"]
    command += [str(tmp_path)]
    # What follows a size is a collection of garbage, whose callbacks swallow a KeyboardInterrupt.
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    said = ""
    try:
        for line in process.stderr:
            # Once: a signal that comes while the line is printed makes rich print it again.
            if "28 pixels done" in line and "28 pixels done" not in said:
                process.send_signal(signal.SIGINT)
            said += line
        assert process.wait(timeout=60) == 130, said
    finally:
        process.kill()
        process.wait()
    assert "56 pixels done" not in said and "To go on: fastvim profile" in said
    assert "Traceback" not in said
    stored = json.loads((tmp_path / "profile.json").read_text())
    assert {m["resolution"] for m in stored["measurements"]} == {28} and not stored["complete"]
    result = CliRunner().invoke(main, command[3:])
    assert result.exit_code == 0 and "goes on after 28 pixels" in result.output, result.output
    stored = json.loads((tmp_path / "profile.json").read_text())
    assert {m["resolution"] for m in stored["measurements"]} == {28, 56} and stored["complete"]
