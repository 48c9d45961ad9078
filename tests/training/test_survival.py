"""Runs in processes of their own: killed at random moments, and with no room on the disk."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from fastvim.training.run import train_run

LONG = {"epochs": 6, "checkpoint_every": 3}

IN_LITTLE_SPACE = """
import resource, sys
from pathlib import Path
from fastvim.data import DataConfig
from fastvim.errors import UserError
from fastvim.training.recipe import Recipe
from fastvim.training.run import train_run

_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
for limit in sys.argv[2:]:
    directory = Path(sys.argv[1]) / limit
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), hard))
    try:
        train_run(
            task="classification",
            data=DataConfig(train_images=40, validation_images=10, test_images=10),
            model={"name": "fastvim_femto", "patch_size": 7},
            training=Recipe(epochs=2, batch_size=10, warmup_epochs=0, checkpoint_every=2),
            seed=0,
            directory=directory,
        )
        print("no error")
    except UserError as error:
        print(str(error).replace(str(directory), "HERE"), (directory / "result.json").exists())
"""


@pytest.fixture(scope="module")
def processes():
    """Fresh interpreters that have imported everything and computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fastvim.training.run"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield context


def start(processes, arguments, directory):
    process = processes.Process(target=train_run, kwargs={**arguments, "directory": directory})
    process.start()
    return process


def wait_for_new_state(process, path):
    """Until the process has replaced its saved state or is gone."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    while process.is_alive():
        if path.exists() and path.stat().st_mtime_ns != before:
            return
        time.sleep(0.005)


def test_killed_at_any_moment_a_run_ends_the_same(processes, settings, outcome, tmp_path):
    arguments = settings(**LONG)
    whole = start(processes, arguments, tmp_path / "whole")
    whole.join()
    assert whole.exitcode == 0

    moments, kills, killed = random.Random(0), 0, tmp_path / "killed"
    while not (killed / "result.json").exists():
        process = start(processes, arguments, killed)
        if kills % 2:
            # Without a new state now and then, no session would ever end the run.
            wait_for_new_state(process, killed / "resume.safetensors")
            process.join(moments.uniform(0, 0.1))
        else:
            process.join(moments.uniform(0, 0.5))
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        kills += process.exitcode != 0
    assert kills >= 3
    train_run(**arguments, directory=killed)
    assert not (killed / "resume.safetensors").exists()
    assert outcome(killed) == outcome(tmp_path / "whole")


def test_a_full_disk_is_one_clear_error(tmp_path):
    limits = [10, 500, 2_000, 100_000, 300_000]
    command = [sys.executable, "-c", IN_LITTLE_SPACE, str(tmp_path), *map(str, limits)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    messages = done.stdout.splitlines()
    assert len(messages) == len(limits)
    for message in messages:
        assert message.startswith("cannot write HERE")
        assert message.endswith("File too large False")
