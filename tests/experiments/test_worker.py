"""A worker of `--jobs` whose parent is gone stops, and what it trained has not failed."""

import json
import subprocess
import sys

import pytest

from fastvim.experiments.experiment import load
from fastvim.experiments.plan import identified_runs, make_plan
from fastvim.experiments.store import Store
from fastvim.experiments.worker import INTERRUPTED, describe_work

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
