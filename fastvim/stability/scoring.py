"""Precision and recall of a spike detector on labelled curves, by size of the spike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from fastvim.stability.alternatives import olmo2_outliers, olmo_core_monitor
from fastvim.stability.detector import detect
from fastvim.stability.synthetic import Curve

# Flagged values no further apart than this are one detection, as for the detector's own calm.
GAP = 3
# A detection may come this many values after the labelled end and still mean the same event.
LATE = 3

# A detector: from a curve to detections, (first value, last value, class or "") each.
Detections = list[tuple[int, int, str]]


@dataclass
class Score:
    """Counts over curves. `by_size` and `by_kind` map to (found, labelled)."""

    true: int = 0
    false: int = 0
    by_size: dict[float, list[int]] = field(default_factory=dict)
    by_kind: dict[str, list[int]] = field(default_factory=dict)
    named: int = 0

    @property
    def precision(self) -> float:
        """Share of the detections that mean a labelled event; 1 when there are none."""
        return self.true / (self.true + self.false) if self.true + self.false else 1.0

    @property
    def recall(self) -> float:
        """Share of the labelled events found."""
        found, labelled = np.sum(list(self.by_kind.values()), axis=0)
        return float(found / labelled)


def ours(curve: Curve) -> Detections:
    """This package's detector."""
    at = {step: i for i, step in enumerate(curve.steps.tolist())}
    episodes = detect(curve.steps, curve.values)
    return [(at[e.start_step], at[e.end_step], e.kind) for e in episodes]


def by_monitor(curve: Curve) -> Detections:
    """OLMo-core's StabilityMonitor."""
    return grouped(olmo_core_monitor(curve.values))


def by_spike_score(curve: Curve) -> Detections:
    """The values that OLMo 2's spike score counts."""
    return grouped(olmo2_outliers(curve.values))


DETECTORS: dict[str, Callable[[Curve], Detections]] = {
    "fastvim": ours,
    "OLMo-core StabilityMonitor": by_monitor,
    "OLMo 2 spike score": by_spike_score,
}


def grouped(flags: np.ndarray) -> Detections:
    """Flagged values as detections: one for each run with gaps of at most GAP."""
    places = np.flatnonzero(flags)
    runs = np.split(places, np.flatnonzero(np.diff(places) > GAP) + 1)
    return [(int(run[0]), int(run[-1]), "") for run in runs if len(run)]


def score(curves: list[Curve], detector: Callable[[Curve], Detections]) -> Score:
    """Match detections with labels by overlap; a detection in an excused span counts as nothing.

    An excused detection that names itself a spike is false all the same.
    """
    total = Score()
    for curve in curves:
        detections = detector(curve)
        used = set()
        for label in curve.labels:
            hits = [
                k
                for k, (start, end, _) in enumerate(detections)
                if start <= label.end + LATE and end >= label.start
            ]
            used.update(hits)
            counts = [total.by_kind.setdefault(label.kind, [0, 0])]
            if label.kind == "spike":
                counts.append(total.by_size.setdefault(label.size, [0, 0]))
            for count in counts:
                count[0] += bool(hits)
                count[1] += 1
            total.named += any(detections[k][2] == label.kind for k in hits)
        for k, (start, _, kind) in enumerate(detections):
            excused = any(first <= start <= last for first, last in curve.excused)
            if k in used:
                total.true += 1
            elif not (excused and kind != "spike"):
                total.false += 1
    return total
