"""Two published rules for loss spikes, named as such, to compare the detector with.

Both judge a value by the mean and the standard deviation of a window of the values before it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

MONITOR_WINDOW = 128
MONITOR_DEVIATIONS = 6.0
SCORE_WINDOW = 1000
SCORE_DEVIATIONS = 7.0
# Below this many earlier values a deviation is not worth the name; the paper is silent on it.
SCORE_LEAST = 128


def olmo_core_monitor(values: ArrayLike) -> np.ndarray:
    """The rule of OLMo-core's StabilityMonitorCallback: (n,) bool, True where a value is a spike.

    A spike lies more than 6 standard deviations above the mean of the 128 values before it;
    nothing is judged until there are 128, nor where their deviation is below 1e-10.
    Source: allenai/OLMo-core, the documentation of train.callbacks.StabilityMonitorCallback
    (the rule is described there; the code here is not its code).
    """
    values = np.asarray(values, dtype=np.float64)
    mean, deviation, count = trailing_moments(values, MONITOR_WINDOW)
    with np.errstate(invalid="ignore"):
        above = values > mean + MONITOR_DEVIATIONS * deviation
        return above & (deviation >= 1e-10) & (count == MONITOR_WINDOW)


def olmo2_outliers(values: ArrayLike) -> np.ndarray:
    """The values that OLMo 2's spike score counts: (n,) bool.

    "At least seven standard deviations away from a rolling average of the last 1,000 values"
    (OLMo 2 Furious, arXiv 2501.00656, section 3). Read here as the 1,000 values before it, or as
    many as there are from 128 on. NaN and infinity count, and take no part in the averages.
    """
    values = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(values)
    kept = values[finite]
    mean, deviation, count = trailing_moments(kept, SCORE_WINDOW)
    away = (np.abs(kept - mean) >= SCORE_DEVIATIONS * deviation) & (deviation > 0)
    outliers = ~finite
    outliers[finite] = away & (count >= SCORE_LEAST)
    return outliers


def spike_score(values: ArrayLike) -> float:
    """OLMo 2's spike score as a share in 0..1 (the paper gives percent); 0 for no values."""
    outliers = olmo2_outliers(values)
    return float(outliers.mean()) if len(outliers) else 0.0


def trailing_moments(values: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard deviation and count of the up to `window` values before each; (n,) each.

    A window is the end of one block of `window` values and the start of the next, so its sums are
    one cumulative sum from the block's end back and one from the next block's start on: a huge
    value spoils the rounding of no window but those it lies in.
    """
    size = len(values)
    rows = np.zeros((-(-size // window) + 1, window))
    rows[1:].reshape(-1)[:size] = values
    # Around a value of the window, so that the squares do not cancel.
    centre = np.where(np.isfinite(rows[1:, :1]), rows[1:, :1], 0.0)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        before, after = rows[:-1] - centre, rows[1:] - centre
        before[:1] = 0.0
        count = np.minimum(np.arange(size), window)
        mean = _window_sums(before, after)[:size] / count
        square = _window_sums(before**2, after**2)[:size] / count
        deviation = np.sqrt(np.maximum(square - mean**2, 0.0))
        return mean + np.repeat(centre, window)[:size], deviation, count


def _window_sums(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(blocks, window) twice: sums over before[k:] and after[:k] for each place k, flattened."""
    sums = before[:, ::-1].cumsum(axis=1)[:, ::-1]
    sums[:, 1:] += after[:, :-1].cumsum(axis=1)
    return sums.reshape(-1)
