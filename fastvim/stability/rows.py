"""Rows of a table, each some named numbers, gathered into curves over a step."""

from __future__ import annotations

import math

# Names of what counts, the best first; compared without case and after the last slash.
STEP_NAMES = (
    "global_step",
    "_step",
    "step",
    "steps",
    "iteration",
    "iter",
    "iterations",
    "batch",
    "epoch",
    "_epoch",
    "epochs",
)
EPOCH_NAMES = ("epoch", "_epoch", "epochs")
CLOCK_NAMES = ("wall time", "walltime", "time", "timestamp", "_timestamp", "_runtime", "datetime")

Curves = dict[str, tuple[list[float], list[float]]]


class Rows:
    """Gathers rows; `curves` maps a name to (steps, values) in the order of the rows.

    The step is the best-named number of the row, or the row's place where there is none. One that
    starts over while the epoch goes up (a batch number) is counted on, so that it is no resume.
    """

    def __init__(self):
        self.curves: Curves = {}
        self.count = 0
        self.plans: dict[tuple[str, ...], tuple[str | None, str | None, list[str]]] = {}
        self.offset = 0.0
        self.last_step = -math.inf
        self.last_epoch = math.nan

    def add(self, row: dict[str, float]) -> bool:
        """Take a row of numbers; False if its step is NaN or infinite, and it was not taken."""
        names = tuple(row)
        plan = self.plans.get(names)
        if plan is None:
            plan = self.plans[names] = _plan(names)
        step_name, epoch_name, tags = plan
        step = row[step_name] if step_name is not None else float(self.count)
        self.count += 1
        if not math.isfinite(step):
            return False
        epoch = row[epoch_name] if epoch_name is not None else math.nan
        if step < self.last_step and epoch > self.last_epoch:
            self.offset += self.last_step + 1 - step
        self.last_step, self.last_epoch = step, epoch
        for tag in tags:
            curve = self.curves.get(tag)
            if curve is None:
                curve = self.curves[tag] = ([], [])
            curve[0].append(step + self.offset)
            curve[1].append(row[tag])
        return True


def _plan(names: tuple[str, ...]) -> tuple[str | None, str | None, list[str]]:
    """Which names are the step, the epoch, and curves."""
    plain = {name: name.rpartition("/")[2].strip().lower() for name in names}
    step = _first(plain, STEP_NAMES)
    epoch = _first(plain, EPOCH_NAMES)
    tags = [n for n in names if n not in (step, epoch) and plain[n] not in CLOCK_NAMES]
    return step, epoch if epoch != step else None, tags


def _first(plain: dict[str, str], wanted: tuple[str, ...]) -> str | None:
    for name in wanted:
        for given, lowered in plain.items():
            if lowered == name:
                return given
    return None
