"""Which recorded quantity left its own past first: what comes before a loss spike, and why.

A quantity is a row of positive magnitudes (a root mean square, a maximum, a norm) over steps. Its
past is followed by a line in log space; from there on it is judged by how many robust deviations
it stands above the line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

# Steps before an episode's start that are searched for what came before it.
LEAD = 16
# Steps of the past that a line is worth drawing through.
LEAST_PAST = 8
# A quantity has left its past above this many robust deviations.
THRESHOLD = 6.0
# ... and this much above what its past led to expect: less explains no spike.
LEAST_GROWTH = 1.5
# A quantity that hardly moved is not judged by less than this (2 % of its size).
LEAST_SIGMA = 0.02
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Quantity:
    """A recorded row: `name` in words, `statistic` (or ""), and the block it is of (or None)."""

    name: str
    statistic: str = ""
    block: int | None = None

    def __str__(self) -> str:
        place = "" if self.block is None else f"block {self.block}, "
        return place + self.name + (f" ({self.statistic})" if self.statistic else "")


@dataclass(frozen=True)
class Departure:
    """A quantity that left its past at `step`, `steps_before` the episode's start.

    `growth` is its largest number from there to the episode's start (after it, its first) over
    what its past led to expect, `height` the same in robust deviations of the logarithm; both None
    where it was NaN or infinite all along.
    """

    quantity: Quantity
    step: int
    steps_before: int
    growth: float | None
    height: float | None

    def to_dict(self) -> dict:
        """Plain values for JSON, with the sentence."""
        return {**asdict(self), "sentence": str(self)}

    def __str__(self) -> str:
        if self.growth is None:
            return f"{self.quantity}, left the finite range {_before(self.steps_before)}"
        since = ", from " if self.steps_before > 0 else " "
        return f"{self.quantity}, grew {self.growth:.3g}-fold{since}{_before(self.steps_before)}"


def departures(
    steps: Sequence[int], values: np.ndarray, quantities: Sequence[Quantity], start: int
) -> list[Departure]:
    """What left its past before and in an episode that starts at step `start`, the first first.

    steps (n,) ascending up to the step at which the episode was found, values (n, k) a column a
    quantity. The past is what lies LEAD steps or more before `start`, at least LEAST_PAST and at
    least half of the steps before it; with fewer there is nothing to compare with and the list is
    empty. A departure is the start of the run of values above THRESHOLD that holds the highest.
    Among those of one step the furthest comes first; rows that end in NaN or infinity count as
    infinitely far.
    """
    steps = np.asarray(steps)
    before = int(np.searchsorted(steps, start))
    past = max(int(np.searchsorted(steps, start - LEAD)), before // 2, min(LEAST_PAST, before))
    if past < LEAST_PAST:
        return []
    found = []
    for column, quantity in zip(np.asarray(values, dtype=np.float64).T, quantities, strict=True):
        expected, sigma = _line(steps, column, past)
        recent = column[past:]
        with np.errstate(divide="ignore", invalid="ignore"):
            excess = np.log(recent) - expected[past:]
        height = np.where(np.isfinite(recent), excess / sigma, np.inf)
        height[excess < np.log(LEAST_GROWTH)] = 0.0
        if not len(height) or np.isnan(sigma) or height.max() <= THRESHOLD:
            continue
        first = last = int(height.argmax())
        while first and height[first - 1] > THRESHOLD:
            first -= 1
        while last + 1 < len(height) and height[last + 1] > THRESHOLD:
            last += 1
        step = int(steps[past + first])
        # How far it had come when the loss followed: what follows the loss is no cause.
        until = max(int(np.searchsorted(steps, start, side="right")) - past, first + 1)
        numbers = height[first : min(last + 1, until)]
        largest = numbers[np.isfinite(numbers)].max(initial=-np.inf)
        if np.isfinite(largest):
            growth = float(np.exp(min(largest * sigma, 700.0)))
            found.append(Departure(quantity, step, int(start) - step, growth, float(largest)))
        else:
            found.append(Departure(quantity, step, int(start) - step, None, None))
    return sorted(found, key=lambda d: (d.step, -np.inf if d.height is None else -d.height))


def first_nonfinite(
    steps: Sequence[int], values: np.ndarray, quantities: Sequence[Quantity], start: int
) -> Departure | None:
    """The quantity that first left the finite range for good, or None.

    Of several in one step it is the first column, so columns must be in the order in which a step
    computes them. What came back (a gradient that a loss scaler skipped) does not count.
    """
    bad = ~np.isfinite(np.asarray(values, dtype=np.float64))
    if not len(bad) or not bad[-1].any():
        return None
    # Column -> number of steps at the end that are all no number.
    tail = np.where(bad.all(axis=0), len(bad), bad[::-1].argmin(axis=0))
    column = int(tail.argmax())
    step = int(steps[len(steps) - tail[column]])
    return Departure(quantities[column], step, int(start) - step, None, None)


def summarise(ranked: Sequence[Departure], broken: Departure | None) -> str | None:
    """One sentence: the first block that left its past (or the first row at all, but for the loss,
    whose episode it is), and what first left the finite range, if anything did."""
    inside = [departure for departure in ranked if departure.quantity.block is not None]
    others = [departure for departure in ranked if departure.quantity.name != "loss"]
    first = next(iter([*inside, *others]), None)
    if broken is None:
        return None if first is None else str(first)
    if first is None or first.step >= broken.step:
        return str(broken)
    return (
        f"{first}; first out of the finite range: {broken.quantity}, {_before(broken.steps_before)}"
    )


def _line(steps: np.ndarray, column: np.ndarray, past: int) -> tuple[np.ndarray, float]:
    """The expected log of every value, and the robust deviation of the past around it.

    Tukey's resistant line: through the medians of the first and the last third.
    """
    usable = np.isfinite(column[:past]) & (column[:past] > 0)
    if usable.sum() < LEAST_PAST:
        return np.zeros(len(column)), np.nan
    x, y = steps[:past][usable].astype(float), np.log(column[:past][usable])
    third = max(1, len(x) // 3)
    slope = (np.median(y[-third:]) - np.median(y[:third])) / (
        np.median(x[-third:]) - np.median(x[:third])
    )
    level = np.median(y - slope * x)
    sigma = 1.4826 * np.median(np.abs(y - slope * x - level))
    return level + slope * steps, max(float(sigma), LEAST_SIGMA)


def _before(steps: int) -> str:
    if steps == 0:
        return "in the step of the loss"
    number = _NUMBERS[abs(steps)] if abs(steps) < len(_NUMBERS) else str(abs(steps))
    plural = "s" * (abs(steps) != 1)
    return f"{number} step{plural} {'before' if steps > 0 else 'after'} the loss"
