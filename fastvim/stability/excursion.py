"""An episode while it is open: when it is over, and what it was."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastvim.stability.episodes import DIVERGENCE, NONFINITE, PLATEAU, SHIFT, SPIKE, Episode

# The running level inside an episode remembers about this many values.
INNER_MEMORY = 8
# Deviations by which the inner level must rise between two looks to count as rising.
RISE = 3.0
# A level that stays is a divergence when it gave back at least LOST_SHARE of the progress made
# since the start, and lies this many deviations up (a flat curve has no progress to give back);
# one that still rises, when it gave back RISING_SHARE.
LOST_SHARE = 0.5
LOST_HEIGHT = 30.0
RISING_SHARE = 0.1
# An episode that the log cuts off sooner than this many values is a spike, not a shift.
SETTLED = 16


@dataclass
class Excursion:
    """The state of an open episode; `level` and `sigma` are frozen at what they were before it."""

    start_step: float
    level: float
    sigma: float
    first_level: float
    calm: float
    calm_values: int
    patience: int
    count: int = 0
    calm_count: int = 0
    peak_step: float = math.nan
    peak: float = -math.inf
    last_step: float = math.nan
    last_count: int = 0
    last_value: float = math.nan
    inner: float = math.nan
    mark: float = math.nan
    rising: bool = False
    nonfinite: bool = False

    def add(self, step: float, value: float) -> Episode | None:
        """Take the next value; the finished episode, if this value ends it."""
        self.count += 1
        if not math.isfinite(value):
            if not self.nonfinite:
                self.nonfinite, self.peak, self.peak_step = True, math.inf, step
            self._elevated(step, value)
            return None
        excess = value - self.level
        # Before the first finite value there is no level, and any finite value is calm.
        if math.isnan(self.level) or excess < self.calm * self.sigma:
            self.calm_count += 1
            return self.close(True) if self.calm_count >= self.calm_values else None
        self._elevated(step, value)
        if excess > self.peak:
            self.peak, self.peak_step = excess, step
        if math.isnan(self.inner):
            self.inner = self.mark = value
        self.inner += (value - self.inner) / INNER_MEMORY
        if self.count % (self.patience // 2) == 0:
            rising = self.inner - self.mark > max(
                RISE * self.sigma, 0.1 * (self.inner - self.level)
            )
            self.mark = self.inner
            if self.count >= self.patience and not rising and not self.nonfinite:
                return self.close(False)
            self.rising = rising
        return None

    def _elevated(self, step: float, value: float) -> None:
        self.calm_count = 0
        self.last_step, self.last_count, self.last_value = step, self.count, value

    def close(self, recovered: bool) -> Episode:
        """The episode as it stands; `recovered` says whether the curve is back at its trend."""
        height = self.peak / self.sigma if self.sigma > 0 else math.inf
        return Episode(
            start_step=self.start_step,
            peak_step=self.peak_step,
            end_step=self.last_step,
            height=height,
            height_value=self.peak,
            duration=self.last_count,
            recovered=recovered,
            kind=self._kind(recovered),
            baseline=self.level,
        )

    def _kind(self, recovered: bool) -> str:
        if self.nonfinite:
            return NONFINITE
        if recovered:
            return SPIKE
        if self.count < SETTLED:
            # Cut off by the end of the log: three values, each the highest so far, are a climb.
            climbing = self.count >= 3 and self.last_value - self.level >= self.peak
            return DIVERGENCE if climbing else SPIKE
        excess = self.inner - self.level
        progress = self.first_level - self.level
        rising = self.rising and excess > RISING_SHARE * progress
        if rising or (excess > LOST_SHARE * progress > 0 and excess > LOST_HEIGHT * self.sigma):
            return DIVERGENCE
        return PLATEAU if self.peak >= 2 * excess else SHIFT
