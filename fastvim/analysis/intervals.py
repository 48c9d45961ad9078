"""Confidence intervals for the mean of a few paired differences, and for a median of ratios.

Arrays may carry leading axes, one simulated experiment each; the last axis, of length n, holds
the differences (one per seed) or the ratios (one per repeat).
"""

from functools import lru_cache

import numpy as np
from scipy import special, stats

# Below five differences a resample often repeats one value, so its spread is zero, the
# studentised mean is infinite and so is the interval.
SMALLEST_BOOTSTRAP = 5


def t_interval(differences: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Student's interval for the mean of (..., n) differences, n >= 2; ends of shape (...).

    mean +- t(1 - (1 - confidence) / 2; n - 1) * sd / sqrt(n), sd with divisor n - 1
    (Student 1908). Exact for normal differences at every n.
    """
    n = differences.shape[-1]
    centre = differences.mean(-1)
    error = differences.std(-1, ddof=1) / np.sqrt(n)
    half = special.stdtrit(n - 1, 0.5 + confidence / 2) * error
    return centre - half, centre + half


def bootstrap_t_interval(
    differences: np.ndarray, confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Studentised bootstrap interval for the mean of (..., n) differences; ends of shape (...).

    The quantiles of t* = (mean* - mean) / (sd* / sqrt(n)) over resamples take the place of
    Student's (Efron 1979; Hall 1992, section 3.2). Resamples are the same for every experiment
    and call with one `seed`. An end is infinite where too many resamples have no spread.
    """
    n = differences.shape[-1]
    weights = _resample_weights(n, resamples, seed)
    centre = differences.mean(-1, keepdims=True)
    away = differences - centre
    mean = away @ weights.T
    variance = np.maximum((away**2) @ weights.T - mean**2, 0) * n / (n - 1)
    error = np.sqrt(variance / n)
    scale = differences.std(-1, ddof=1, keepdims=True)
    flat = error <= 1e-7 * scale
    studentised = np.where(
        flat, np.where(mean >= 0, np.inf, -np.inf), mean / np.where(flat, 1, error)
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(studentised, [tail, 1 - tail], axis=-1, method="inverted_cdf")
    centre, scale = centre[..., 0], scale[..., 0] / np.sqrt(n)
    return centre - high * scale, centre - low * scale


@lru_cache(maxsize=8)
def _resample_weights(n: int, resamples: int, seed: int) -> np.ndarray:
    """(resamples, n): the share of each value in each resample."""
    return np.random.default_rng(seed).multinomial(n, [1 / n] * n, size=resamples) / n


def median_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, ...] | None:
    """Interval for the median of (..., n) values from order statistics; None where n is too small.

    The interval between the k-th smallest and k-th largest value covers the median with
    probability 1 - 2 P(Binomial(n, 1/2) < k) for any continuous distribution; the two nearest k
    are interpolated to the wanted confidence (Hettmansperger and Sheather 1986). At 95 % it
    needs n >= 6.
    """
    ordered = np.sort(values, -1)
    n = ordered.shape[-1]
    depths = np.arange(1, n // 2 + 1)
    coverage = 1 - 2 * stats.binom.cdf(depths - 1, n, 0.5)
    enough = depths[coverage >= confidence]
    if enough.size == 0:
        return None
    k = int(enough[-1])
    wide = coverage[k - 1]
    if wide == confidence or k == n // 2:
        share = 0.0
    else:
        fraction = (wide - confidence) / (wide - coverage[k])
        share = (n - k) * fraction / (k + (n - 2 * k) * fraction)
    low = (1 - share) * ordered[..., k - 1] + share * ordered[..., k]
    high = (1 - share) * ordered[..., n - k] + share * ordered[..., n - k - 1]
    return low, high
