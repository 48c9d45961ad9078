"""The loss-spike detector: one pass, constant memory, never looks ahead.

A value is an outlier where it stands more than T robust deviations above its baseline (see
`baseline`), T = threshold * max(1, q / 2.75) ** tail_power: the heavier the tail q of the noise,
the more it takes. A run of values above `calm` is one too where their heights add up to 3 T.

An episode opens at the outlier, from the start of the run it ends, and freezes the baseline until
it is over: no spike hides the next. It is over when `calm_values` values in a row lie below `calm`;
after `patience` values without that, the level has moved for good and the detector starts afresh
from there. Only upwards: a sustained improvement is no episode.

Nothing depends on the unit or the origin of the curve, nor on how far apart its steps are.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from fastvim.errors import UserError
from fastvim.stability.baseline import Baseline
from fastvim.stability.episodes import Episode, Event
from fastvim.stability.excursion import Excursion
from fastvim.stability.settings import Settings

# A run above `calm` is an episode where its heights add up to this many thresholds.
RUN_SUM = 3.0
# Places of the past that are remembered, for a run that goes back: between half as many and this.
PLACES = 64


class SpikeDetector:
    """Online detector: `update(step, value)` after every logged value, `finish()` at the end.

    `episodes` holds the finished episodes; a resumed run that goes back over some (a step lower
    than the last) takes them out again. `baseline` has the level, sigma and threshold of now.
    """

    def __init__(self, settings: Settings | None = None):
        self.settings = settings or Settings()
        self.baseline = Baseline(self.settings)
        self.episodes: list[Episode] = []
        self.excursion: Excursion | None = None
        self.run_start = math.nan  # step at which the present run above `calm` began
        self.run_end = -1  # the baseline's count at its last value
        self.run_length = 0
        self.run_sum = 0.0  # of the heights in it
        self.last_step = -math.inf
        # (step, level, sigma) every `stride` values learnt from, to go back to.
        self.places: list[tuple[float, float, float]] = []
        self.stride = self.settings.young

    @property
    def open_episode(self) -> Episode | None:
        """The episode that has started and not finished, as far as it has come."""
        return self.excursion.close(False) if self.excursion else None

    def update(self, step: float, value: float) -> list[Event]:
        """Take one value; the events it caused, usually none."""
        return self._segment([float(step)], [float(value)], 0, 1)

    def extend(self, steps: ArrayLike, values: ArrayLike) -> list[Event]:
        """Take many values (two sequences of one length); the same as `update` on each in turn.

        Raises UserError on lengths that differ or steps that are not finite.
        """
        steps = np.asarray(steps, dtype=np.float64)
        values = np.asarray(values, dtype=np.float64)
        if steps.ndim != 1 or steps.shape != values.shape:
            raise UserError(
                "steps and values must be two sequences of one length, got shapes "
                f"{steps.shape} and {values.shape}"
            )
        if not np.isfinite(steps).all():
            raise UserError(f"steps must be numbers, got {steps[~np.isfinite(steps)][0]}")
        back = np.flatnonzero(steps[1:] < steps[:-1]) + 1
        bounds = [0, *back.tolist(), len(steps)] if len(steps) else []
        step_list, value_list = steps.tolist(), values.tolist()
        events: list[Event] = []
        for begin, stop in pairwise(bounds):
            events += self._segment(step_list, value_list, begin, stop)
        return events

    def finish(self) -> list[Event]:
        """End of the log: an open episode is closed as it stands."""
        excursion = self.excursion
        return [self._close(excursion, excursion.close(False))] if excursion else []

    def state_dict(self) -> dict:
        """Everything but the settings, as plain values for a checkpoint."""
        return {
            "baseline": _numbers(self.baseline),
            "detector": _numbers(self),
            "episodes": [asdict(episode) for episode in self.episodes],
            "excursion": asdict(self.excursion) if self.excursion else None,
            "places": [list(place) for place in self.places],
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from what `state_dict` gave."""
        vars(self.baseline).update(state["baseline"])
        vars(self).update(state["detector"])
        self.episodes = [Episode(**fields) for fields in state["episodes"]]
        self.excursion = Excursion(**state["excursion"]) if state["excursion"] else None
        self.places = [tuple(place) for place in state["places"]]

    def _segment(self, steps: list, values: list, begin: int, stop: int) -> list[Event]:
        """Values `begin` to `stop`, whose steps do not go back within."""
        events = self._resume(steps[begin]) if steps[begin] < self.last_step else []
        position = begin
        while position < stop:
            if self.excursion is None:
                # As far as the next place to remember, wherever the calls begin and end.
                due = self.stride - self.baseline.count % self.stride
                reach = min(stop, position + due)
                position = self.baseline.learn_ordinary(values, position, reach)
                if position == reach:
                    self._remember(steps[position - 1])
                    continue
                events += self._look(steps[position], values[position])
                if self.excursion is None:
                    self._remember(steps[position])
            else:
                episode = self.excursion.add(steps[position], values[position])
                if episode is not None:
                    events.append(self._close(self.excursion, episode))
            position += 1
        self.last_step = steps[stop - 1]
        return events

    def _look(self, step: float, value: float) -> list[Event]:
        """A value beyond the clip, not finite, or the very first, outside an episode."""
        baseline = self.baseline
        if not math.isfinite(value):
            return self._open(step, value, step, 0, baseline.level, baseline.sigma)
        if min(baseline.level, value) > baseline.ceiling:
            best, best_sigma = baseline.best, baseline.best_sigma
            return self._open(step, value, baseline.best_step, 0, best, best_sigma)
        height = baseline.height(value)
        if height > self.settings.calm:
            self._extend_run(step, height)
            threshold = baseline.threshold
            if height > threshold or self.run_sum > RUN_SUM * threshold * baseline.run_length:
                start, earlier = self.run_start, self.run_length - 1
                return self._open(step, value, start, earlier, baseline.level, baseline.sigma)
        baseline.learn_unusual(step, value)
        return []

    def _extend_run(self, step: float, height: float) -> None:
        count = self.baseline.count + 1
        if self.run_end != count - 1:
            self.run_start, self.run_length, self.run_sum = step, 0, 0.0
        self.run_end = count
        self.run_length += 1
        self.run_sum += height

    def _open(
        self, step: float, value: float, start: float, earlier: int, level: float, sigma: float
    ) -> list[Event]:
        """Open an episode that began at `start`, `earlier` values ago, above `level`."""
        settings = self.settings
        self.excursion = Excursion(
            start_step=start,
            level=level,
            sigma=sigma,
            first_level=self.baseline.first_level,
            calm=settings.calm,
            calm_values=settings.calm_values,
            patience=settings.patience,
            count=earlier,
        )
        self.excursion.add(step, value)
        return [Event("started", self.excursion.close(False))]

    def _close(self, excursion: Excursion, episode: Episode) -> Event:
        self.excursion = None
        self.run_end = -1
        if not episode.recovered and math.isfinite(excursion.inner):
            self.baseline.start_afresh(episode.end_step, excursion.inner)
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
            self._go_back(step)
        return [Event("replaced", episode) for episode in gone]

    def _remember(self, step: float) -> None:
        """Note the level at a place that is due; half the places go when there are too many."""
        if self.baseline.count % self.stride:
            return
        self.places.append((step, self.baseline.level, self.baseline.sigma))
        if len(self.places) == PLACES:
            self.places = self.places[1::2]
            self.stride *= 2

    def _go_back(self, step: float) -> None:
        """Take the level that the curve had at `step`; before any place, start from nothing."""
        self.run_end = -1  # A run of high values that was replaced goes on in none.
        later = [place for place in self.places if place[0] >= step]
        self.places = [place for place in self.places if place[0] < step]
        if not self.places:
            self.baseline, self.stride = Baseline(self.settings), self.settings.young
            return
        now = (self.last_step, self.baseline.level, self.baseline.sigma)
        at, levels, sigmas = zip(self.places[-1], (later or [now])[0], strict=True)
        self.baseline.sigma = float(np.interp(step, at, sigmas))
        self.baseline.start_afresh(step, float(np.interp(step, at, levels)))


def _numbers(owner: object) -> dict:
    return {name: value for name, value in vars(owner).items() if isinstance(value, int | float)}


def detect(steps: ArrayLike, values: ArrayLike, settings: Settings | None = None) -> list[Episode]:
    """All episodes of a logged curve, in the order of the log.

    steps, values: one length, in the order they were logged; NaN and infinity are values.
    Raises UserError on lengths that differ or steps that are not finite.
    """
    detector = SpikeDetector(settings)
    detector.extend(steps, values)
    detector.finish()
    return detector.episodes
