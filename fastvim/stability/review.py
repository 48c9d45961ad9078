"""The review of logged curves: episodes, spike score, and how runs compare."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from fastvim.errors import UserError
from fastvim.stability.alternatives import spike_score
from fastvim.stability.curves import LoggedCurve, current
from fastvim.stability.detector import SpikeDetector
from fastvim.stability.episodes import Episode, plain_number
from fastvim.stability.settings import Settings

# Points of the trend line of a curve, for plots and overlays.
TREND_POINTS = 1000


@dataclass
class Review:
    """What was found in one curve.

    curve: the values that count, without those that a resumed run went back over. final_level: the
    detector's level at the end, in the unit of the curve. trend: (steps, levels) of at most
    TREND_POINTS points, and limits: above what a value was an outlier there; NaN inside episodes.
    """

    curve: LoggedCurve
    episodes: list[Episode]
    spike_score: float
    final_level: float
    trend: tuple[np.ndarray, np.ndarray]
    limits: np.ndarray
    comparison: dict = field(default_factory=dict)

    @property
    def share_in_episodes(self) -> float:
        """Share of the logged values that lie in an episode."""
        total = len(self.curve.values)
        return sum(episode.duration for episode in self.episodes) / total if total else 0.0

    @property
    def counts(self) -> dict[str, int]:
        """Episodes of each class that occurs, the commonest first."""
        kinds = [episode.kind for episode in self.episodes]
        return {kind: kinds.count(kind) for kind in sorted(set(kinds), key=kinds.count)[::-1]}

    def to_dict(self) -> dict:
        """The entry of the JSON file; numbers that are not finite are null."""
        steps = self.curve.steps
        entry = {
            "path": self.curve.path,
            "tag": self.curve.tag,
            "values": len(self.curve.values),
            "first_step": plain_number(steps[0]) if len(steps) else None,
            "last_step": plain_number(steps[-1]) if len(steps) else None,
            "episodes": [episode.to_dict() for episode in self.episodes],
            "spike_score": self.spike_score,
            "final_level": plain_number(self.final_level),
            "lost": self.curve.lost,
        }
        if self.comparison:
            entry["comparison"] = self.comparison
        return entry


def review(curve: LoggedCurve, settings: Settings | None = None) -> Review:
    """Find the episodes of a curve and measure it."""
    detector = SpikeDetector(settings)
    count = len(curve.values)
    cuts = np.unique(np.linspace(0, count, min(TREND_POINTS, count) + 1).astype(int))
    steps, levels, limits = [], [], []
    for begin, end in pairwise(cuts.tolist()):
        detector.extend(curve.steps[begin:end], curve.values[begin:end])
        steps.append(curve.steps[end - 1])
        levels.append(math.nan if detector.excursion else detector.baseline.level)
        limits.append(math.nan if detector.excursion else detector.baseline.limit)
    open_episode = detector.excursion
    detector.finish()
    # A curve that ends inside an episode ends at the episode's level, not at the one it left.
    final = open_episode.inner if open_episode is not None else math.nan
    if not math.isfinite(final):
        final = detector.baseline.level
    _, counted = current(curve.steps, np.arange(count))
    drawn = np.isin(cuts[1:] - 1, counted)
    return Review(
        curve=replace(curve, steps=curve.steps[counted], values=curve.values[counted]),
        episodes=detector.episodes,
        spike_score=spike_score(curve.values[counted]),
        final_level=float(final),
        trend=(np.array(steps)[drawn], np.array(levels)[drawn]),
        limits=np.array(limits)[drawn],
    )


def review_curves(curves: list[LoggedCurve], settings: Settings | None = None) -> list[Review]:
    """The reviews of all curves, in their order."""
    return [review(curve, settings) for curve in curves]


def compare(reviews: list[Review], baselines: list[Review]) -> None:
    """Set each review's `comparison` with the baseline's review of the same tag.

    Differences are of the run minus the baseline. Tags are the same that differ in punctuation
    (train/loss, train_loss); another is compared where the baseline has a single one. Raises
    UserError where that cannot be.
    """
    by_tag = {base.curve.tag: base for base in baselines}
    by_words = {_words(tag): base for tag, base in by_tag.items()}
    for run in reviews:
        if any(run.curve.path == base.curve.path for base in baselines):
            continue
        base = by_tag.get(run.curve.tag) or by_words.get(_words(run.curve.tag))
        if base is None and len(baselines) == 1:
            base = baselines[0]
        if base is None:
            raise UserError(
                f"{run.curve.path}: the baseline has no tag {run.curve.tag!r} to compare with; it "
                f"has {', '.join(sorted(by_tag))}; choose with --tag"
            )
        run.comparison = {
            "baseline": base.curve.path,
            "tag": base.curve.tag,
            "episodes": len(run.episodes) - len(base.episodes),
            "spike_score": run.spike_score - base.spike_score,
            "share_in_episodes": run.share_in_episodes - base.share_in_episodes,
            "final_level": plain_number(run.final_level - base.final_level),
            "below_from_step": _below_from(run, base),
        }


def _words(tag: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", tag.lower())


def _below_from(run: Review, base: Review) -> float | None:
    """The step from which the run's trend stays below the baseline's; None if it does not."""
    steps, levels = _finite_trend(run)
    base_steps, base_levels = _finite_trend(base)
    if not len(base_steps):
        return None
    inside = (steps >= base_steps[0]) & (steps <= base_steps[-1])
    if not inside.any():
        return None
    steps, levels = steps[inside], levels[inside]
    above = np.flatnonzero(levels >= np.interp(steps, base_steps, base_levels))
    if not len(above):
        return plain_number(steps[0])
    return plain_number(steps[above[-1] + 1]) if above[-1] + 1 < len(steps) else None


def _finite_trend(entry: Review) -> tuple[np.ndarray, np.ndarray]:
    """The trend outside episodes."""
    steps, levels = entry.trend
    kept = np.isfinite(levels)
    return steps[kept], levels[kept]


def to_json(reviews: list[Review]) -> str:
    """The list of logs as JSON."""
    entries = [entry.to_dict() for entry in reviews]
    return json.dumps(entries, indent=2, allow_nan=False) + "\n"
