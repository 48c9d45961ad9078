"""Timing that can be trusted: warm, interleaved, medians with their spread."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from fastvim.errors import UserError


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
    warm: bool = False,
    report: Callable[[int], None] = lambda done: None,
) -> dict[str, Timing]:
    """Time every call in turn, `repeats` rounds, so that a slow moment of the machine hits all.

    One round before is not counted (caches, compilation), unless the calls are `warm` already.
    Rounds end early, after at least one, when the next would pass `seconds`. `report` is told the
    rounds that are done.
    """
    begin = time.monotonic()
    if not warm:
        for call in calls.values():
            call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    for done in range(repeats):
        report(done)
        start = time.monotonic()
        for name, call in calls.items():
            found[name].append(call_seconds(call, device))
        now = time.monotonic()
        if now - begin + (now - start) > seconds:
            break
    return {name: Timing.of(values) for name, values in found.items()}


def captured(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """`call` as one CUDA graph, whose replay leaves out what Python and launches cost.

    Raises UserError where it cannot be captured.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):  # What is made at first use must not be captured.
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # On the stream of the warm-up, since libraries keep handles and workspaces by stream.
    try:
        with torch.cuda.graph(graph, stream=stream):
            call()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot be captured as a CUDA graph: {reason}") from error

    def replay(read: Callable[[], object] = call) -> None:
        graph.replay()  # It knows what `read` holds by address alone.

    return replay
