"""Carry out the runs of a plan, one after the other, beside other processes that do the same.

Several runners may work on one output folder: each takes a run that nobody holds, and none
returns before every run has an outcome.
"""

import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvim.errors import UserError
from fastvim.experiments.forced import VARIABLE, other_backend
from fastvim.experiments.store import FINAL, FORMAT, Run, RunRecord, Store
from fastvim.files import UNWRITABLE, write_atomic

WAIT_SECONDS = 1.0


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `reused`: it had been done before, in the output folder `adopted_from`
    where that is another one; `message`: why it failed."""

    run: Run
    state: str
    reused: bool
    directory: Path
    message: str = ""
    adopted_from: Path | None = None


# Receives what happens: begin, step, evaluation, note (from training), saved (when stopped), end,
# waiting, problem.
Listener = Callable[[dict[str, Any]], None]


class Stopped(Exception):
    """Asked to stop; what was running has saved its state. `unsaved` says of which run it has not,
    and why, a sentence each."""

    def __init__(self, unsaved: Sequence[str] = ()):
        super().__init__()
        self.unsaved = tuple(unsaved)


class StopRequest:
    """True once SIGINT or SIGTERM came; a SIGINT after that ends the process at once.

    Further SIGTERMs count for nothing: a batch system sends one to every process of a job, and a
    parent asks its workers to stop by another.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """What a process that was stopped by this signal exits with, SIGINT where none is known."""
        return 128 + (self.signal or signal.SIGINT)

    @contextmanager
    def listening(self, notify: Callable[[], None]) -> Iterator["StopRequest"]:
        """Listen inside the `with` block; `notify` is called once at the first signal.

        In a thread of its own: rich would print a line that the signal interrupts once more.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        notice = threading.Thread(target=notify)

        def handle(number: int, frame: object) -> None:
            if self.signal is None:
                self.signal = number
                notice.start()
            elif number == signal.SIGINT:
                raise KeyboardInterrupt

        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, handle)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if notice.ident is not None:
                notice.join()


def failures(store: Store, runs: Iterable[Run]) -> dict[str, int]:
    """The failed runs as they are now: identity -> when their result was written (ns).

    A runner tries these once more, but not those that fail after it began.
    """
    found = {}
    for run in runs:
        record, _ = store.lookup(run)
        if record is not None and record.state == "failed":
            found[run.identity] = _written(record)
    return found


def every_run(runs: Iterable[Run], store: Store) -> list[Run]:
    """`runs`, and before the first that needs it each pretraining that is still to be used.

    Raises UserError where one is done, but not on the backend that FASTVIM_KERNELS forces.
    """
    found: dict[str, Run] = {}
    for run in runs:
        if run.pretraining is not None and store.state(run) not in FINAL:
            found.setdefault(run.pretraining.identity, run.pretraining)
        found.setdefault(run.identity, run)
    for run in found.values():
        record, _ = store.lookup(run)
        if record is None or record.state not in FINAL:
            continue
        backend = other_backend(record.result)
        if backend is not None:
            raise UserError(
                f"{record.directory} was computed by the backend {backend}, and {VARIABLE} forces "
                f"{os.environ[VARIABLE]}: give --output another folder, or unset {VARIABLE}"
            )
    return list(found.values())


def to_train(runs: Iterable[Run], store: Store) -> list[Run]:
    """Those of `runs` that are neither done nor can be taken over from a sibling folder."""
    return [run for run in runs if store.state(run) not in FINAL and store.elsewhere(run) is None]


def taken_over(run: Run, store: Store) -> Outcome | None:
    """The outcome of `run` as a sibling folder has it, from now on here; call with the lock held.
    None where no sibling has it."""
    record = store.adopt(run)
    if record is None:
        return None
    return Outcome(run, record.state, True, record.directory, adopted_from=record.adopted_from)


def carry_out(
    runs: Sequence[Run],
    store: Store,
    listen: Listener,
    should_stop: Callable[[], bool],
    failed_before: dict[str, int] | None = None,
) -> list[Outcome]:
    """Bring every run to an outcome, and what it starts from; those of one identity share it.

    A run that fails is recorded, with its log, and the others go on. Raises Stopped when
    `should_stop` says so (after the step, with the state saved) and UserError when the output
    folder cannot be written.
    """
    if failed_before is None:
        failed_before = failures(store, runs)
    pending = every_run(runs, store)
    outcomes: dict[str, Outcome] = {}
    reported: set[str] = set()
    while pending:
        waiting = []
        for run in pending:
            if should_stop():
                raise Stopped
            outcome = _attempt(run, store, listen, should_stop, failed_before, reported)
            if outcome is None:
                waiting.append(run)
                continue
            outcomes[run.identity] = outcome
            listen({"event": "end", "run": run, "outcome": outcome})
        if len(waiting) == len(pending):
            listen({"event": "waiting", "runs": waiting})
            time.sleep(WAIT_SECONDS)
        pending = waiting
    return [outcomes[run.identity] for run in runs]


def _attempt(run, store, listen, should_stop, failed_before, reported) -> Outcome | None:
    """Find or make the result of `run`; None while another process holds it."""
    outcome = _known(run, store, listen, failed_before, reported)
    if outcome is not None:
        return outcome
    with store.lock(run) as held:
        if not held:
            return None
        # It may have been finished between the look and the lock.
        outcome = _known(run, store, listen, failed_before, reported)
        if outcome is not None:
            return outcome
        outcome = taken_over(run, store)
        if outcome is not None:
            return outcome
        start = None
        if run.pretraining is not None:
            start = _known(run.pretraining, store, listen, failed_before, reported)
            if start is None:
                return None
        directory = store.open(run)
        if start is not None and start.state != "done":
            message = f"the run it starts from, {start.run.name}, {start.state}: {start.directory}"
            record_failure(directory, message)
            return Outcome(run, "failed", False, directory, message)
        listen({"event": "begin", "run": run, "directory": directory})
        return _train(run, directory, start, listen, should_stop)


def _known(run, store, listen, failed_before, reported) -> Outcome | None:
    record, problems = store.lookup(run)
    for problem in problems:
        if problem not in reported:
            reported.add(problem)
            listen({"event": "problem", "message": f"skipped: {problem}"})
    if record is None:
        return None
    if record.state in FINAL:
        return Outcome(run, record.state, True, record.directory)
    if record.state == "failed" and failed_before.get(run.identity) != _written(record):
        message = str(record.result.get("error", "failed in another process"))
        return Outcome(run, "failed", False, record.directory, message)
    return None


def _written(record: RunRecord) -> int:
    try:
        return (record.directory / "result.json").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _train(
    run: Run, directory: Path, start: Outcome | None, listen: Listener, should_stop
) -> Outcome:
    from fastvim.training.run import Interrupted, train_run

    (directory / "result.json").unlink(missing_ok=True)
    sections = run.config.nested()
    try:
        result = train_run(
            task=run.config.task,
            data=run.config.data,
            model=sections["model"],
            masking=run.config.masking,
            pretrained=sections.get("pretrained"),
            pretrained_in=None if start is None else start.directory,
            training=run.config.training,
            seed=run.seed,
            directory=directory,
            report=lambda event: listen({**event, "run": run}),
            should_stop=should_stop,
        )
    except Interrupted:
        # Told while signals are still listened to: whatever ends the process now loses nothing.
        listen({"event": "saved", "run": run})
        raise Stopped from None
    except Exception as error:
        if _unwritable(error):
            raise
        return _record_failure(run, directory, error)
    return Outcome(run, result["status"], False, directory)


def _unwritable(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            return True
        error = error.__cause__
    return False


def _record_failure(run: Run, directory: Path, error: Exception) -> Outcome:
    # What is wrong with the user's settings needs no traceback.
    trace = "" if isinstance(error, UserError) else traceback.format_exc()
    message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    log = directory / "log.txt"
    earlier = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    write_atomic(log, f"{earlier}{trace or message}\n")
    record_failure(directory, message)
    return Outcome(run, "failed", False, directory, message)


def record_failure(directory: Path, message: str) -> None:
    """Write the result.json of a run that failed."""
    content = {"format": FORMAT, "status": "failed", "error": message[:2000]}
    write_atomic(directory / "result.json", json.dumps(content, indent=2) + "\n")
