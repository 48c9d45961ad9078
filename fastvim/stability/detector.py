"""The loss-spike detector: one pass, constant memory, never looks ahead.

A curve y_1, y_2, ... is judged against its own past. Two numbers are carried along, both by
exponential averages of winsorised residuals, so that one value, however large, moves them no
further than 2 deviations would (after Gelper, Fried and Croux 2010, "Robust forecasting with
exponential and Holt-Winters smoothing"):

    r_t = y_t - level_{t-1}                          residual
    w_t = clip(r_t, -c sigma_{t-1}, c sigma_{t-1})   c = 2
    level_t = level_{t-1} + a_t w_t                  a_t = max(1 / level_memory, 2 / (t + 1))
    sigma_t = sigma_{t-1} + g_t (|w_t| / k - sigma_{t-1}),   k = E min(|x|, c), x ~ N(0, 1)

The gains 2 / (t + 1) are a warm start: from the first steps the estimates are averages of all
there is, the later values weighing more, and the fall of a young loss is forgotten quickly.

A value is an outlier where r_t > T sigma_{t-1}. T follows the tail of the noise: q tracks the
0.99 quantile of r_t / sigma_{t-1} and T = threshold (q / q_0)^p between fixed bounds, so heavy
tails need more to be called a spike. An episode opens at an outlier and freezes level and sigma
until it is over, so no spike hides the next one. It closes when `calm_values` values in a row
lie below `calm` deviations; after `patience` values without that the level has moved for good,
and the detector starts afresh from there.

Only upwards: a sustained improvement (learning rate lowered) makes the level jump after it.
Nothing depends on the unit or the origin of the curve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise

import numpy as np

from fastvim.errors import UserError
from fastvim.stability.episodes import Episode, Event
from fastvim.stability.excursion import LOST_SHARE, Excursion
from fastvim.stability.settings import Settings

CLIP = 2.0
# E min(|x|, CLIP) for a standard normal x makes sigma its standard deviation.
CLIPPED_MEAN = math.sqrt(2 / math.pi) * (1 - math.exp(-(CLIP**2) / 2)) + CLIP * math.erfc(
    CLIP / math.sqrt(2)
)
TAIL = 0.01
# A dead flat curve has no noise to compare with: before the first change, this share of its value.
FLAT = 2e-4
# The tail quantile of a run before any of it is seen, and the one at which `threshold` holds.
FIRST_TAIL = 2.75
USUAL_TAIL = 2.75
# Values over which the lag of the level behind a falling curve is measured.
BIAS_MEMORY = 16
# Deviations that the level may rise, however slowly, before that is a divergence.
CREPT_HEIGHT = 50.0
# More values in a row below the level than this are a trend, not chance (1 in 256).
CHANCE_RUN = 8


class SpikeDetector:
    """Online detector: `update(step, value)` after every logged value, `finish()` at the end.

    `episodes` holds the finished episodes; a resumed run that goes back over some (a step lower
    than the last) takes them out again. `level`, `sigma` and `threshold` are there to be read.
    """

    def __init__(self, settings: Settings | None = None):
        self.settings = settings or Settings()
        self.episodes: list[Episode] = []
        self.excursion: Excursion | None = None
        self.level = self.first_level = self.previous = math.nan
        self.sigma = 0.0
        self.quantum = math.inf  # the smallest change seen: the resolution of a rounded log
        self.tail = FIRST_TAIL
        self.tail_count = 0  # `count` when `tail` was last brought up to date
        self.count = 0  # values that the level and the scale have learnt from
        self.age = 0  # the same since the last fresh start
        self.bias = 0.0  # recent mean residual: below 0 where the level lags a falling curve
        self.below = 0  # values in a row below the level
        self.run_start = math.nan  # step at which the present run above `calm` began
        self.run_count = -1  # `count` at its last value
        self.run_length = 0
        self.best = math.nan  # the lowest level so far, with its sigma and step
        self.best_sigma = 0.0
        self.best_step = math.nan
        self.last_step = -math.inf

    @property
    def threshold(self) -> float:
        """Height above which a value is an outlier now, in robust deviations."""
        s = self.settings
        heavier = max(self._tail_now() / USUAL_TAIL, 1.0)
        return min(s.threshold * heavier**s.tail_power, s.highest)

    @property
    def open_episode(self) -> Episode | None:
        """The episode that has started and not finished, as far as it has come."""
        return self.excursion.close(False) if self.excursion else None

    def update(self, step: float, value: float) -> list[Event]:
        """Take one value; the events it caused, usually none."""
        return self._segment([float(step)], [float(value)], 0, 1)

    def extend(self, steps: Sequence[float], values: Sequence[float]) -> list[Event]:
        """Take many values (two sequences of one length); the same as `update` on each in turn."""
        steps = np.asarray(steps, dtype=np.float64)
        values = np.asarray(values, dtype=np.float64)
        if steps.ndim != 1 or steps.shape != values.shape:
            raise UserError(
                "steps and values must be two sequences of one length, got shapes "
                f"{steps.shape} and {values.shape}"
            )
        if not np.isfinite(steps).all():
            raise UserError(f"step {steps[~np.isfinite(steps)][0]} is not a number")
        back = np.flatnonzero(steps[1:] < steps[:-1]) + 1
        bounds = [0, *back.tolist(), len(steps)] if len(steps) else []
        step_list, value_list = steps.tolist(), values.tolist()
        events: list[Event] = []
        for begin, stop in pairwise(bounds):
            events += self._segment(step_list, value_list, begin, stop)
        return events

    def finish(self) -> list[Event]:
        """End of the log: an open episode is closed as it stands."""
        if self.excursion is None:
            return []
        return [self._close(self.excursion.close(False))]

    def state_dict(self) -> dict:
        """Everything but the settings, as plain values for a checkpoint."""
        state = {name: v for name, v in vars(self).items() if isinstance(v, int | float)}
        state["episodes"] = [asdict(episode) for episode in self.episodes]
        state["excursion"] = asdict(self.excursion) if self.excursion else None
        return state

    def load_state_dict(self, state: dict) -> None:
        """Go on from what `state_dict` gave."""
        vars(self).update(state)
        self.episodes = [Episode(**fields) for fields in state["episodes"]]
        self.excursion = Excursion(**state["excursion"]) if state["excursion"] else None

    def _segment(self, steps: list, values: list, begin: int, stop: int) -> list[Event]:
        """Values `begin` to `stop`, whose steps do not go back within."""
        events = self._resume(steps[begin]) if steps[begin] < self.last_step else []
        position = begin
        while position < stop:
            if self.excursion is None:
                position = self._ordinary(values, position, stop)
                if position == stop:
                    break
            events += self._unusual(steps[position], values[position])
            position += 1
        self.last_step = steps[stop - 1]
        return events

    def _ordinary(self, values: list, begin: int, stop: int) -> int:
        """Learn from values within the clip; the position of the first that is not, or `stop`.

        Nearly all values of a log end here, so the state lives in local variables.
        """
        settings = self.settings
        young, settled = settings.young, 4 * settings.noise_memory
        slow, slowest = 1 / settings.level_memory, 1 / settings.noise_memory
        level, sigma, previous, quantum = self.level, self.sigma, self.previous, self.quantum
        age, below, bias = self.age, self.below, self.bias
        floor, ceiling = self._floor(), self._ceiling()
        cut = math.inf if age < young else CLIP * sigma
        position = begin
        for position in range(begin, stop):
            value = values[position]
            residual = value - level
            # NaN and infinity fail the first test too.
            if not -cut < residual < cut or level > ceiling:
                break
            change = value - previous
            previous = value
            if -quantum < change < quantum and change:
                quantum = floor = change if change > 0 else -change
            age += 1
            if age < settled:
                level_gain = max(2 / (age + 1), slow)
                noise_gain = max(4 / (age + 3), slowest)
            else:
                level_gain, noise_gain = slow, slowest
            if residual < 0:
                below += 1
                if below > CHANCE_RUN and level_gain < 4 * slow:
                    level_gain = 4 * slow
            else:
                below = 0
            level += level_gain * residual
            spread = residual - bias if bias < 0 else residual
            bias += (residual - bias) / BIAS_MEMORY
            sigma += noise_gain * ((spread if spread > 0 else -spread) / CLIPPED_MEAN - sigma)
            if sigma < floor:
                sigma = floor
            if age >= young:
                cut = CLIP * sigma
        else:
            position = stop
        self.level, self.sigma, self.previous, self.quantum = level, sigma, previous, quantum
        self.age, self.below, self.bias = age, below, bias
        self.count += position - begin
        return position

    def _unusual(self, step: float, value: float) -> list[Event]:
        """A value inside an episode, beyond the clip, not finite, or the very first."""
        if self.excursion is not None:
            episode = self.excursion.add(step, value)
            return [self._close(episode)] if episode else []
        if not math.isfinite(value):
            return self._open(step, value, step, 0, self.level, self.sigma)
        self.count += 1
        self.age += 1
        if math.isnan(self.level):
            self.level = self.first_level = self.previous = value
            return []
        if min(self.level, value) > self._ceiling():
            return self._open(step, value, self.best_step, 0, self.best, self.best_sigma)
        residual = value - self.level
        if residual < 0:
            self._fell(step, value, residual)
            return []
        self.below = 0
        height = (residual - min(self.bias, 0.0)) / self.sigma if self.sigma > 0 else math.inf
        if height > self.settings.calm:
            if self.run_count != self.count - 1:
                self.run_start, self.run_length = step, 0
            self.run_count, self.run_length = self.count, self.run_length + 1
            if height > self.threshold:
                earlier = self.run_length - 1
                return self._open(step, value, self.run_start, earlier, self.level, self.sigma)
        self._learn_tail(height)
        self._learn(value, CLIP * self.sigma)
        return []

    def _fell(self, step: float, value: float, residual: float) -> None:
        """A value far below the level: noise at first, a sustained improvement when it lasts."""
        self.below += 1
        if self.below > CHANCE_RUN:
            # The level follows without a clip, and sigma does not take the fall for noise.
            self.level += residual / 4
        else:
            self._learn(value, -CLIP * self.sigma)
        if self.age < self.settings.young:
            return
        if not self.level >= self.best:
            self.best, self.best_sigma, self.best_step = self.level, self.sigma, step
        elif self.level < self.best + self.best_sigma:
            self.best_step = step

    def _ceiling(self) -> float:
        """The level at which most progress is lost, though it crept up and no value stood out."""
        lost = LOST_SHARE * (self.first_level - self.best)
        return self.best + max(lost, CREPT_HEIGHT * max(self.best_sigma, self._floor()))

    def _learn(self, value: float, clipped: float) -> None:
        """Learn from a value beyond the clip as if it were `clipped`, of its residual, away."""
        settings = self.settings
        self.level += max(2 / (self.age + 1), 1 / settings.level_memory) * clipped
        gain = max(4 / (self.age + 3), 1 / settings.noise_memory)
        self.sigma += gain * (abs(clipped) / CLIPPED_MEAN - self.sigma)
        self.bias += (clipped - self.bias) / BIAS_MEMORY
        change = abs(value - self.previous)
        self.previous = value
        if 0 < change < self.quantum:
            self.quantum = change
        self.sigma = max(self.sigma, self._floor())

    def _floor(self) -> float:
        """The least sigma: the resolution of the log, or where it never changed, a share of it."""
        return self.quantum if math.isfinite(self.quantum) else FLAT * abs(self.level)

    def _tail_now(self) -> float:
        passed = self.count - self.tail_count
        return max(CLIP, self.tail * (1 - self.settings.tail_gain * TAIL) ** passed)

    def _learn_tail(self, height: float) -> None:
        """Robbins and Monro's running quantile: up at a value above it, else slowly down."""
        self.tail = self._tail_now()
        self.tail_count = self.count
        if height > self.tail:
            self.tail *= 1 + self.settings.tail_gain * (1 - TAIL)

    def _open(
        self, step: float, value: float, start: float, earlier: int, level: float, sigma: float
    ) -> list[Event]:
        """Open an episode that began at `start`, `earlier` values ago, above `level`."""
        settings = self.settings
        self.excursion = Excursion(
            start_step=start,
            level=level,
            sigma=sigma,
            first_level=self.first_level,
            calm=settings.calm,
            calm_values=settings.calm_values,
            patience=settings.patience,
            count=earlier,
        )
        self.excursion.add(step, value)
        return [Event("started", self.excursion.close(False))]

    def _close(self, episode: Episode) -> Event:
        excursion, self.excursion = self.excursion, None
        self.run_count = -1
        if not episode.recovered and math.isfinite(excursion.inner):
            self._start_afresh(excursion.inner)
        self.episodes.append(episode)
        return Event("finished", episode)

    def _resume(self, step: float) -> list[Event]:
        """The run went back to `step`: what it logged from there on is replaced."""
        gone = [episode for episode in self.episodes if episode.start_step >= step]
        self.episodes = [episode for episode in self.episodes if episode.start_step < step]
        if self.excursion is not None and self.excursion.start_step >= step:
            gone.append(self.excursion.close(False))
            self.excursion = None
        if self.excursion is None:
            self._start_afresh(self.level)
        return [Event("replaced", episode) for episode in gone]

    def _start_afresh(self, level: float) -> None:
        """Find the level anew within a few values, keeping what is known of the noise."""
        self.level = self.best = level
        self.best_sigma, self.best_step = self.sigma, self.last_step
        self.age = min(self.age, self.settings.young)
        self.below, self.bias = 0, 0.0


def detect(
    steps: Sequence[float], values: Sequence[float], settings: Settings | None = None
) -> list[Episode]:
    """All episodes of a logged curve, in the order of the log.

    steps, values: one length, in the order they were logged; NaN and infinity are values.
    Raises UserError on lengths that differ or steps that are not finite.
    """
    detector = SpikeDetector(settings)
    detector.extend(steps, values)
    detector.finish()
    return detector.episodes
