"""Where training turns unstable as width, depth and learning rate grow: a fitted boundary.

    P(unstable) = 1 / (1 + exp(-(a + b_width log2 width + b_depth log2 depth + b_lr log2 lr)))

Its half is the boundary. Instability follows width (depth) where the interval of its coefficient
lies above zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastvim.analysis.firth import firth_logistic

NAMES = ("width", "depth", "lr")


@dataclass(frozen=True)
class Trial:
    """A run: `width`, `depth` and `lr` of it, and whether it was unstable."""

    width: int
    depth: int
    lr: float
    unstable: bool


@dataclass(frozen=True)
class Boundary:
    """Coefficients a doubling, in log-odds, of what varied, with their 95 % intervals."""

    intercept: float
    coefficients: dict[str, float]
    intervals: dict[str, tuple[float, float]]

    def follows(self, name: str) -> str:
        """`yes`, `no` (it falls as this grows), `unresolved`, or `not varied`."""
        if name not in self.coefficients:
            return "not varied"
        low, high = self.intervals[name]
        return "yes" if low > 0 else "no" if high < 0 else "unresolved"

    def critical_lr(self, width: int, depth: int) -> float | None:
        """The rate at which half of the runs are unstable; None where rates do not matter."""
        slope = self.coefficients.get("lr", 0.0)
        if slope <= 0:
            return None
        values = {"width": math.log2(width), "depth": math.log2(depth)}
        rest = self.intercept + sum(
            self.coefficients[name] * value
            for name, value in values.items()
            if name in self.coefficients
        )
        exponent = -rest / slope
        return 2**exponent if abs(exponent) < 100 else None


def fit_boundary(trials: Sequence[Trial]) -> Boundary | None:
    """The boundary; None where all runs are unstable, or none is."""
    y = np.array([float(trial.unstable) for trial in trials])
    if not len(y) or y.min() == y.max():
        return None
    columns = {name: np.log2([getattr(trial, name) for trial in trials]) for name in NAMES}
    columns = {name: column for name, column in columns.items() if np.ptp(column) > 0}
    if not columns:
        return None
    fit = firth_logistic(np.column_stack(list(columns.values())), y)
    return Boundary(
        fit.intercept,
        dict(zip(columns, fit.coefficients, strict=True)),
        dict(zip(columns, fit.intervals, strict=True)),
    )
