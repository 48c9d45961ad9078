"""`fastvim stability threshold` on real runs of a few steps."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from fastvim.experiments import threshold
from fastvim_cli.main import main

OPTIONS = [
    *("--vary", "width", "--budget", "1000", "--set", "training.steps=14"),
    *("--set", "data.train_images=64", "--set", "data.validation_images=10"),
    *("--set", "data.test_images=10", "--set", "training.optimizer=momentum"),
]


def fastvim(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)), prog_name="fastvim")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two widths, a rate at which nothing happens and one at which everything breaks."""
    folder = tmp_path_factory.mktemp("threshold") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(threshold.BODIES["quick"], "width", ((16, 1), (32, 1)))
        patch.setitem(threshold.LADDERS, "quick", (1.0, 20000.0))
        result = fastvim("stability", "threshold", *OPTIONS, "-o", folder)
        assert result.exit_code == 0, result.output
        again = fastvim("stability", "threshold", *OPTIONS, "-o", folder)
    return folder, result.output, again


def test_it_says_what_it_will_do_and_writes_what_it_found(study):
    folder, output, _ = study
    assert "8 runs of 14 steps (2 widths and depths" in output
    results = json.loads((folder / "results.json").read_text())
    assert [side["name"] for side in results["sides"]] == ["vim, with norm", "vim, without norm"]
    for side in results["sides"]:
        assert side["unstable_runs"] == 2
        assert side["smallest_unstable"] == {"0.002": None, "40": [16, 1]}
        assert set(side["boundary"]["coefficients"]) == {"width", "lr"}
        assert side["follows"] == {"width": "unresolved", "depth": "not varied"}
    table = (folder / "table.md").read_text()
    assert table in output
    assert "not reached" in table and "unresolved" in table and results["definition"] in table
    assert (folder / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_command_trains_nothing_again(study):
    _, _, again = study
    assert again.exit_code == 0
    assert again.output.count("(already there)") == 8


IN_A_PROCESS = """
import sys
from fastvim.experiments import threshold
threshold.BODIES["quick"]["width"] = ((16, 1),)
threshold.LADDERS["quick"] = (1.0, 4.0)
from fastvim_cli.main import main
main(sys.argv[1:], prog_name="fastvim")
"""


def results(folder):
    """Metrics, history and time of writing of every run that is done."""
    found = {}
    for file in folder.glob("study/runs/*/result.json"):
        metrics = json.loads(file.read_text())["metrics"]
        history = (file.parent / "history.csv").read_bytes()
        found[file.parent.name] = (metrics, history), file.stat().st_mtime_ns
    return found


def stopped_in_mid_run(command, folder, number, done):
    """Send the signal in a run after the first `done`; what had been done, and the output."""
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_PROCESS, *map(str, command)],
        stderr=subprocess.PIPE,
        text=True,
    )
    # Its state is saved every third step: one is there as long as the run goes on.
    while not (len(results(folder)) >= done and list(folder.glob("study/runs/*/resume.*"))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    os.kill(process.pid, number)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130}[number], said
    return results(folder), said


def test_killed_and_interrupted_in_mid_run_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(threshold.BODIES["quick"], "width", ((16, 1),))
    monkeypatch.setitem(threshold.LADDERS, "quick", (1.0, 4.0))
    folder, undisturbed = tmp_path / "out", tmp_path / "undisturbed"
    command = ["stability", "threshold", *OPTIONS, "--set", "training.steps=60"]
    command += ["--set", "training.checkpoint_every=3"]
    killed, _ = stopped_in_mid_run([*command, "-o", folder], folder, signal.SIGKILL, 1)
    interrupted, said = stopped_in_mid_run(
        [*command, "-o", folder], folder, signal.SIGINT, len(killed) + 1
    )
    assert "Stopped; everything is saved. To go on: fastvim stability threshold" in said
    assert 1 <= len(killed) < len(interrupted) < 4
    assert fastvim(*command, "-o", folder).exit_code == 0
    assert fastvim(*command, "-o", undisturbed).exit_code == 0
    last, expected = results(folder), results(undisturbed)
    assert {**last, **killed, **interrupted} == last  # None was trained twice.
    assert {name: found for name, (found, _) in last.items()} == {
        name: found for name, (found, _) in expected.items()
    }
    assert len(last) == 4


def test_bad_options_are_one_message(tmp_path):
    result = fastvim("stability", "threshold", "--vary", "widht", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "'widht'" in result.output
    assert not (tmp_path / "out").exists()


def test_a_dry_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(threshold.BODIES["quick"], "width", ((16, 1),))
    result = fastvim("stability", "threshold", *OPTIONS, "--dry-run", "-o", tmp_path / "out")
    assert result.exit_code == 0 and "6 runs of 14 steps" in result.output
    paper = ("--vary", "width", "--profile", "paper", "--dry-run", "-o", tmp_path / "paper")
    result = fastvim("stability", "threshold", *paper)
    assert result.exit_code == 0 and "--budget MINUTES times a few steps" in result.output
    assert not list(tmp_path.iterdir())
