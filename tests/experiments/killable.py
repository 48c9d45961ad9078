"""`fastvim` in processes to be killed, which say where they are in that moment.

Loading torch takes longer than the small runs of the fault test. A process forked from a server
that has loaded it trains after a fraction of a second, so that a hundred are killed in minutes.
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
    "step": "training",
    "train_batches": "training",
    "_record": "training",
    "train_run": "starting a run",
}


def start(arguments: list[str], context):
    """The command in this folder, in a process that is FRESH or FORKED from the server."""
    process = context.Process(target=_command, args=(str(Path.cwd()), arguments))
    process.start()
    return process


def work(process, seconds: float) -> float:
    """Let the process work for `seconds` of a processor, or to its end; what it has had in all.

    Not by the clock, which goes on while a busy machine lets the process wait.
    """
    used = before = _processor_seconds(process)
    while used < before + seconds and process.exitcode is None:
        time.sleep(0.001)
        used = max(used, _processor_seconds(process))
    return used


def _processor_seconds(process) -> float:
    try:
        return int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[0]) / 1e9
    except OSError:  # It has ended.
        process.join()
        return 0.0


def kill(process) -> str | None:
    """Kill the process, wherever it is; the phase it was in, None if it came to its end."""
    trace = _trace(process.pid)
    stack = ""
    if trace.exists():
        os.kill(process.pid, signal.SIGUSR1)
        # The outermost function is the last to be written.
        while " in <module>" not in stack and process.exitcode is None:
            stack = trace.read_text()
    process.kill()
    process.join()
    trace.unlink(missing_ok=True)
    if process.exitcode != -signal.SIGKILL:
        return None
    functions = [line.rpartition(" in ")[2] for line in stack.splitlines()]
    return next((PHASES[name] for name in functions if name in PHASES), "before the runs")


def _trace(process: int) -> Path:
    return Path(f"trace-{process}")


def _command(folder: str, arguments: list[str]) -> None:
    os.chdir(folder)
    unnamed = Path(f".trace-{os.getpid()}")
    trace = unnamed.open("w")
    faulthandler.register(signal.SIGUSR1, file=trace, all_threads=False)
    unnamed.rename(_trace(os.getpid()))  # From here on the signal is understood.
    said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.argv = ["fastvim", *arguments]
    from fastvim_cli.main import main

    main(arguments, prog_name="fastvim")
