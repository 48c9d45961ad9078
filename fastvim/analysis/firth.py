"""Logistic regression with Firth's penalty: finite even where a line separates the outcomes.

    l*(b) = sum_i y_i x_i b - log(1 + exp(x_i b)) + log det(X' W X) / 2,   W = diag(p (1 - p))

Few runs on a grid are often separated perfectly, where plain maximum likelihood has no finite
answer. The penalty (Firth 1993, "Bias reduction of maximum likelihood estimates") mends that, and
intervals come from the profile of l* (Heinze and Schemper 2002, "A solution to the problem of
separation in logistic regression").
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

# Coefficients of standardised columns are not looked for beyond this.
FARTHEST = 60.0


@dataclass(frozen=True)
class LogisticFit:
    """`intercept`, and a coefficient and its interval (low, high) for each column of X.

    An end that is infinite was not found: the data do not bound the coefficient on that side.
    """

    intercept: float
    coefficients: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]


def firth_logistic(x: np.ndarray, y: np.ndarray, confidence: float = 0.95) -> LogisticFit:
    """Fit P(y = 1) = 1 / (1 + exp(-intercept - x b)).

    x: (n, columns), each with at least two values; y: (n,) of 0 and 1, with both. Rows count as
    independent.
    """
    centre, scale = x.mean(0), x.std(0)
    design = np.column_stack([np.ones(len(x)), (x - centre) / scale])
    best = _maximise(design, y, np.zeros(design.shape[1]))
    top = -_negative(best, design, y)[0]
    drop = stats.chi2.ppf(confidence, 1) / 2
    intervals = [
        tuple(sorted(_end(design, y, best, k, top - drop, side) / scale[k - 1] for side in (-1, 1)))
        for k in range(1, design.shape[1])
    ]
    coefficients = best[1:] / scale
    return LogisticFit(
        float(best[0] - coefficients @ centre), tuple(coefficients), tuple(intervals)
    )


def _negative(b: np.ndarray, design: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """Minus the penalised log-likelihood, and its gradient."""
    eta = design @ b
    p = special.expit(eta)
    weights = p * (1 - p)
    information = (design.T * weights) @ design
    sign, logdet = np.linalg.slogdet(information)
    if sign <= 0 or logdet < -200:
        # Every probability is 0 or 1: as bad as can be, with a slope back towards zero.
        return 1e6 + float(b @ b), 2 * b
    likelihood = y @ eta - np.logaddexp(0, eta).sum() + logdet / 2
    leverage = weights * np.sum(design * np.linalg.solve(information, design.T).T, axis=1)
    return -float(likelihood), -design.T @ (y - p + leverage * (0.5 - p))


def _maximise(
    design: np.ndarray, y: np.ndarray, start: np.ndarray, held: int | None = None
) -> np.ndarray:
    """The best coefficients from `start`, that of column `held` staying as it is."""
    free = np.arange(design.shape[1]) != held

    def objective(part: np.ndarray) -> tuple[float, np.ndarray]:
        b = start.copy()
        b[free] = part
        value, gradient = _negative(b, design, y)
        return value, gradient[free]

    found = optimize.minimize(objective, start[free], jac=True, method="BFGS")
    b = start.copy()
    b[free] = found.x
    return b


def _end(
    design: np.ndarray, y: np.ndarray, best: np.ndarray, column: int, level: float, side: int
) -> float:
    """Where the profile of a column's coefficient falls to `level`, below (-1) or above (1)."""
    last = best.copy()

    def above(value: float) -> float:
        # Far out there can be a second maximum, on the estimate's own line, not reached from the
        # last.
        factor = np.clip(value / best[column], -100, 100) if best[column] else 1.0
        starts = last.copy(), best * factor
        for start in starts:
            start[column] = value
        found = [_maximise(design, y, start, held=column) for start in starts]
        last[:] = min(found, key=lambda b: _negative(b, design, y)[0])
        return -_negative(last, design, y)[0] - level

    step, inner = 0.5, best[column]
    while (outer := best[column] + side * step) and abs(outer) < FARTHEST:
        if above(outer) < 0:
            return float(optimize.brentq(above, inner, outer, xtol=1e-4))
        inner, step = outer, 2 * step
    return side * math.inf
