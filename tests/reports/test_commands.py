"""report, compare, claims and tensorboard as they are called."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner

from fastvim_cli.main import main


def call(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_report_writes_all_and_says_what(output):
    done = call("report", output)
    assert done.exit_code == 0, done.output
    assert (output / "report.html").exists() and (output / "plots" / "curves.svg").exists()
    assert "Written to" in done.output and "alternating" in done.output
    assert len(list((output / "runs").glob("*.fastvim"))) == 1


def test_report_writes_only_the_formats_asked_for(output):
    before = {path.name for path in output.iterdir()}
    assert call("report", output, "--format", "latex,md").exit_code == 0
    assert {path.name for path in output.iterdir()} - before == {"table.tex", "table.md"}


def test_logs_review_of_an_output_sees_every_step_of_its_runs(output):
    reviewed = json.loads(call("logs", "review", output, "--json").stdout)
    losses = {Path(log["path"]).name: log for log in reviewed if log["tag"] == "train/loss"}
    assert set(losses) == {path.name for path in (output / "runs").glob("*-seed*")}
    # Before the first of the points that its event file has.
    (hot,) = (log for name, log in losses.items() if name.startswith("hot-seed0"))
    assert [episode["class"] for episode in hot["episodes"]] == ["nonfinite"]
    (done,) = (log for name, log in losses.items() if name.startswith("columns-seed0"))
    assert (done["values"], done["first_step"], done["last_step"]) == (12, 1, 12)
    # What the event files alone have.
    assert [log["tag"] for log in reviewed].count("validation/val_loss") == 4


def test_logs_review_of_an_output_leaves_its_report_alone(output):
    assert call("report", output, "--format", "csv").exit_code == 0
    reviewed = json.loads(call("logs", "review", output, "--json", "--tag", "*loss*").stdout)
    assert {Path(log["path"]).parent for log in reviewed} == {output / "runs"}


def test_compare_says_what_differs_and_writes_where_asked(finished, tmp_path, run_directory):
    runs = [run_directory(finished, name, 0) for name in ("columns", "alternating")]
    done = call("compare", *runs, "-o", tmp_path / "c", "--format", "html,json")
    assert done.exit_code == 0, done.output
    assert "model.schedule" in done.output
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"report.html", "results.json"}


def test_claims_as_a_table_and_as_json(output):
    table = call("claims", output)
    assert table.exit_code == 0 and "fastvim ablate" in table.output
    rows = json.loads(call("claims", output, "--json").stdout)
    assert {"claim", "published", "estimate", "verdict", "command"} <= set(rows[0])


def test_a_run_that_may_not_be_read_costs_only_itself(output, run_directory, unreadable):
    run = run_directory(output, "columns", 0)
    unreadable(run)
    named = f"{run}/config.json: cannot be read: Permission denied"
    for command in (["claims"], ["status"], ["report", "--format", "json"]):
        done = call(*command, output)
        assert done.exit_code == 0, done.output
        assert named in "".join(done.output.split("\n")) or command[0] == "report"
    results = json.loads((output / "results.json").read_text())
    assert results["problems"] == [named]
    assert {v["name"]: v["seeds"] for v in results["variants"]}["columns"] == [1]
    done = call("compare", run)
    assert done.exit_code == 2 and f"cannot access {run}" in done.output
    unreadable(output)
    done = call("claims", output.parent)
    assert done.exit_code == 0 and "Traceback" not in done.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "nowhere"),
        ("report", "{out}", "--format", "docx"),
        ("compare", "{out}", "--baseline", "alternatin"),
        ("compare", "{out}", "--format", "html"),
        ("compare", "nowhere"),
        ("claims", "nowhere"),
        ("tensorboard", "nowhere"),
        ("tensorboard", "{empty}"),
    ],
)
def test_bad_input_is_one_message(finished, tmp_path, arguments):
    done = call(*(a.format(out=finished, empty=tmp_path) for a in arguments))
    assert done.exit_code == 2
    assert done.output.startswith("Error: ") and "Traceback" not in done.output


def test_tensorboard_prints_its_address_serves_the_runs_and_ends(output):
    call("report", output, "--format", "json")
    process = subprocess.Popen(
        [sys.executable, "-c", "from fastvim_cli.main import main; main()", "tensorboard", output],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        # A shell starts background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        address = re.search(r"http://\S+/", process.stdout.readline()).group()
        for line in process.stderr:
            if "Press CTRL+C" in line:
                break
        with urllib.request.urlopen(f"{address}data/runs", timeout=30) as answer:
            runs = json.loads(answer.read())
        assert isinstance(runs, list)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert "Traceback" not in errors
    finally:
        process.kill()
        process.wait()
