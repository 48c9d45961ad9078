"""How commands print: tables, durations, progress."""

import os
import shlex
import sys
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

# A pipe has no width; tables then are as wide as they need.
PIPE_WIDTH = 200


def console(stderr: bool = False) -> Console:
    """The terminal, or a pipe that is not wrapped at 80 columns."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else PIPE_WIDTH, highlight=False)


def this_command() -> str:
    """The command line, to be typed again."""
    return shlex.join(["fastvim", *sys.argv[1:]])


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table; columns whose name begins with `>` are aligned to the right."""
    result = Table(
        title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for column in columns:
        justify = "right" if column.startswith(">") else "left"
        result.add_column(column.removeprefix(">"), justify=justify, overflow="fold")
    return result


def duration(seconds: float | None) -> str:
    """`12 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds is None:
        return "unknown"
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


class RunProgress:
    """Shows what runners tell: a bar with the time left on a terminal, else a line a run."""

    def __init__(self, total: int, reused: int):
        self._console = console(stderr=True)
        self._total = total
        self._finished = 0
        # Runs of this session; those that were there before say nothing about the time left.
        self._trained = 0
        self._shares: dict[str, float] = {}
        # Where runs of this session began: what an earlier one trained of them says as little.
        self._first: dict[str, float] = {}
        self._waited = False
        self._bar: Progress | None = None
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[finished]}"),
                TextColumn("{task.fields[doing]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
                # A millisecond of the cores that train each time; rich's ten a second are 1 %.
                refresh_per_second=2,
                # Steps differ in length: evaluations, the first one of a run.
                speed_estimate_period=600,
            )
            self._plan = self._bar.add_task(
                "runs", total=max(1, total - reused), doing="", finished=f"0/{total}"
            )

    def __enter__(self) -> "RunProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, message: str) -> None:
        """Print a line above the bar; a command in it stays whole, to be copied."""
        self._console.print(message, markup=False, soft_wrap=True)

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "start":
            self._start(event)
        elif kind == "step":
            self._step(event)
        elif kind == "end":
            self._end(event["run"], event["outcome"])
        elif kind == "note":
            self.say(f"{event['run'].name}: {event['message']}")
        elif kind == "problem":
            self.say(event["message"])
        elif kind == "waiting" and not self._waited:
            self._waited = True
            names = ", ".join(run.name for run in event["runs"])
            self.say(f"waiting for another process that is training {names}")

    def _start(self, event: dict[str, Any]) -> None:
        identity, first = event["run"].identity, event["step"] / max(1, event["steps"])
        if self._bar is not None:
            # Given to update, another total would have it forget the speed. A run begins again
            # where its process died.
            self._bar.tasks[self._plan].total += self._first.get(identity, 0.0) - first
        self._first[identity] = self._shares[identity] = first

    def _step(self, event: dict[str, Any]) -> None:
        run = event["run"]
        self._shares[run.identity] = event["step"] / max(1, event["steps"])
        self._update(f"{run.name}  step {event['step']}/{event['steps']}  loss {event['loss']:.3f}")

    def _end(self, run: Any, outcome: Any) -> None:
        self._shares.pop(run.identity, None)
        self._finished += 1
        self._trained += not outcome.reused
        again = " (already there)" if outcome.reused else ""
        if outcome.adopted_from is not None:
            again = f" (adopted from {os.path.relpath(outcome.adopted_from)})"
        detail = f": {outcome.message.splitlines()[0]}" if outcome.message else ""
        self.say(f"[{self._finished}/{self._total}] {run.name} {outcome.state}{again}{detail}")
        self._update("")

    def _update(self, doing: str) -> None:
        if self._bar is not None:
            done = self._trained + sum(self._shares.values()) - sum(self._first.values())
            finished = f"{self._finished}/{self._total}"
            self._bar.update(self._plan, completed=done, doing=doing, finished=finished)
