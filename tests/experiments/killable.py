"""`fastvim` in processes to be killed, which say where they are in that moment.

Loading torch takes longer than the small runs of the fault test. A process forked from a server
that has loaded it trains after a fraction of a second, so that a hundred are killed in minutes.
The workers of `--jobs` are processes of their own and load it.
"""

import faulthandler
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

FRESH = multiprocessing.get_context("spawn")
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    [
        "fastvim.experiments.plan",
        "fastvim.training.run",
        "fastvim.reports.write",
        "fastvim.reports.tensorboard",
        "fastvim_cli.ablate",
    ]
)
# The innermost of these functions on the stack says the phase.
PHASES = {
    "exec_module": "loading",
    "write_atomic": "saving",
    "weights_bytes": "saving",
    "save_state": "saving",
    "write_report": "reporting",
    "write_board": "reporting",
    "evaluate_split": "evaluation",
    "evaluate_finally": "evaluation",
    "picture": "evaluation",
    "step": "training",
    "train_batches": "training",
    "_record": "training",
    "train_run": "starting a run",
    "carry_out": "between runs",
}
# The last line of a stack: of processes of multiprocessing, of workers, and of these starting up.
OUTERMOST = ('"<string>", line 1 in <module>', "in _run_module_as_main", '"<frozen site>"')
# For the workers, which nobody here starts: the first thing that every Python imports.
CUSTOMIZED = """\
import sys
sys.path.insert(0, {here!r})
import killable
killable.traced()
"""


def start(arguments: list[str], context):
    """The command in this folder, in a process that is FRESH or FORKED from the server."""
    here = str(Path(__file__).parent)
    Path("sitecustomize.py").write_text(CUSTOMIZED.format(here=here))
    process = context.Process(target=_command, args=(str(Path.cwd()), arguments))
    process.start()
    return process


def work(pid: int, seconds: float) -> float:
    """Let a process work for `seconds` of a processor, or to its end; what it has had in all.

    Not by the clock, which goes on while a busy machine lets the process wait.
    """
    used = before = _processor_seconds(pid)
    while used < before + seconds and is_alive(pid):
        time.sleep(0.001)
        used = max(used, _processor_seconds(pid))
    return used


def _processor_seconds(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except OSError:  # It has ended.
        return 0.0


def kill(process) -> str | None:
    """Kill the process, wherever it is; the phase it was in, None if it came to its end."""
    phase = where(process.pid)
    process.kill()
    process.join()
    return phase if process.exitcode == -signal.SIGKILL else None


def kill_worker(pid: int) -> str | None:
    """The same of a process that is no child of this one."""
    phase = where(pid)
    return phase if _send(pid, signal.SIGKILL) else None


def workers(parent: int) -> list[int]:
    """The processes that `--jobs` has started."""
    try:
        return list(map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split()))
    except OSError:  # It has ended.
        return []


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def where(pid: int) -> str:
    """The phase that a process is in; it goes on."""
    trace = Path(f"trace-{pid}")
    if not trace.exists():
        return "loading"
    before = trace.stat().st_size
    _send(pid, signal.SIGUSR1)
    stack = ""
    while not any(last in stack for last in OUTERMOST) and is_alive(pid):
        stack = trace.read_bytes()[before:].decode()
    functions = [line.rpartition(" in ")[2] for line in stack.splitlines()]
    return next((PHASES[name] for name in functions if name in PHASES), "before the runs")


def _send(pid: int, number: int) -> bool:
    """Whether the process was there to get the signal."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def traced() -> None:
    """From here on SIGUSR1 makes this process write its stack to a file in this folder."""
    unnamed = Path(f".trace-{os.getpid()}")
    faulthandler.register(signal.SIGUSR1, file=unnamed.open("w"), all_threads=False)
    unnamed.rename(f"trace-{os.getpid()}")  # From here on the signal is understood.


def _command(folder: str, arguments: list[str]) -> None:
    os.chdir(folder)
    traced()
    os.environ["PYTHONPATH"] = folder
    said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.argv = ["fastvim", *arguments]
    from fastvim_cli.main import main

    main(arguments, prog_name="fastvim")
