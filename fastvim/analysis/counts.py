"""Do the runs of one variant have more loss spikes than those of another?"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Real

import numpy as np
from scipy import special, stats

from fastvim.errors import UserError


@dataclass(frozen=True)
class CountComparison:
    """Events per run of two variants. `ratio` is variant over baseline, None without events in
    the baseline; an `interval` end of None is no bound. `p_value` is the larger of the other two.
    """

    variant: str
    baseline: str
    variant_runs: int
    baseline_runs: int
    variant_total: int
    baseline_total: int
    ratio: float | None
    interval: tuple[float, float | None] | None
    exact_p: float | None
    dispersion: float | None
    dispersion_p: float | None
    p_value: float | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        values = asdict(self)
        values["interval"] = None if self.interval is None else list(self.interval)
        values["notes"] = list(self.notes)
        return values


def compare_counts(
    baseline: Mapping[int, int | None],
    variant: Mapping[int, int | None],
    *,
    baseline_name: str = "baseline",
    variant_name: str = "variant",
    confidence: float = 0.95,
) -> CountComparison:
    """Compare counts of events (seed -> count in that run, runs of equal length; None: unknown).

    Two tests must agree, so the larger p-value counts:
    exact: given the total, the variant's share is Binomial(total, its share of the runs) if both
    have the same Poisson rate (Przyborowski and Wilenski 1940); right for low counts, but it
    takes every spike for independent.
    dispersion: spikes come in bursts, and one unlucky run is not evidence about a variant. The
    spread between variants is divided by that between runs within a variant, which is taken to
    be at least the Poisson variance (the common rate), and referred to F(1, runs - 2); the
    dispersion is the ratio of the two variances, as in quasi-Poisson regression (McCullagh and
    Nelder 1989, section 6.2). It needs two runs a variant: with fewer there is no p-value.
    The interval of the ratio is Clopper and Pearson's, counts divided by the dispersion.
    Raises UserError on a negative or fractional count.
    """
    base = _counts(baseline, baseline_name)
    other = _counts(variant, variant_name)
    x, y, n_x, n_y = int(other.sum()), int(base.sum()), len(other), len(base)
    notes: list[str] = []
    exact = dispersion = dispersion_p = ratio = interval = None
    if n_x and n_y:
        if x + y == 0:
            notes.append("no event in any run: the variants cannot be told apart")
            exact = 1.0
        else:
            exact = float(stats.binomtest(x, x + y, n_x / (n_x + n_y)).pvalue)
        ratio = (x / n_x) / (y / n_y) if y else None
    else:
        notes.append("no counted run of one of the variants: nothing can be compared")
    if n_x >= 2 and n_y >= 2:
        dispersion, dispersion_p = _dispersion_test(other, base)
    elif n_x and n_y:
        notes.append(
            "fewer than two runs of a variant: one run's burst cannot be told from a higher rate, "
            "so no p-value is given"
        )
    if dispersion is not None and x + y:
        interval = _rate_ratio(x / dispersion, y / dispersion, n_x, n_y, confidence)
    return CountComparison(
        variant=variant_name,
        baseline=baseline_name,
        variant_runs=n_x,
        baseline_runs=n_y,
        variant_total=x,
        baseline_total=y,
        ratio=ratio,
        interval=interval,
        exact_p=exact,
        dispersion=dispersion,
        dispersion_p=dispersion_p,
        p_value=None if dispersion_p is None else max(exact, dispersion_p),
        notes=tuple(notes),
    )


def _dispersion_test(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Dispersion within variants (at least 1) and the F-test of equal rates."""
    both = np.concatenate([first, second])
    rate, freedom = both.mean(), len(both) - 2
    if rate == 0:
        return 1.0, 1.0
    groups = (first, second)
    within = sum(((counts - counts.mean()) ** 2).sum() for counts in groups) / freedom
    between = sum(len(counts) * (counts.mean() - rate) ** 2 for counts in groups)
    dispersion = max(1.0, within / rate)
    return float(dispersion), float(special.fdtrc(1, freedom, between / (rate * dispersion)))


def _rate_ratio(x: float, y: float, runs_x: int, runs_y: int, confidence: float):
    tail = (1 - confidence) / 2
    low = special.betaincinv(x, y + 1, tail) if x else 0.0
    high = special.betaincinv(x + 1, y, 1 - tail) if y else 1.0
    scale = runs_y / runs_x
    upper = None if high >= 1 else float(high / (1 - high) * scale)
    return float(low / (1 - low) * scale), upper


def _counts(values: Mapping[int, int | None], name: str) -> np.ndarray:
    counts = []
    for seed, value in values.items():
        if value is None:
            continue
        if (
            isinstance(value, bool)
            or not isinstance(value, Real)
            or not math.isfinite(value)
            or value < 0
            or value != int(value)
        ):
            raise UserError(
                f"the count of {name}, seed {seed} is {value!r}; expected a whole number, 0 or more"
            )
        counts.append(int(value))
    return np.array(counts, dtype=float)
