"""A worker of `--jobs` that is to stop, or whose parent is gone: what it trained has not failed."""

import io
import json
import os
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner

from fastvim.experiments import worker, workers
from fastvim.experiments.experiment import load
from fastvim.experiments.plan import identified_runs, make_plan
from fastvim.experiments.runner import StopRequest
from fastvim.experiments.store import Store
from fastvim.experiments.worker import INTERRUPTED, describe_work
from fastvim.training import run as training
from fastvim.training.loop import Interrupted
from fastvim_cli.main import main

TEXT = """\
name: long
base:
  data: {train_images: 100, validation_images: 20, test_images: 20}
  model: {name: fastvim_femto, patch_size: 7, depth: 1}
  training: {epochs: 2000, batch_size: 20, lr: 1e-3, warmup_epochs: 0, log_every: 1}
variants: {one: {}}
seeds: 1
"""


@pytest.fixture
def run(tmp_path):
    file = tmp_path / "long.yaml"
    file.write_text(TEXT)
    (run,) = identified_runs(make_plan(load(str(file))))
    return run


def start_worker(work: dict) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-m", "fastvim.experiments.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdin.write(json.dumps(work))
    process.stdin.close()
    return process


def test_a_parent_killed_while_its_worker_loads_leaves_nothing_behind(run, tmp_path):
    work = json.loads(describe_work(tmp_path / "out", [run], {}))
    # Whoever starts this test is alive, and not the one that asked for the work.
    process = start_worker(work | {"parent": 2**30})
    assert process.wait(timeout=300) == INTERRUPTED, process.stderr.read()
    assert process.stdout.read() == "" and Store(tmp_path / "out").state(run) == "new"


def test_a_worker_that_nobody_hears_saves_and_stops(run, tmp_path):
    work = json.loads(describe_work(tmp_path / "out", [run], {}))
    process = start_worker(work)
    assert json.loads(process.stdout.readline())["event"] == "begin"
    process.stdout.close()
    assert process.wait(timeout=300) == INTERRUPTED, process.stderr.read()
    store = Store(tmp_path / "out")
    assert store.state(run) == "interrupted"
    assert (store.lookup(run)[0].directory / "resume.safetensors").exists()


def test_a_second_sigterm_counts_for_nothing_and_ctrl_c_after_one_stops_at_once():
    stop = StopRequest()
    with stop.listening(lambda: None):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.exit_code == 128 + signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_worker_says_that_it_has_saved_while_it_still_listens(run, tmp_path, monkeypatch, capfd):
    def interrupted(directory, **settings):
        raise Interrupted(directory, 1, 2)

    heard = []

    def write(stream, event):
        heard.append((event["event"], event["run"]))
        if event["event"] == "saved":
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(training, "train_run", interrupted)
    monkeypatch.setattr(worker, "_write", write)
    work = json.loads(describe_work(tmp_path / "out", [run], {})) | {"parent": os.getppid()}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(work)))
    output = os.dup(1)
    try:
        assert worker.main() == INTERRUPTED
    finally:
        os.dup2(output, 1)
        os.close(output)
    assert heard == [("begin", 0), ("saved", 0)]


# A batch system's signal to every process of a job, and the parent's after it.
SIGNALLED = """\
#!/bin/sh
stop() {{
    {saved}
    kill -KILL $$
}}
trap stop TERM
echo '{{"event": "begin", "run": 0}}'
kill -TERM $PPID
while :; do sleep 0.05; done
"""


@pytest.mark.parametrize("saved", [True, False])
def test_a_worker_killed_as_it_stops_is_no_failure(run, tmp_path, monkeypatch, saved):
    script = tmp_path / "worker"
    told = """echo '{"event": "saved", "run": 0}'""" if saved else "true"
    script.write_text(SIGNALLED.format(saved=told))
    script.chmod(0o755)
    store = Store(tmp_path / "out")
    store.open(run)
    monkeypatch.setattr(workers.sys, "executable", str(script))
    call = ["ablate", str(tmp_path / "long.yaml"), "-o", str(store.output), "--jobs", "2"]
    result = CliRunner().invoke(main, call)
    assert result.exit_code == 128 + signal.SIGTERM, result.output
    assert ("everything is saved" in result.output) == saved
    lost = "one-seed0 is not saved since its last checkpoint: its process ended (killed by signal 9"
    assert (f"{lost})." in result.output and "everything else is saved" in result.output) != saved
    assert store.state(run) == "interrupted"
