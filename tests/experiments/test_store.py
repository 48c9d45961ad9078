"""Run directories: locks, broken ones, runs taken over from a sibling. Nothing is trained here."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastvim.errors import UserError
from fastvim.experiments.documents import parse_document
from fastvim.experiments.record import read_plan
from fastvim.experiments.settings import read_layer, resolve
from fastvim.experiments.store import BrokenRun, Run, Store, read_run

BASE = "base: {model.name: fastvim_femto}\n"


def a_run(variant: str = "one", seed: int = 0, identity: str = "ab" * 32) -> Run:
    layer = read_layer(parse_document(BASE, "f"), ("base",), "base", 0)
    return Run(variant, seed, resolve(layer)[0], identity)


def finish(directory: Path, **changes) -> None:
    result = {
        "status": "done",
        "metrics": {"top1": 50.0, "top5": 90.0, "loss": 1.0},
        "cost": {"parameters": 10, "seconds": 1.0},
        **changes,
    }
    (directory / "result.json").write_text(json.dumps(result))


def test_states(tmp_path):
    store, run = Store(tmp_path), a_run()
    assert store.state(run) == "new"
    directory = store.open(run)
    assert directory.name == "one-seed0-abababab"
    assert store.state(run) == "interrupted"
    assert read_run(directory).run == run
    finish(directory)
    assert store.state(run) == "done"
    assert store.state(a_run(identity="ab" * 31 + "cd")) == "new"
    assert store.open(run) == directory


def test_a_run_is_found_under_another_variants_name(tmp_path):
    store = Store(tmp_path)
    finish(store.open(a_run("one")))
    record, problems = store.lookup(a_run("other"))
    assert record.state == "done" and problems == []


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("result.json", '{"status": "do', "corrupt"),
        ("result.json", "[1]", "not a JSON object"),
        ("result.json", '{"status": "finished"}', "unknown status"),
        ("result.json", '{"status": "done", "cost": {}}', "no metrics"),
        ("result.json", '{"status": "done", "cost": {}, "metrics": {}}', "no top1"),
        (
            "result.json",
            '{"status": "done", "cost": {}, "metrics": {"top1": NaN}}',
            "not a number",
        ),
        ("result.json", '{"format": 99, "status": "done"}', "newer fastvim"),
        ("result.json", "[" * 100_000, "corrupt"),
        ("config.json", '{"format": 2}', "newer fastvim"),
        ("config.json", "{}", "not a run's settings"),
        ("config.json", "\x00\x01", "corrupt"),
    ],
    ids=range(11),
)
def test_broken_runs_are_named_and_never_counted(tmp_path, file, content, reason):
    store, run = Store(tmp_path), a_run()
    directory = store.open(run)
    finish(directory)
    (directory / file).write_text(content)
    with pytest.raises(BrokenRun, match=reason):
        read_run(directory)
    record, problems = store.lookup(run)
    assert record is None and len(problems) == 1 and str(directory) in problems[0]
    assert store.all_runs() == ([], problems)
    # It is left as it is; the run gets a folder of its own.
    fresh = store.open(run)
    assert fresh.name == "one-seed0-abababab-2"
    finish(fresh)
    assert (directory / file).read_text() == content
    record, problems = store.lookup(run)
    assert record.directory == fresh and len(problems) == 1


@pytest.mark.parametrize("part", ["", "config.json", "result.json"])
def test_runs_that_may_not_be_read_are_named_and_never_counted(tmp_path, unreadable, part):
    store, run = Store(tmp_path / "out"), a_run()
    directory = store.open(run)
    finish(directory)
    unreadable(directory / part)
    record, problems = store.lookup(run)
    assert record is None and len(problems) == 1 and str(directory) in problems[0]
    assert problems[0].endswith("cannot be read: Permission denied")
    assert store.all_runs() == ([], problems)
    assert store.open(run).name == "one-seed0-abababab-2"


def test_a_folder_of_runs_that_may_not_be_read_is_not_taken_for_empty(tmp_path, unreadable):
    store, run = Store(tmp_path / "out"), a_run()
    finish(store.open(run))
    unreadable(store.runs)
    for read in (store.all_runs, lambda: store.lookup(run)):
        with pytest.raises(BrokenRun, match="runs: cannot be read: Permission denied"):
            read()
    assert Store(tmp_path / "other").elsewhere(run) is None


def test_findings_of_a_review_beside_the_runs_are_no_broken_runs(tmp_path):
    store = Store(tmp_path)
    finish(store.open(a_run()))
    findings = store.runs / "one-seed0-abababab-episodes"
    findings.mkdir()
    (findings / "events.out.tfevents.1.fastvim-review").write_bytes(b"")
    assert len(store.all_runs()[0]) == 1 and store.all_runs()[1] == []


def test_result_without_settings_is_not_believed(tmp_path):
    store, run = Store(tmp_path), a_run()
    directory = store.open(run)
    finish(directory)
    (directory / "config.json").unlink()
    record, problems = store.lookup(run)
    assert record is None and "no config.json" in problems[0]


def test_folder_made_by_a_process_killed_at_once_is_used(tmp_path):
    store, run = Store(tmp_path), a_run()
    (store.runs / run.directory_name).mkdir(parents=True)
    (store.runs / run.directory_name / ".config.json.x1").write_text("{")
    assert store.lookup(run) == (None, [])
    assert store.open(run).name == run.directory_name


def test_what_a_killed_process_was_writing_is_deleted(tmp_path):
    store, run = Store(tmp_path), a_run()
    directory = store.open(run)
    unfinished = {".resume.safetensors.ab.unfinished", "episodes/.12.json.cd.unfinished"}
    own = {".hidden", ".notes.settings"}
    for name in unfinished | own:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("half")
    assert store.open(run) == directory
    assert {p.name for p in directory.rglob("*")} == {"config.json", "episodes", *own}


def test_a_sibling_folder_shares_its_finished_runs(tmp_path):
    first, second, run = Store(tmp_path / "first"), Store(tmp_path / "second"), a_run()
    done = first.open(run)
    assert second.adopt(run) is None
    finish(done)
    (done / "checkpoint.safetensors").write_bytes(b"weights")
    renamed = a_run("renamed")
    adopted = second.adopt(renamed)
    assert adopted.directory == tmp_path / "second/runs" / renamed.directory_name
    assert adopted.state == "done" and second.state(renamed) == "done"
    assert (adopted.directory / "checkpoint.safetensors").read_bytes() == b"weights"
    assert not [path for path in second.runs.iterdir() if path.name.startswith(".adopt")]


HOLDER = """
import sys
from pathlib import Path
from fastvim.experiments.store import Run, Store
with Store(Path(sys.argv[1])).lock(Run("x", 0, None, sys.argv[2])) as held:
    print(held, flush=True)
    sys.stdin.read()
"""


def test_lock_is_free_once_its_owner_is_killed(tmp_path):
    store, run = Store(tmp_path), a_run()
    assert not store.is_locked(run)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), run.identity],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "True\n"
        with store.lock(run) as held:
            assert not held
        assert store.is_locked(run) and store.state(run) == "running"
        with store.lock(a_run(identity="cd" * 32)) as held:
            assert held
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    assert not store.is_locked(run)
    with store.lock(run) as held:
        assert held


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "no experiment here"), ("{", "corrupt"), ('{"format": 9}', "newer"), ("{}", "record")],
)
def test_experiments_record_that_cannot_be_believed(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "experiment.json").write_text(content)
    with pytest.raises(UserError, match=reason):
        read_plan(tmp_path)


def test_a_file_is_no_output_folder(tmp_path):
    (tmp_path / "mine.yaml").write_text(BASE)
    with pytest.raises(UserError, match="no experiment here"):
        read_plan(tmp_path / "mine.yaml")
