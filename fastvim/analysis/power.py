"""How many seeds a paired experiment needs."""

import bisect
import math
from dataclasses import asdict, dataclass

import numpy as np
from scipy import special

from fastvim.errors import UserError


@dataclass(frozen=True)
class SeedsNeeded:
    """`seeds` pairs give `achieved_power`; None where no number up to `cap` does, see `note`."""

    seeds: int | None
    achieved_power: float | None
    cap: int
    note: str

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return asdict(self)


def paired_t_power(seeds: int | np.ndarray, standardised_effect: float, alpha: float = 0.05):
    """Power of the two-sided paired t-test with `seeds` pairs (an array gives an array).

    P(|T| > t(1 - alpha / 2; n - 1)), T noncentral t with n - 1 degrees of freedom and
    noncentrality sqrt(n) * effect, effect = mean / sd of the differences (Cohen 1988, ch. 2).
    """
    freedom = np.asarray(seeds) - 1.0
    critical = special.stdtrit(freedom, 1 - alpha / 2)
    shift = np.sqrt(freedom + 1) * abs(standardised_effect)
    above = 1 - special.nctdtr(freedom, shift, critical)
    below = special.nctdtr(freedom, shift, -critical)
    # Far out in the tails the noncentral t gives NaN: of what lies below that is nothing, and for
    # shifts so large that it is what lies above, the normal limit is exact enough.
    above = np.where(np.isfinite(above), above, special.ndtr(shift - critical))
    return above + np.where(np.isfinite(below), below, 0.0)


def seeds_needed(
    sd_of_differences: float,
    effect: float,
    power: float = 0.8,
    alpha: float = 0.05,
    cap: int = 1000,
) -> SeedsNeeded:
    """Smallest number of seeds whose paired t-test finds a true mean difference `effect`.

    `effect` and `sd_of_differences` are in the metric's units. For one of m variants give
    alpha / m, Holm's strictest step. Numbers above `cap` are not given: `seeds` is None and the
    note says so. Raises UserError on a negative or non-finite spread, a power or alpha outside
    (0, 1), or a cap below 2.
    """
    if not (math.isfinite(sd_of_differences) and sd_of_differences >= 0):
        raise UserError(f"sd_of_differences is {sd_of_differences}; it must be 0 or more")
    if not math.isfinite(effect):
        raise UserError(f"effect is {effect}; it must be a finite number")
    for name, value in (("power", power), ("alpha", alpha)):
        if not 0 < value < 1:
            raise UserError(f"{name} is {value}; it must lie between 0 and 1")
    if cap < 2:
        raise UserError(f"cap is {cap}; it must be 2 or more")
    if effect == 0:
        return SeedsNeeded(None, None, cap, "no number of seeds finds a difference of zero")
    if sd_of_differences == 0:
        return SeedsNeeded(
            None, None, cap, "the spread between seeds is not known (all differences are equal)"
        )
    standardised = effect / sd_of_differences

    def power_at(n: int) -> float:
        return float(paired_t_power(n, standardised, alpha))

    if power_at(cap) < power:
        return SeedsNeeded(None, power_at(cap), cap, f"more than {cap} seeds")
    # Power grows with n, so the first n that has enough is found by bisection.
    seeds = 2 + bisect.bisect_left(range(2, cap), power, key=power_at)
    return SeedsNeeded(seeds, power_at(seeds), cap, f"{seeds} seeds")


def sd_upper_limit(sd: float, n: int, confidence: float = 0.8) -> float:
    """One-sided upper confidence limit of the spread estimated from n differences.

    sd * sqrt((n - 1) / chi2(1 - confidence; n - 1)). Planning with it keeps the power in
    `confidence` of all pilot studies (Browne 1995).
    """
    return sd * math.sqrt((n - 1) / special.chdtri(n - 1, confidence))
