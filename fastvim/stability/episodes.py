"""What a detector reports: an episode of a curve, and the events of its life."""

from __future__ import annotations

import math
from dataclasses import dataclass

SPIKE = "spike"
SHIFT = "shift"
DIVERGENCE = "divergence"
NONFINITE = "nonfinite"
PLATEAU = "plateau"

CLASSES = {
    SPIKE: "isolated spike: up and back to the trend (or the log ends inside it)",
    SHIFT: "sustained shift: up and stays there",
    DIVERGENCE: "divergence: still rising, or most of the progress of training lost",
    NONFINITE: "NaN or infinity",
    PLATEAU: "plateau after a spike: settles above the old trend, well below the peak",
}


@dataclass(frozen=True)
class Episode:
    """One excursion of a curve above its own past.

    Steps are the caller's. `height` counts robust deviations of the noise from the trend just
    before the start, `height_value` is the same excess in the unit of the curve; both are
    infinite for NaN and infinity. `duration` counts logged values from start to end, both
    included. `baseline` is the trend just before the start (NaN when there was none).
    """

    start_step: float
    peak_step: float
    end_step: float
    height: float
    height_value: float
    duration: int
    recovered: bool
    kind: str
    baseline: float

    def to_dict(self) -> dict:
        """Plain values for JSON, the class under `class`, null where a number is not finite."""
        return {
            "start_step": plain_number(self.start_step),
            "peak_step": plain_number(self.peak_step),
            "end_step": plain_number(self.end_step),
            "height": plain_number(self.height),
            "height_value": plain_number(self.height_value),
            "duration": self.duration,
            "recovered": self.recovered,
            "class": self.kind,
            "baseline": plain_number(self.baseline),
        }


@dataclass(frozen=True)
class Event:
    """`what` is `started`, `finished` or `replaced` (a resumed run went back over the episode)."""

    what: str
    episode: Episode


def plain_number(number: float) -> float | int | None:
    """A whole number as int, so that step 51779.0 reads 51779; NaN and infinity as None."""
    if not math.isfinite(number):
        return None
    return int(number) if number == int(number) and abs(number) < 2**53 else float(number)
