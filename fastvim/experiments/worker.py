"""A runner in a process of its own: `python -m fastvim.experiments.worker`, for `--jobs`.

Takes a JSON description of the work on standard input and writes what happens, a JSON object a
line, to standard output. Stops like a runner when its parent is gone.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from fastvim.errors import UserError
from fastvim.experiments.runner import Stopped, StopRequest, carry_out
from fastvim.experiments.schema import RunConfig
from fastvim.experiments.store import Run, Store

SECONDS_BETWEEN_STEPS = 0.2
INTERRUPTED = 130


def describe_work(output: Path, runs: list[Run], failed_before: dict[str, int]) -> str:
    """What `main` reads."""
    return json.dumps(
        {
            "output": str(output),
            "runs": [_described(run) for run in runs],
            "failed_before": failed_before,
            "parent": os.getpid(),
        }
    )


def _described(run: Run) -> dict[str, Any]:
    return {
        "variant": run.variant,
        "seed": run.seed,
        "identity": run.identity,
        "starts_others": run.starts_others,
        "config": run.config.nested(),
        "pretraining": None if run.pretraining is None else _described(run.pretraining),
    }


def _run(described: dict[str, Any]) -> Run:
    return Run(
        described["variant"],
        described["seed"],
        RunConfig.from_nested(described["config"]),
        described["identity"],
        None if described["pretraining"] is None else _run(described["pretraining"]),
        described["starts_others"],
    )


def main() -> int:
    """Carry out the work on standard input; 0, 130 when stopped, 2 for a user's error."""
    # Whatever a library prints must not get between the events.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    work = json.load(sys.stdin)
    runs = [_run(item) for item in work["runs"]]
    stop = StopRequest()
    tell = _Teller(events, runs)

    def should_stop() -> bool:
        return stop() or tell.unheard or os.getppid() != work["parent"]

    try:
        with stop.listening(lambda: None):
            carry_out(runs, Store(Path(work["output"])), tell, should_stop, work["failed_before"])
    except (Stopped, KeyboardInterrupt):
        return INTERRUPTED
    except UserError as error:
        tell({"event": "fatal", "message": str(error)})
        return 2
    return 0


class _Teller:
    """Writes events with the number of their run, steps only now and then.

    `unheard`: nobody reads them any more.
    """

    def __init__(self, stream: TextIO, runs: list[Run]):
        self.unheard = False
        self._stream = stream
        self._number = {run.identity: number for number, run in enumerate(runs)}
        self._last_step = 0.0

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] in ("waiting", "end"):
            # The parent looks at the directories itself when an end is told.
            event = {key: event[key] for key in ("event", "run") if key in event}
        if event["event"] == "step":
            now = time.monotonic()
            if now - self._last_step < SECONDS_BETWEEN_STEPS:
                return
            self._last_step = now
        if "run" in event:
            number = self._number.get(event["run"].identity)
            if number is None:  # A pretraining that had been finished before: no work of ours.
                return
            event = {**event, "run": number}
        try:
            _write(self._stream, event)
        except BrokenPipeError:  # No fault of the run that tells: it is to stop, not to fail.
            self.unheard = True


def _write(stream: TextIO, event: dict[str, Any]) -> None:
    stream.write(json.dumps(event, default=str) + "\n")
    stream.flush()


if __name__ == "__main__":
    sys.exit(main())
