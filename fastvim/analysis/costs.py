"""What a variant costs: ratios of timings with an interval, and accuracy against cost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from fastvim.analysis.intervals import median_interval
from fastvim.errors import UserError

METHOD = "order-statistic interval of the median"


@dataclass(frozen=True)
class RatioEstimate:
    """variant / baseline of a cost. `ratios` holds one ratio a repeat; `interval` is None with
    the reason in `note`; `exact` marks counted costs (FLOPs, parameters), which have no spread."""

    ratio: float
    interval: tuple[float, float] | None
    confidence: float
    method: str
    repeats: int
    ratios: tuple[float, ...]
    exact: bool
    note: str = ""

    def interval_at(self, confidence: float) -> tuple[float, float] | None:
        """The interval at another confidence; None where the repeats are too few for it."""
        if self.exact:
            return (self.ratio, self.ratio)
        ends = median_interval(np.array(self.ratios), confidence)
        return None if ends is None else (float(ends[0]), float(ends[1]))

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        values = asdict(self)
        values["interval"] = None if self.interval is None else list(self.interval)
        values["ratios"] = list(self.ratios)
        return values


def cost_ratio(
    baseline: Sequence[float], variant: Sequence[float], confidence: float = 0.95
) -> RatioEstimate:
    """Median of variant / baseline over interleaved repeats (seconds, or images per second).

    Repeat i of both was measured back to back, so a machine that slows down slows both and the
    ratio of a pair cancels it. The median shrugs off an interrupted repeat. Its interval comes
    from order statistics, which held 94.5-95.3 % coverage in simulation where the percentile
    bootstrap fell to 87 % (docs/statistics.md); below six repeats there is none at 95 %.
    Raises UserError on unequal lengths, no repeats, or values that are not positive.
    """
    base, other = np.asarray(baseline, dtype=float), np.asarray(variant, dtype=float)
    if base.ndim != 1 or base.shape != other.shape or base.size == 0:
        raise UserError(
            f"timings have shapes {base.shape} and {other.shape}; expected interleaved repeats of "
            "one length, at least one"
        )
    for name, values in (("baseline", base), ("variant", other)):
        wrong = values[~(np.isfinite(values) & (values > 0))]
        if wrong.size:
            raise UserError(f"a timing of the {name} is {wrong[0]}; it must be above 0")
    ratios = other / base
    ends = median_interval(ratios, confidence)
    return RatioEstimate(
        ratio=float(np.median(ratios)),
        interval=None if ends is None else (float(ends[0]), float(ends[1])),
        confidence=confidence,
        method=METHOD,
        repeats=len(ratios),
        ratios=tuple(float(r) for r in ratios),
        exact=False,
        note=""
        if ends is not None
        else f"an interval at {100 * confidence:g} % needs {_repeats_for(confidence)} interleaved "
        f"repeats; there are {len(ratios)}",
    )


def exact_ratio(baseline: float, variant: float) -> RatioEstimate:
    """variant / baseline of a counted cost, the same in every run (FLOPs, parameters)."""
    for name, value in (("baseline", baseline), ("variant", variant)):
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"the cost of the {name} is {value}; it must be above 0")
    ratio = variant / baseline
    return RatioEstimate(ratio, (ratio, ratio), 1.0, "counted, no spread", 1, (ratio,), True)


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names on the front of `points` (name -> (cost, accuracy)), cheapest first.

    A point is on the front when no other is at least as accurate and at least as cheap, and
    better in one of the two; equal points are all on it. Points with a missing (None) or
    non-finite coordinate are left out. Means are compared as they are: a front does not know
    whether a difference is real, the paired interval does.
    """
    known = {
        name: (float(cost), float(accuracy))
        for name, (cost, accuracy) in points.items()
        if cost is not None
        and accuracy is not None
        and math.isfinite(cost)
        and math.isfinite(accuracy)
    }
    front = [
        name
        for name, (cost, accuracy) in known.items()
        if not any(
            c <= cost and a >= accuracy and (c < cost or a > accuracy) for c, a in known.values()
        )
    ]
    return sorted(front, key=lambda name: known[name])


def _repeats_for(confidence: float) -> int:
    """Fewest repeats whose extremes cover the median: 1 - 2 / 2^n >= confidence."""
    return math.ceil(math.log2(2 / (1 - confidence)))
