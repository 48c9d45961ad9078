"""Processes killed, competing, stopped, and short of disk: nothing is lost, results are identical.

A few kills by default; FASTVIM_KILLS=110 pytest -s tests/experiments/test_faults.py -k killed is
the long test of each kind, and prints a line for each kill.
"""

import functools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import killable
import pytest
from click.testing import CliRunner

from fastvim.experiments.workers import cores
from fastvim_cli.main import main

TEXT = """\
name: faults
base:
  data: {train_images: 300, validation_images: 200, test_images: 1000}
  model: {name: fastvim_femto, patch_size: 7, depth: 1}
  training: {epochs: 3, batch_size: 20, lr: 1e-3, warmup_epochs: 0, checkpoint_every: 2}
variants:
  one: {}
  two: {model.pooling: max}
seeds: 1
"""
# Runs that start from one pretraining, whose probes nobody may train before it is whole.
STAGES = """\
name: stages
base:
  task: linear-probe
  data: {train_images: 200, validation_images: 100, test_images: 500}
  model: {name: fastvim_femto, patch_size: 7, depth: 1, pooling_scale: auto, class_token: none}
  training: {epochs: 2, batch_size: 20, lr: 0.1, warmup_epochs: 0, checkpoint_every: 1}
  pretrained:
    masking: {mask_ratio: 0.5, decoder_width: 32, decoder_depth: 1}
    training: {epochs: 5, batch_size: 20, lr: 1e-3, warmup_epochs: 0, checkpoint_every: 1}
variants:
  probe: {}
  unscaled: {model.pooling_scale: 1}
  finetune: {task: classification, training.lr: 1e-3}
seeds: 1
"""
PLANS = {"plain": TEXT, "stages": STAGES}
COMMAND = ["ablate", "faults.yaml", "-o", "out/x"]
# Two pretrainings, so that there is something to do side by side from the start.
WITH_JOBS = [*COMMAND, "--seeds", "2", "--jobs", "auto"]
RUNS = 2
KILLS = int(os.environ.get("FASTVIM_KILLS", "2"))
# Of a processor, from the first lock to the report.
SECONDS = 1.0
# A process that hangs fails the test instead of holding it up.
PATIENCE = 300


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "faults.yaml").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def here(command=COMMAND):
    """The command in this process."""
    return CliRunner().invoke(main, command, prog_name="fastvim")


def elsewhere(*options: str) -> subprocess.Popen:
    """The command in a process of its own, which may be killed."""
    return subprocess.Popen(
        [sys.executable, "-m", "fastvim_cli", *COMMAND, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def results(folder: Path) -> dict:
    """Metrics, histories and weights: what must not depend on how it came about."""
    found = {}
    for directory in sorted((folder / "out/x/runs").iterdir()):
        if directory.name.startswith(".") or not directory.is_dir():
            continue
        names = {path.name for path in directory.iterdir()}
        assert not {name for name in names if name.startswith((".", "resume"))}
        metrics = json.loads((directory / "result.json").read_text())["metrics"]
        files = {
            name: (directory / name).read_bytes()
            for name in names - {"result.json", "environment.json"}
            if not name.startswith("events")
        }
        assert {"history.csv", "eval.csv", "checkpoint.safetensors"} <= set(files)
        found[directory.name] = (metrics, files)
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The results of a command that nobody disturbs, by the plan and the command."""

    @functools.cache
    def train(text: str, *command: str) -> dict:
        folder = tmp_path_factory.mktemp("undisturbed")
        (folder / "faults.yaml").write_text(text)
        before = os.getcwd()
        os.chdir(folder)
        try:
            result = here(command)
        finally:
            os.chdir(before)
        assert result.exit_code == 0, result.output
        return results(folder)

    return train


@pytest.fixture(scope="module")
def expected(undisturbed):
    return undisturbed(TEXT, *COMMAND)


def wait_for(condition, process: subprocess.Popen | None = None) -> None:
    # Looks are counted, not seconds: a machine may be suspended in between.
    for _ in range(100 * PATIENCE):
        if condition():
            return
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("it never came")


@pytest.mark.parametrize("plan", PLANS)
def test_killed_at_random_moments(undisturbed, folder, plan):
    (folder / "faults.yaml").write_text(PLANS[plan])
    expected = undisturbed(PLANS[plan], *COMMAND)
    draw = random.Random(KILLS + 2)
    kills, trained, finished = Counter(), 0, {}
    while kills.total() < KILLS:
        # One in ten has an interpreter of its own, and may die while it loads torch.
        context = killable.FRESH if draw.random() < 0.1 else killable.FORKED
        process = killable.start(COMMAND, context)
        # Most of a command is starting up and reporting; most kills are to come in between.
        if draw.random() < 0.8:
            wait_for(lambda p=process: has_open(p.pid, ".lock") or p.exitcode is not None)
        used = killable.work(process.pid, draw.uniform(0, SECONDS))
        moment = killable.kill(process)
        if moment is not None:
            kills[moment] += 1
            print(f"kill {kills.total()}: {moment}, after {used:.2f} s of work", flush=True)
            check_finished(folder, finished)
            if moment != "reporting":
                continue
        else:
            assert process.exitcode == 0, (folder / "said.txt").read_text()
            print("it came to the end", flush=True)
        # All is trained. Once more, beside the report or the half of it.
        assert results(folder) == expected
        trained += 1
        shutil.rmtree(folder / "out/x/runs")
        finished.clear()
    most = ("starting a run", "training", "evaluation", "saving", "reporting")
    assert KILLS < 50 or all(kills[moment] > 0 for moment in most), kills
    result = here()
    assert result.exit_code == 0, result.output
    assert results(folder) == expected
    table = json.loads((folder / "out/x/results.json").read_text())
    assert {len(variant["seeds"]) for variant in table["variants"]} == {1}
    print(f"{kills.total()} kills: {dict(kills)}; all trained {trained + 1} times, always the same")


def check_finished(folder: Path, finished: dict) -> None:
    """No result is half written, and none of a run that was done is written again."""
    for file in folder.rglob("result*.json"):
        content = json.loads(file.read_text())
        if content.get("status") == "done":
            written = file.stat().st_mtime_ns
            assert finished.setdefault(file, written) == written


@pytest.mark.slow
@pytest.mark.skipif(cores() < 2, reason="--jobs auto is one job on one core")
def test_workers_and_their_parents_killed(undisturbed, folder):
    (folder / "faults.yaml").write_text(STAGES)
    expected = undisturbed(STAGES, *WITH_JOBS)
    draw = random.Random(KILLS + 3)
    kills, ended, finished, orphans = Counter(), Counter(), {}, []
    process = None
    while kills.total() < KILLS:
        process = process or killable.start(WITH_JOBS, killable.FORKED)
        victim = worker_at_work(process, draw)
        if victim is not None and kills.total() % 2:
            moment = killable.kill_worker(victim)
            moment = moment and f"a worker: {moment}"
        else:
            children = killable.workers(process.pid)
            at = "reporting" if victim is None else f"its worker: {killable.where(victim)}"
            moment = killable.kill(process) and f"the parent, {at}"
            if moment is not None:
                process = None
                orphans.extend(children)
                if draw.random() < 0.5:  # Else the next command meets them.
                    wait_for(lambda: not any(map(killable.is_alive, orphans)))
        if moment is not None:
            kills[moment] += 1
            print(f"kill {kills.total()}: {moment}", flush=True)
        check_finished(folder, finished)
        if process is not None and process.exitcode is not None:
            # 1 where a run failed with its worker; 0 where all are done, or were taken up again.
            assert process.exitcode in (0, 1), (folder / "said.txt").read_text()
            ended[process.exitcode] += 1
            if process.exitcode == 0:
                assert results(folder) == expected
                shutil.rmtree(folder / "out/x/runs")
                finished.clear()
            process = None
    if process is not None:
        process.join()
    result = here(WITH_JOBS)
    assert result.exit_code == 0, result.output
    assert results(folder) == expected
    check_finished(folder, finished)
    wait_for(lambda: not any(map(killable.is_alive, orphans)))
    print(f"{kills.total()} kills: {dict(kills)}; {ended[0]} commands came to the end")


def worker_at_work(process, draw: random.Random) -> int | None:
    """A worker of the command somewhere in its work; None once the command needs none any more."""
    anywhere, had_any = draw.random() < 0.2, False
    seen = []

    def look() -> bool:
        nonlocal had_any
        alive = [worker for worker in killable.workers(process.pid) if killable.is_alive(worker)]
        # It takes up a run before it loads torch, which is where most kills would be.
        seen[:] = [w for w in alive if anywhere or has_open(w, "history.csv")]
        over = had_any and not alive
        had_any = had_any or bool(alive)
        return bool(seen) or over or process.exitcode is not None

    wait_for(look)
    victim = draw.choice(seen) if seen else None
    killable.work(victim or process.pid, draw.uniform(0, SECONDS))
    return victim


def has_open(process: int, suffix: str) -> bool:
    """Whether a process has a file open whose name ends so."""
    try:
        links = [os.readlink(link) for link in Path(f"/proc/{process}/fd").iterdir()]
    except OSError:  # It has just ended, or closed a file.
        return False
    return any(name.endswith(suffix) for name in links)


def test_two_runners_share_the_work(expected, folder):
    other = elsewhere()
    wait_for(lambda: (folder / "out/x/experiment.json").exists(), other)
    mine = here()
    said = [mine.output, other.communicate(timeout=PATIENCE)[1]]
    assert (mine.exit_code, other.returncode) == (0, 0), said
    assert results(folder) == expected
    lines = [line for text in said for line in text.splitlines() if line.endswith(" done")]
    assert len(lines) == RUNS, said


def test_interrupt_saves_and_says_how_to_go_on(expected, folder):
    def interrupt() -> None:
        wait_for(lambda: list((folder / "out/x/runs").glob("*/resume.safetensors")))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    result = here()
    thread.join()
    assert result.exit_code == 130, result.output
    assert "Stopped; everything is saved. To go on: fastvim" in result.output
    assert not (folder / "out/x/results.json").exists()
    again = here()
    assert again.exit_code == 0, again.output
    assert results(folder) == expected


@pytest.mark.slow
def test_jobs_survive_the_death_of_a_worker(expected, folder):
    process = elsewhere("--jobs", "2")
    runs = folder / "out/x/runs"
    victims: list[int] = []

    def someone_trains() -> bool:
        if list(runs.glob("*/history.csv")):
            found = killable.workers(process.pid)
            victims.extend(worker for worker in found if has_open(worker, ".lock"))
        return bool(victims)

    wait_for(someone_trains, process)
    os.kill(victims[0], signal.SIGKILL)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, err
    assert "killed by signal 9" in err
    states = sorted(json.loads(f.read_text())["status"] for f in runs.glob("*/result.json"))
    assert states == ["done", "failed"]
    assert "its log" not in err and not list(runs.glob("*/log.txt"))
    again = here([*COMMAND, "--jobs", "2"])
    assert again.exit_code == 0, again.output
    # Sums over other numbers of threads differ in the last bits, so only the runs are the same.
    assert set(results(folder)) == set(expected)


def test_workers_that_have_no_run_yet_may_die_or_be_stopped(folder):
    process = elsewhere("--jobs", "2")
    wait_for(lambda: len(killable.workers(process.pid)) == 2, process)
    first = killable.workers(process.pid)
    os.kill(first[0], signal.SIGKILL)
    wait_for(lambda: set(killable.workers(process.pid)) - set(first), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert "Stopped; everything is saved. To go on: fastvim" in err


@pytest.fixture(params=["a file system of 64 KiB", "a limit on the size of files"])
def short_of_disk(request, folder):
    """The folder `out` on a full disk: a real one where mounting is allowed; returns its relief."""
    if request.param == "a limit on the size of files":
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return
    disk = folder / "out"
    disk.mkdir()
    mounted = mount("size=64k", disk)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.strip()}")
    yield lambda: mount("remount,size=64m", disk).check_returncode()
    subprocess.run(["umount", disk], check=True)


def mount(options: str, folder: Path) -> subprocess.CompletedProcess:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        return subprocess.CompletedProcess(command, 1, stderr=str(error))


def test_full_disk_is_one_message_and_leaves_no_half_result(expected, folder, short_of_disk):
    result = here()
    assert result.exit_code == 2, result.output
    assert result.output.count("Error: cannot write") == 1
    assert not list(folder.rglob("result.json")) and not list(folder.rglob("table.*"))
    # Nothing that was being written is left.
    assert not [path for path in folder.rglob(".*.*") if path.parent.name != ".locks"]
    short_of_disk()
    assert here().exit_code == 0
    assert results(folder) == expected
    print(result.output.splitlines()[-1])


def test_deleted_files_are_made_again(expected, folder):
    assert here().exit_code == 0
    next((folder / "out/x/runs").glob("one-*/result.json")).unlink()
    (folder / "out/x/results.json").unlink()
    (folder / "out/x/experiment.json").unlink()
    assert here().exit_code == 0
    assert results(folder) == expected
    assert json.loads((folder / "out/x/results.json").read_text())["experiment"] == "faults"
