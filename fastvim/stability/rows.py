"""Rows of a table, each some named numbers, gathered into curves over a step."""

from __future__ import annotations

import math
from bisect import bisect_right

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
EPOCH_RANK = STEP_NAMES.index(EPOCH_NAMES[0])
CLOCK_NAMES = ("wall time", "walltime", "time", "timestamp", "_timestamp", "_runtime", "datetime")

Curves = dict[str, tuple[list[float], list[float]]]


class Rows:
    """Gathers rows; `curves` maps a name to (steps, values) in the order of the rows.

    The step is the best-named number of the row; only where no row of a curve has one so far, the
    row's place. One that starts over while the epoch goes up (a batch number) is counted on, so
    that it is no resume; whether it does, each curve says for itself, for validation counts its own
    batches. What counts on is kept by epoch: a resumed run that goes back to one is placed there.
    """

    def __init__(self):
        self.curves: Curves = {}
        self.count = 0
        self.plans: dict[tuple[str, ...], tuple[str | None, str | None, list[str], int]] = {}
        # Each curve's best-named step so far, as the place of the name among STEP_NAMES.
        self.ranks: dict[str, int] = {}
        self.epoch = math.nan
        self.curve_epochs: dict[str, float] = {}
        # The epochs whose batch number started over, in order, and the steps before each.
        self.epochs: list[float] = []
        self.before: list[float] = []

    def add(self, row: dict[str, float]) -> list[str]:
        """Take a row of numbers; the names of those that were not taken, for want of a step.

        It is NaN or infinite, or the row lacks the number that the curve counted its steps by:
        what else it has, an epoch or a place, would lie before all of them, as after a resume.
        """
        names = tuple(row)
        plan = self.plans.get(names)
        if plan is None:
            plan = self.plans[names] = _plan(names)
        step_name, epoch_name, tags, rank = plan
        step = row[step_name] if step_name is not None else float(self.count)
        self.count += 1
        if not math.isfinite(step):
            return tags
        lost = [tag for tag in tags if rank > self.ranks.get(tag, rank)]
        if lost:
            tags = [tag for tag in tags if tag not in lost]
        if epoch_name is not None:
            self.epoch = row[epoch_name]
        # An epoch that is the step itself, or the row's place, does not start over; and only a row
        # that has its epoch tells one that does from a resume.
        dated = tags if epoch_name is not None else []
        before = self._place(step, dated) if rank < EPOCH_RANK else 0.0
        for tag in tags:
            curve = self.curves.get(tag)
            if curve is None:
                curve = self.curves[tag] = ([], [])
            self.ranks[tag] = rank
            self.curve_epochs[tag] = self.epoch
            curve[0].append(step + before)
            curve[1].append(row[tag])
        return lost

    def _place(self, step: float, tags: list[str]) -> float:
        """How many steps lie before the batches of this epoch, which may begin in these curves."""
        at = bisect_right(self.epochs, self.epoch)
        before = known = self.before[at - 1] if at else 0.0
        for tag in tags:
            if tag in self.curves and self.epoch > self.curve_epochs[tag]:
                last = self.curves[tag][0][-1]
                if step + before < last:
                    before = last + 1 - step
        if before != known:
            self.epochs.insert(at, self.epoch)
            self.before.insert(at, before)
        return before


def _plan(names: tuple[str, ...]) -> tuple[str | None, str | None, list[str], int]:
    """Which names are the step, the epoch, and curves; and the place of the step's name."""
    plain = {name: name.rpartition("/")[2].strip().lower() for name in names}
    step = _first(plain, STEP_NAMES)
    rank = len(STEP_NAMES) if step is None else STEP_NAMES.index(plain[step])
    epoch = _first(plain, EPOCH_NAMES)
    tags = [n for n in names if n not in (step, epoch) and plain[n] not in CLOCK_NAMES]
    return step, epoch if epoch != step else None, tags, rank


def _first(plain: dict[str, str], wanted: tuple[str, ...]) -> str | None:
    for name in wanted:
        for given, lowered in plain.items():
            if lowered == name:
                return given
    return None
