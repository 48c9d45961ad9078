"""The command line: help, errors, start-up, and the commands on real results."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fastvim.experiments.store import Store, read_run
from fastvim.reports import tensorboard, write
from fastvim.tasks.classification import Classification
from fastvim_cli.display import RunProgress
from fastvim_cli.main import COMMANDS, main

TEXT = """\
name: tiny
question: Which of the two?
base:
  data: {train_images: 40, validation_images: 20, test_images: 20}
  model: {name: fastvim_femto, patch_size: 7, depth: 1}
  training: {epochs: 2, batch_size: 20, lr: 1e-3, warmup_epochs: 0}
variants:
  one: {}
  two: {model.pooling: max}
seeds: 2
"""


def fastvim(*arguments: str):
    return CliRunner().invoke(main, list(arguments), prog_name="fastvim")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with tiny.yaml and its results in out/tiny."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.yaml").write_text(TEXT)
    before = os.getcwd()
    os.chdir(folder)
    try:
        result = fastvim("ablate", "tiny.yaml", "-o", "out/tiny")
    finally:
        os.chdir(before)
    assert result.exit_code == 0, result.output
    return folder, result


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TEXT)
    return tmp_path


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself_with_an_example(name):
    result = fastvim(name, "--help")
    assert result.exit_code == 0, result.output
    group = main.get_command(None, name)
    if isinstance(group, click.Group):
        for part in group.commands:
            text = fastvim(name, part, "--help").output
            assert "Example" in text and f"fastvim {name} {part}" in text
        return
    assert "Example" in result.output and f"fastvim {name}" in result.output


def test_root_help_names_every_command():
    result = fastvim("--help")
    assert result.exit_code == 0
    for name, text in COMMANDS.items():
        assert name in result.output and text.rstrip(".") in " ".join(result.output.split())


def test_start_up_imports_nothing_heavy():
    code = (
        "import sys\nfrom fastvim_cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'pydantic', 'rich', 'numpy', 'yaml', 'scipy', 'fastvim'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("loaded: []\n"), done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [["show", "pooling-alternation"], ["list"]])
def test_planning_needs_no_torch(arguments):
    code = (
        "import sys\nfrom fastvim_cli.main import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        "print('loaded:', sorted({'torch', 'timm', 'scipy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("loaded: []\n"), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shwo"], "no command 'shwo', did you mean 'show'?"),
        (["show", "pooling-alternatin"], "did you mean 'pooling-alternation'?"),
        (["show", "absent.yaml"], "no file absent.yaml"),
        (["show", "tiny.yaml", "oops"], "unexpected argument 'oops': expected KEY=VALUE"),
        (["show", "tiny.yaml", "--set", "model.depht=1"], "did you mean 'model.depth'?"),
        (["ablate", "tiny.yaml", "--profile", "quick"], "no profile 'quick' in tiny"),
        (["ablate", "tiny.yaml", "-o", "tiny.yaml/x"], "cannot write tiny.yaml/x/experiment.json"),
        (
            ["ablate", "tiny.yaml", "--set", "data.train_images=10"],
            "tiny.yaml:6:25: training.batch_size: batch size 20 does not fit",
        ),
        (["ablate", "tiny.yaml", "model.in_channels=3"], "but fashion-mnist-subset has 1"),
        (
            ["ablate", "tiny.yaml", "--set", "model.name=timm/resnet1ot"],
            "did you mean 'timm/resnet1",
        ),
        (
            ["ablate", "tiny.yaml", "data.name=cifar10", "data.root=here", "model.patch_size=8"],
            "cifar10 was not found",
        ),
        (["train", "tiny.yaml"], "name a variant of tiny with --variant: one, two"),
        (["train", "tiny.yaml", "--variant", "tow"], "no variant 'tow' in tiny, did you mean"),
        (["train", "tiny.yaml", "--variant", ""], "no variant '' in tiny; there are one, two"),
        (["ablate", "tiny.yaml", "--profile", ""], "no profile '' in tiny"),
        (["ablate", "tiny.yaml", "-o", ""], "'--output' / '-o': the path is empty"),
        (["status", ""], "'DIR': the path is empty"),
        (["profile", "--models", "", "--resolutions", "16"], "no model"),
        (["status", "absent"], "absent: no experiment here"),
        (["evaluate", "absent"], "absent: no such run directory"),
        (["report", "absent"], "absent"),
        (["compare", "absent"], "absent"),
        (["tensorboard", "absent"], "absent"),
        (["stability", "--budget", "nan"], "nan is not in the range 0<x<=525600"),
        (
            ["stability", "threshold", "--vary", "size", "--budget", "inf"],
            "inf is not in the range",
        ),
        (["new", "tiny"], "tiny.yaml exists already"),
        (["new", "../x"], "cannot name an ablation"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(folder, arguments, message):
    before = sorted(folder.rglob("*"))
    result = fastvim(*arguments)
    assert result.exit_code == 2, result.output
    assert result.output.count("Error: ") == 1
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert sorted(folder.rglob("*")) == before


def test_unwritable_output(folder):
    result = fastvim("ablate", "tiny.yaml", "-o", "/proc/nowhere")
    assert result.exit_code == 2 and "cannot write /proc/nowhere" in result.output


def test_list_names_what_is_shipped():
    result = fastvim("list")
    assert result.exit_code == 0
    for name in ("pooling-alternation", "pooling-operator", "post-ssm-norm", "resolution-scaling"):
        assert name in result.output
    assert "_profiles" not in result.output and "claims" not in result.output


def test_show_prints_values_with_their_origin(folder):
    result = fastvim("show", "tiny.yaml", "training.lr=0.5", "--grid", "model.d_state=4,8")
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "4 variants x seeds 0, 1 = 8 runs" in text
    assert "training.lr 0.5 --set" in text
    assert "model.patch_size [7, 7] base tiny.yaml:5:" in text
    assert "two+d_state=8 one+d_state=8" in text
    assert sorted(folder.iterdir()) == [folder / "tiny.yaml"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_an_output_that_cannot_be_written_is_called_so(folder):
    command = [sys.executable, "-m", "fastvim_cli", "show", "tiny.yaml"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2, done.stderr
    assert "Error: cannot write to the output: No space left on device" in done.stderr


def test_closed_streams_do_not_end_the_work(folder, monkeypatch):
    for name in ("stdin", "stdout", "stderr"):  # As Python has them after `<&- >&- 2>&-`.
        monkeypatch.setattr(sys, name, None)
    main(["show", "tiny.yaml"], standalone_mode=False)
    RunProgress(1, 0).say("one more line")


def test_characters_that_the_output_cannot_show_are_written_as_codes(folder, monkeypatch):
    Path("tiny.yaml").write_text(TEXT.replace("Which of", "\u03b1 of"), encoding="utf-8")
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii"))
    main(["show", "tiny.yaml"], standalone_mode=False)
    sys.stdout.flush()
    assert b"\\u03b1 of the two?" in printed.getvalue()


def test_ablate_writes_and_prints_the_comparison(finished):
    folder, result = finished
    output = folder / "out/tiny"
    written = json.loads((output / "results.json").read_text())
    assert [variant["name"] for variant in written["variants"]] == ["one", "two"]
    assert "Which of the two?" in result.output and "difference" in result.output
    assert (output / "table.csv").read_text().startswith("variant,seeds,top1_mean")
    for run in (output / "runs").glob("*-seed*"):
        assert {"config.json", "result.json", "checkpoint.safetensors", "history.csv"} <= {
            path.name for path in run.iterdir()
        }
        assert list(run.glob("events.out.tfevents.*"))


def test_same_command_again_gives_the_same_tables(finished, monkeypatch):
    folder, _ = finished
    monkeypatch.chdir(folder)
    files = ("results.json", "table.md", "table.csv")
    before = {name: (folder / "out/tiny" / name).read_bytes() for name in files}
    again = fastvim("ablate", "tiny.yaml", "-o", "out/tiny")
    assert again.exit_code == 0 and again.output.count("already there") == 4
    fresh = fastvim("ablate", "tiny.yaml", "-o", "elsewhere/fresh", "--variants", "one")
    assert fresh.exit_code == 0 and "already there" not in fresh.output
    first, second = (
        json.loads((path / "results.json").read_text())["variants"][0]["metrics"]
        for path in (folder / "out/tiny", folder / "elsewhere/fresh")
    )
    assert first == second
    after = {name: (folder / "out/tiny" / name).read_bytes() for name in files}
    assert {name: data for name, data in after.items() if data != before[name]} == {}


def test_a_plan_that_another_process_replaces_is_reported_all_the_same(
    finished, tmp_path, monkeypatch
):
    folder, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder / "out/tiny", copy)
    other = (copy / "experiment.json").read_text()

    def replace(progress, event):
        (copy / "experiment.json").write_text(other)

    monkeypatch.setattr(write, "write_report", lambda study, output: [])
    monkeypatch.setattr(tensorboard, "write_board", lambda study, output: None)
    call = ["ablate", str(folder / "tiny.yaml"), "-o", str(copy), "--variants", "one"]
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(RunProgress, "__call__", replace)
        result = fastvim(*call)
    assert result.exit_code == 0, result.output
    rows = [line.split()[0] for line in result.output.splitlines() if line.strip()]
    assert "one" in rows and "two" not in rows
    assert f"meanwhile {copy} was given another plan" in result.output
    assert fastvim("status", str(copy)).output.count(" done ") == 4
    assert "another plan" not in fastvim(*call).output


def test_dry_run_shows_states_and_writes_nothing(finished, monkeypatch):
    folder, _ = finished
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    result = fastvim("ablate", "tiny.yaml", "-o", "out/tiny", "--seeds", "3", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "6 runs: 4 done, 2 new. To train, 1 at a time, " in result.output
    assert result.output.count("an earlier run") == 2
    result = fastvim("ablate", "tiny.yaml", "-o", "out/other", "--seeds", "3", "--dry-run")
    assert "6 runs: 4 done elsewhere, 2 new." in result.output
    assert result.output.count("out/tiny/runs/") == 4
    assert sorted(folder.rglob("*")) == before


def test_status_and_evaluate(finished):
    folder, _ = finished
    result = fastvim("status", str(folder / "out/tiny"))
    assert result.exit_code == 0 and result.output.count(" done ") == 4
    run = next((folder / "out/tiny/runs").glob("two-seed1-*"))
    result = fastvim("evaluate", str(run))
    assert result.exit_code == 0, result.output
    recorded = json.loads((run / "result.json").read_text())["metrics"]
    row = next(line.split() for line in result.output.splitlines() if line.startswith("top1"))
    assert row[1] == row[2] == f"{recorded['top1']:.4f}"


def test_status_names_every_state(finished, tmp_path):
    folder, _ = finished
    output = tmp_path / "tiny"
    shutil.copytree(folder / "out/tiny", output)
    one, running, corrupt, newer = (
        next((output / "runs").glob(f"{name}-*"))
        for name in ("one-seed0", "two-seed0", "one-seed1", "two-seed1")
    )
    (one / "result.json").write_text('{"format": 1, "status": "failed", "error": "no memory"}')
    (running / "result.json").unlink()
    (corrupt / "result.json").write_text('{"status": "do')
    (newer / "config.json").write_text('{"format": 99}')
    other = output / "runs/other-seed0-12345678"
    shutil.copytree(folder / "out/tiny/runs" / one.name, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(
        json.dumps(config | {"hash": "12345678", "variant": "other"})
    )
    store = Store(output)
    with store.lock(read_run(running).run) as held:
        assert held
        result = fastvim("status", str(output))
    assert result.exit_code == 0, result.output
    states = {line.split()[0]: line for line in result.stdout.splitlines()[2:]}
    assert states["one-seed0"].split()[1:3] == ["failed", "4"]
    assert states["two-seed0"].split()[1:3] == ["running", "4"]
    assert states["one-seed1"].split()[1:] == ["new", "-", "-", "-", "-"]
    assert states["two-seed1"].split()[1:] == ["new", "-", "-", "-", "-"]
    assert "done (not in the plan now)" in states["other-seed0"]
    assert f"skipped: {corrupt / 'result.json'}: corrupt: " in result.stderr
    assert f"skipped: {newer / 'config.json'}: written by a newer fastvim" in result.stderr
    assert f"one-seed0 failed: no memory\n  its log: {one / 'log.txt'}" in result.stderr
    assert "interrupted" in fastvim("status", str(output)).output


def test_truncated_checkpoint_is_one_message(finished, tmp_path):
    folder, _ = finished
    run = next((folder / "out/tiny/runs").glob("one-seed0-*"))
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    weights = copy / "checkpoint.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    result = fastvim("evaluate", str(copy))
    assert result.exit_code == 2 and "checkpoint.safetensors" in result.output
    assert result.output.count("Error: ") == 1


def test_train_makes_the_run_that_ablate_uses(finished, monkeypatch):
    folder, _ = finished
    monkeypatch.chdir(folder)
    options = ["tiny.yaml", "--variant", "two", "--seed", "1", "-o", "out/tiny"]
    result = fastvim("train", *options)
    assert result.exit_code == 0 and "already there" in result.output
    assert "two-seed1 done" in result.output and "top1" in result.output


def test_report_rebuilds_from_the_runs_alone(finished, tmp_path):
    folder, _ = finished
    copy = tmp_path / "tiny"
    shutil.copytree(folder / "out/tiny", copy)
    for name in ("results.json", "table.md", "table.csv"):
        (copy / name).unlink()
    result = fastvim("report", str(copy))
    assert result.exit_code == 0, result.output
    for name in ("results.json", "table.md", "table.csv"):
        assert (copy / name).read_text() == (folder / "out/tiny" / name).read_text()


def test_diverged_run_makes_exit_code_1(folder):
    result = fastvim(
        "ablate", "tiny.yaml", "-o", "out/x", "--seeds", "1", "--grid", "training.lr=1e-3,1e30"
    )
    assert result.exit_code == 1, result.output
    written = json.loads((folder / "out/x/results.json").read_text())
    diverged = {variant["name"]: variant["diverged"] for variant in written["variants"]}
    assert diverged == {
        "one+lr=0.001": 0,
        "one+lr=1e30": 1,
        "two+lr=0.001": 0,
        "two+lr=1e30": 1,
    }
    assert "diverged: its loss was no number" in result.output


@pytest.mark.parametrize("option", [["--keep-going"], ["--fail-fast"]])
def test_one_failing_run_ends_the_others_only_when_told_so(folder, monkeypatch, option):
    build = Classification.build

    def no_maximum(task, model, dataset, seed):
        if model["pooling"] == "max":
            raise RuntimeError("nothing to pool")
        return build(task, model, dataset, seed)

    monkeypatch.setattr(Classification, "build", no_maximum)
    text = TEXT.replace("one: {}", "bad: {model.pooling: max}")
    Path("tiny.yaml").write_text(text.replace("two: {model.pooling: max}", "good: {}"))
    result = fastvim("ablate", "tiny.yaml", "-o", "out/x", "--seeds", "1", "--jobs", "1", *option)
    assert result.exit_code == 1, result.output
    assert "bad-seed0 failed: RuntimeError: nothing to pool" in result.output
    (log,) = Path("out/x/runs").glob("bad-seed0-*/log.txt")
    assert f"its log: {log}" in result.output and 'raise RuntimeError("nothing' in result.output
    stopped = option == ["--fail-fast"]
    assert len(list(Path("out/x/runs").glob("good-*"))) == (not stopped)
    assert Path("out/x/report.html").exists() != stopped
    assert ("the other runs are saved. To go on: " in result.output) == stopped


def test_new_schema_and_completion(folder):
    assert fastvim("new", "state-size").exit_code == 0
    assert fastvim("show", "state-size.yaml").exit_code == 0
    schema = json.loads(fastvim("schema").output)
    assert schema["title"] == "fastvim experiment"
    assert "model.schedule" in fastvim("schema", "--keys").output.splitlines()
    for shell in ("bash", "zsh", "fish"):
        assert "_FASTVIM_COMPLETE" in fastvim("completion", shell).output


def test_a_configuration_cannot_run_code(folder):
    marker = Path("hacked")
    (folder / "bad.yaml").write_text(
        "base: !!python/object/apply:os.system ['touch hacked']\nvariants: {a: {}}\n"
    )
    result = fastvim("show", "bad.yaml")
    assert result.exit_code == 2 and "is not allowed" in result.output
    assert not marker.exists()
