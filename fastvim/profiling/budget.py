"""The minutes that a study may take, and what its calls will take of them."""

import math
import time
from collections.abc import Sequence

from fastvim.profiling.measurement import Measurement

PARTS = "parts of a block"


class Budget:
    """Seconds until the end, and those of them that are set aside for calls still to be made."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes
        self._kept: dict[tuple[str, str], float] = {}

    def left(self) -> float:
        """Seconds until the end; negative after it."""
        return self._end - time.monotonic()

    def free(self) -> float:
        """What is left and not set aside."""
        return self.left() - sum(self._kept.values())

    def keep(self, key: tuple[str, str], seconds: float) -> None:
        """Set these seconds aside."""
        self._kept[key] = seconds

    def release(self, key: tuple[str, str]) -> None:
        """No longer keep what was set aside by this name, if anything was: it is being spent."""
        self._kept.pop(key, None)


def expected_seconds(row: Measurement, what: str, known: Sequence[Measurement]) -> float:
    """Seconds of a call in the mode `what`, or of all PARTS, by those of the model at other sizes.

    A power of the pixels through the two largest sizes, between 1 and 2: attention grows with
    their square. 1 where only one size is known, and no seconds where none is.
    """
    sizes = [
        (m.resolution**2, _seconds(m, what) / m.batch)
        for m in sorted(known, key=lambda m: m.resolution)
        if m.model == row.model and _seconds(m, what)
    ]
    if not sizes:
        return 0.0
    pixels, seconds = sizes[-1]
    power = 1.0
    if len(sizes) > 1:
        fewer, shorter = sizes[-2]
        power = min(2.0, max(1.0, math.log(seconds / shorter) / math.log(pixels / fewer)))
    return row.batch * seconds * (row.resolution**2 / pixels) ** power


def _seconds(measured: Measurement, what: str) -> float:
    """0 where it was not measured."""
    if what == PARTS:
        return sum(timing.median for timing in measured.stages.values())
    return measured.seconds[what].median if what in measured.seconds else 0.0
