"""`--jobs N`: several runners side by side, the cores shared out among them."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any

from fastvim.errors import UserError
from fastvim.experiments.runner import (
    Listener,
    Outcome,
    Stopped,
    carry_out,
    every_run,
    failures,
    record_failure,
    taken_over,
)
from fastvim.experiments.store import FINAL, Run, Store
from fastvim.experiments.worker import INTERRUPTED, describe_work

POLL_SECONDS = 0.2
LAST_LINES = 8
# So many workers killed before they had a run, one after the other: the next would be too.
MOST_LOST = 3


@dataclass
class _Worker:
    process: subprocess.Popen
    errors: IO[str]
    # The run it is on and has not saved, to know what died with it.
    current: Run | None = None
    fatal: str | None = None
    ended: bool = False


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_each(jobs: int) -> int:
    """Threads of each of `jobs` runs side by side."""
    return max(1, cores() // jobs)


def carry_out_with_jobs(
    runs: Sequence[Run],
    store: Store,
    listen: Listener,
    should_stop: Callable[[], bool],
    jobs: int,
) -> list[Outcome]:
    """As `carry_out`, by `jobs` processes. A process that dies takes only its run with it.

    Each run has the threads of `threads_each(jobs)` even where fewer runs are left than `jobs`,
    so that one that is taken up again ends with the same bits.
    """
    failed_before = failures(store, runs)
    open_runs, there = [], {}
    for run in every_run(runs, store):
        outcome = _there(run, store)
        if outcome is None:
            open_runs.append(run)
            continue
        there[run.identity] = outcome
        listen({"event": "end", "run": run, "outcome": outcome})
    pool = _Pool(store, open_runs, listen, failed_before)
    if open_runs:
        pool.run(min(jobs, len(open_runs)), threads_each(jobs), should_stop)
    # Every run has an outcome now; this reads them.
    finished = carry_out(runs, store, lambda event: None, should_stop, failed_before)
    return [there.get(o.run.identity, replace(o, reused=False)) for o in finished]


def _there(run: Run, store: Store) -> Outcome | None:
    """The outcome of a run that needs no worker: done before, or taken over from a sibling."""
    record, _ = store.lookup(run)
    if record is not None and record.state in FINAL:
        return Outcome(run, record.state, True, record.directory)
    with store.lock(run) as held:
        return taken_over(run, store) if held else None


class _Pool:
    def __init__(self, store: Store, runs: list[Run], listen: Listener, failed: dict[str, int]):
        self.store, self.runs, self.listen, self.failed_before = store, runs, listen, failed
        self.told: set[str] = set()
        self.lost = 0
        self.events: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()

    def run(self, jobs: int, threads: int, should_stop: Callable[[], bool]) -> None:
        workers = [self._start(threads) for _ in range(jobs)]
        asked, problem, unsaved = False, None, []
        try:
            while not all(worker.ended for worker in workers):
                if (should_stop() or problem is not None) and not asked:
                    asked = True
                    for worker in workers:
                        # SIGINT is ignored by what a script runs in the background.
                        _signal(worker, signal.SIGTERM)
                try:
                    worker, event = self.events.get(timeout=POLL_SECONDS)
                except queue.Empty:
                    continue
                if event is not None:
                    self._handle(worker, event)
                    continue
                worker.ended = True
                code = worker.process.wait()
                if worker.fatal is not None:
                    problem = worker.fatal
                elif asked:
                    unsaved += self._not_saved(worker, code)
                elif code not in (0, INTERRUPTED):
                    if worker.current is not None:
                        self._record_death(worker, code)
                    else:
                        problem = self._hopeless(worker, code)
                    if problem is None:
                        workers.append(self._start(threads))
        finally:
            for worker in workers:
                _signal(worker, signal.SIGKILL)
                worker.process.wait()
                worker.errors.close()
        if problem is not None:
            raise UserError(problem)
        if asked:
            raise Stopped(unsaved)

    def _start(self, threads: int) -> _Worker:
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            # What is installed, not a folder called fastvim where the user happens to be.
            "PYTHONSAFEPATH": "1",
        }
        errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed by run)
        process = subprocess.Popen(
            [sys.executable, "-m", "fastvim.experiments.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            env=environment,
            # Ctrl-C reaches the parent, which passes it on once.
            start_new_session=True,
        )
        worker = _Worker(process, errors)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(describe_work(self.store.output, self.runs, self.failed_before))
            process.stdin.close()
        threading.Thread(target=self._read, args=(worker,), daemon=True).start()
        return worker

    def _read(self, worker: _Worker) -> None:
        for line in worker.process.stdout:
            if line.endswith("\n"):  # Killed in mid-sentence otherwise.
                self.events.put((worker, json.loads(line)))
        self.events.put((worker, None))

    def _handle(self, worker: _Worker, event: dict[str, Any]) -> None:
        if "run" in event:
            event["run"] = self.runs[event["run"]]
        kind = event["event"]
        if kind == "fatal":
            worker.fatal = event["message"]
        elif kind == "begin":
            self.lost = 0
            worker.current = event["run"]
            self.listen(event)
        elif kind == "saved":
            worker.current = None
        elif kind == "end":
            worker.current = None
            self._tell_end(event["run"])
        elif kind != "waiting":
            self.listen(event)

    def _tell_end(self, run: Run) -> None:
        """Tell the end of a run once, though every worker comes upon it."""
        record, _ = self.store.lookup(run)
        if run.identity in self.told or record is None or record.state == "started":
            return
        self.told.add(run.identity)
        message = str(record.result.get("error", ""))
        outcome = Outcome(run, record.state, False, record.directory, message)
        self.listen({"event": "end", "run": run, "outcome": outcome})

    def _record_death(self, worker: _Worker, code: int) -> None:
        """The run that died with its worker failed, unless another worker goes on with it."""
        cause, last = _last_words(worker, code)
        with self.store.lock(worker.current) as held:
            record, _ = self.store.lookup(worker.current)
            if held and record is not None and record.state not in FINAL:
                record_failure(record.directory, f"its process ended ({cause}). {last}".strip())
        self._tell_end(worker.current)

    def _not_saved(self, worker: _Worker, code: int) -> list[str]:
        """Whose state a worker that was asked to stop did not save; it is no failure of the run."""
        if worker.current is None or self.store.state(worker.current) != "interrupted":
            return []
        cause, last = _last_words(worker, code)
        said = f"{worker.current.name} is not saved since its last checkpoint: its process ended"
        return [f"{said} ({cause}). {last}".strip()]

    def _hopeless(self, worker: _Worker, code: int) -> str | None:
        """Of a worker that ended before it had a run: why there is no use in another, if so."""
        self.lost += 1
        if code < 0 and self.lost < MOST_LOST:
            return None
        cause, last = _last_words(worker, code)
        return f"a worker process ended ({cause}): {last or 'no message'}"


def _last_words(worker: _Worker, code: int) -> tuple[str, str]:
    """Why a process ended, and the last lines that it wrote to standard error."""
    worker.errors.seek(0)
    last = "".join(worker.errors.readlines()[-LAST_LINES:]).strip()
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}", last


def _signal(worker: _Worker, number: int) -> None:
    if worker.process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            worker.process.send_signal(number)
