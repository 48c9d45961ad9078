"""Timing that can be trusted: warm, interleaved, medians with their spread."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Timing:
    """Seconds a call: the median, the quartiles, and every call in its order."""

    median: float
    lower: float
    upper: float
    calls: tuple[float, ...]

    @classmethod
    def of(cls, seconds: list[float]) -> "Timing":
        lower, median, upper = np.quantile(seconds, [0.25, 0.5, 0.75])
        return cls(float(median), float(lower), float(upper), tuple(seconds))


def call_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call; on a GPU between two events, so that queueing is not counted."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    call()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1e3


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    repeats: int,
    seconds: float = float("inf"),
) -> dict[str, Timing]:
    """Time every call in turn, `repeats` rounds, so that a slow moment of the machine hits all.

    One round before is not counted (caches, compilation). Rounds end early, after at least
    one, once `seconds` have passed.
    """
    for call in calls.values():
        call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    end = time.monotonic() + seconds
    for _ in range(repeats):
        for name, call in calls.items():
            found[name].append(call_seconds(call, device))
        if time.monotonic() > end:
            break
    return {name: Timing.of(values) for name, values in found.items()}
