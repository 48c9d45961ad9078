"""What a curve has been so far: its level, its noise, the tail of its noise.

All three are exponential averages of winsorised residuals, so that one value, however large,
moves them no further than c deviations would (after Gelper, Fried and Croux 2010, "Robust
forecasting with exponential and Holt-Winters smoothing"):

    r_t = y_t - level_{t-1}                                   residual
    w_t = clip(r_t, -c sigma_{t-1}, c sigma_{t-1})            c = 2
    level_t = level_{t-1} + a_t w_t                           a_t = max(1 / 32, 2 / (t + 1))
    sigma_t = sigma_{t-1} + g_t (|w_t - b_t| / k - sigma_{t-1})   g_t = max(1 / 128, 4 / (t + 3))
    k = E min(|x|, c) for a standard normal x
    b_t = min(0, mean of the last w)                          the lag behind a falling curve

The growing-memory gains are a warm start: from the first steps the estimates are averages of all
there is, the later values weighing more, so the fall of a young loss is soon forgotten. Where more
than 8 values in a row lie below it, the level follows four times as fast, and values beyond the
clip pull it by a quarter of the way: an improvement is followed at once, a rise is not.

The tail q is the running 0.99 quantile of the upward heights r / sigma (Robbins and Monro), where
heights close to one another count once: the heavy tail of noise comes in single values, a spike
too low to be an episode in many, and it must not hide the next.
"""

from __future__ import annotations

import math

from fastvim.stability.settings import Settings

CLIP = 2.0
# E min(|x|, CLIP) for a standard normal x makes sigma its standard deviation.
CLIPPED_MEAN = math.sqrt(2 / math.pi) * (1 - math.exp(-(CLIP**2) / 2)) + CLIP * math.erfc(
    CLIP / math.sqrt(2)
)
# Values over which the lag of the level behind a falling curve is measured.
BIAS_MEMORY = 16
# More values in a row below the level than this are a trend, not chance (1 in 256).
CHANCE_RUN = 8
# Runs over which their mean length is measured.
RUN_MEMORY = 32
TAIL = 0.01
# The tail quantile at which `threshold` holds, taken for granted until the run shows its own.
USUAL_TAIL = 2.75
# A dead flat curve has no noise to compare with: before the first change, this share of its value.
FLAT = 2e-4
# A quantum below this many deviations cannot become the floor of sigma soon.
FINE = 0.01
# A level that rose this many deviations from its lowest, however slowly, and gave back this share
# of the progress since the start, diverges though no value stood out.
CREPT_HEIGHT = 50.0
CREPT_SHARE = 0.5


class Baseline:
    """Level, sigma and tail of a curve, learnt value by value; all state is plain numbers."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.level = self.first_level = self.previous = math.nan
        self.sigma = 0.0
        self.quantum = math.inf  # the smallest change seen: the resolution of a rounded log
        self.fine = False  # the quantum is so far below sigma that it need not be looked for
        self.tail = USUAL_TAIL
        self.tail_count = 0  # `count` when `tail` was last brought up to date
        self.last_high = 0  # `count` at the last value above the tail
        self.count = 0  # values learnt from
        self.age = 0  # the same since the last fresh start
        self.bias = 0.0  # recent mean residual: below 0 where the level lags a falling curve
        self.below = 0  # values in a row below the level
        # Mean length of those runs, and of a run with the one above the level before it: 2 and 4
        # for noise without memory around its median.
        self.run_mean, self.period_mean = 2.0, 4.0
        self.run_end = 0  # `count` at the end of the last of them
        self.best = math.nan  # the lowest level so far, with its sigma and step
        self.best_sigma = 0.0
        self.best_step = math.nan

    @property
    def threshold(self) -> float:
        """Height above which a value is an outlier now: higher where the noise has a heavy tail."""
        heavier = max(self._tail_now() / USUAL_TAIL, 1.0)
        return min(
            self.settings.threshold * heavier**self.settings.tail_power, self.settings.highest
        )

    @property
    def run_length(self) -> float:
        """How much longer than in noise without memory the curve stays on one side; at least 1.

        Half the harmonic mean of the runs' mean lengths below and above the level: without memory
        they are 1 / (1 - p) and 1 / p, p the share below, so that it is 1 though a spike has left
        the level too high.
        """
        above = self.period_mean - self.run_mean
        return max(self.run_mean * above / self.period_mean, 1.0)

    @property
    def ceiling(self) -> float:
        """The level at which most progress is lost, though it crept up and no value stood out."""
        height = CREPT_HEIGHT * max(self.best_sigma, self._floor())
        return self.best + max(CREPT_SHARE * (self.first_level - self.best), height)

    @property
    def limit(self) -> float:
        """The value above which one is an outlier now; NaN before there is one."""
        if self.age < self.settings.young or self.sigma <= 0:
            return math.nan
        return self.level + min(self.bias, 0.0) + self.threshold * self.sigma

    def height(self, value: float) -> float:
        """Robust deviations of `value` above the level; NaN before there is one."""
        excess = value - self.level - min(self.bias, 0.0)
        return excess / self.sigma if self.sigma > 0 else excess * math.inf

    def learn_ordinary(self, values: list[float], begin: int, stop: int) -> int:
        """Learn from values within the clip; the position of the first that is not, or `stop`.

        Nearly all values of a log end here, so the state lives in local variables.
        """
        settings = self.settings
        young, settled = settings.young, 4 * settings.noise_memory
        slow, slowest = 1 / settings.level_memory, 1 / settings.noise_memory
        clip, per_mean, bias_gain = CLIP, 1 / CLIPPED_MEAN, 1 / BIAS_MEMORY
        level, sigma, previous, quantum = self.level, self.sigma, self.previous, self.quantum
        age, below, bias, fine = self.age, self.below, self.bias, self.fine
        floor, ceiling = self._floor(), self.ceiling
        cut = math.inf if age < young else clip * sigma
        level_gain, noise_gain, warm = slow, slowest, age < settled
        position = begin
        for position in range(begin, stop):
            value = values[position]
            residual = value - level
            # NaN and infinity fail the first test too.
            if not -cut < residual < cut or level > ceiling:
                break
            if not fine:
                change = value - previous
                previous = value
                if -quantum < change < quantum and change:
                    quantum = floor = change if change > 0 else -change
            if warm:
                age += 1
                warm = age < settled
                level_gain = max(2 / (age + 1), slow)
                noise_gain = max(4 / (age + 3), slowest)
            spread = residual - bias if bias < 0 else residual
            bias += bias_gain * (residual - bias)
            if residual < 0:
                below += 1
                if below > CHANCE_RUN:
                    level += max(level_gain, 4 * slow) * residual
                else:
                    level += level_gain * residual
            else:
                if below:
                    self._learn_run(below, self.count + position - begin + 1)
                    below = 0
                level += level_gain * residual
            if spread < 0:
                sigma -= noise_gain * (spread * per_mean + sigma)
            else:
                sigma += noise_gain * (spread * per_mean - sigma)
            if sigma < floor:
                sigma = floor
            cut = clip * sigma
            if warm and age < young:
                cut = math.inf
        else:
            position = stop
        self.level, self.sigma, self.previous, self.quantum = level, sigma, previous, quantum
        self.age, self.below, self.bias = age, below, bias
        self.count += position - begin
        return position

    def learn_unusual(self, step: float, value: float) -> None:
        """Learn from any finite value, as if it lay at the clip where it lies beyond."""
        self.count += 1
        self.age += 1
        if math.isnan(self.level):
            self.level = self.first_level = self.previous = value
            return
        settings = self.settings
        residual = value - self.level
        change = abs(value - self.previous)
        self.previous = value
        if 0 < change < self.quantum:
            self.quantum = change
        self.fine = self.quantum < FINE * self.sigma
        if residual < 0:
            self.below += 1
        else:
            if self.below:
                self._learn_run(self.below, self.count)
                self.below = 0
            self._learn_tail(residual)
        if self.below > CHANCE_RUN:
            # The level follows without a clip, and sigma does not take the fall for noise.
            self.level += residual / 4
        else:
            cut = CLIP * self.sigma
            clipped = max(-cut, min(residual, cut))
            self.level += max(2 / (self.age + 1), 1 / settings.level_memory) * clipped
            gain = max(4 / (self.age + 3), 1 / settings.noise_memory)
            self.sigma += gain * (abs(clipped) / CLIPPED_MEAN - self.sigma)
            self.bias += (clipped - self.bias) / BIAS_MEMORY
        self.sigma = max(self.sigma, self._floor())
        if residual < 0 and self.age >= settings.young:
            self._note_best(step)

    def start_afresh(self, step: float, level: float) -> None:
        """Find the level anew within a few values, keeping what is known of the noise."""
        self.level = self.best = level
        self.best_sigma, self.best_step = self.sigma, step
        self.age = min(self.age, self.settings.young)
        self.below, self.bias, self.run_end = 0, 0.0, self.count

    def _learn_run(self, below: int, count: int) -> None:
        """A run of `below` values below the level ended before the value numbered `count`."""
        self.run_mean += (below - self.run_mean) / RUN_MEMORY
        self.period_mean += (count - self.run_end - self.period_mean) / RUN_MEMORY
        self.run_end = count

    def _note_best(self, step: float) -> None:
        if not self.level >= self.best:
            self.best, self.best_sigma, self.best_step = self.level, self.sigma, step
        elif self.level < self.best + self.best_sigma:
            # Still as good as the best, so a rise can have begun no earlier.
            self.best_step = step

    def _floor(self) -> float:
        """The least sigma: the resolution of the log, or where it never changed, a share of it."""
        return self.quantum if math.isfinite(self.quantum) else FLAT * abs(self.level)

    def _tail_now(self) -> float:
        passed = self.count - self.tail_count
        return max(CLIP, self.tail * (1 - self.settings.tail_gain * TAIL) ** passed)

    def _learn_tail(self, residual: float) -> None:
        """Robbins and Monro's running quantile: up at a value above it, else slowly down."""
        self.tail = self._tail_now()
        self.tail_count = self.count
        if residual - min(self.bias, 0.0) > self.tail * self.sigma:
            if self.count - self.last_high > self.settings.calm_values:
                self.tail *= 1 + self.settings.tail_gain * (1 - TAIL)
            self.last_high = self.count
