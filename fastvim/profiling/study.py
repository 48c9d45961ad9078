"""The resolution study: models over image sizes, forward and training step, time and memory."""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastvim.errors import UserError
from fastvim.experiments.runner import Stopped
from fastvim.models.backbone import VisionMamba
from fastvim.profiling import models
from fastvim.profiling.flops import own_gflops
from fastvim.profiling.machine import clock_mhz
from fastvim.profiling.measurement import Measurement
from fastvim.profiling.memory import (
    available_memory,
    is_out_of_memory,
    measured_memory,
    predicted_memory,
)
from fastvim.profiling.stages import block_stages, cycle
from fastvim.profiling.timing import captured, interleaved
from fastvim.training.costs import count_gflops, count_parameters

NO_TIME = "no time left in the budget"


@dataclass
class Study:
    """What to measure, and how long: see `measure`."""

    names: Sequence[str]
    device: torch.device
    modes: Sequence[str] = ("forward", "training")
    batch: int | None = None
    repeats: int = 7
    minutes: float = 10.0
    report: Callable[[str], None] = lambda message: None
    should_stop: Callable[[], bool] = lambda: False

    def measure(
        self, resolutions: Sequence[int], before: Sequence[Measurement] = ()
    ) -> Iterator[list[Measurement]]:
        """Measure every model at every size; yields the measurements of a size when it is done.

        The models of a size are timed in turn, round by round. `minutes` is the budget of the
        whole: larger sizes get fewer rounds. Those for which no time is left (judged by those
        `before`), and those that do not fit in memory, say so in `problem`.
        """
        self._end = time.monotonic() + 60 * self.minutes
        known = list(before)
        # By the side, not by the pixels: small sizes get all their rounds.
        left = sum(resolutions)
        for resolution in resolutions:
            share = resolution / left
            left -= resolution
            found = self._measure_size(resolution, known, max(0.0, self._left()) * share)
            known += found
            yield found
            _release(self.device)

    def _left(self) -> float:
        return self._end - time.monotonic()

    def _stop_if_asked(self) -> None:
        # Asked, not told by an exception: one that comes in a callback of gc.collect is lost.
        if self.should_stop():
            raise Stopped

    def _say(self, message: str) -> None:
        self._stop_if_asked()
        self.report(f"{message}, {max(0.0, self._left()) / 60:.1f} min of the budget left")

    def _measure_size(self, resolution, known, seconds: float) -> list[Measurement]:
        begin, batch = time.monotonic(), self.batch or default_batch(resolution)
        rows, calls, built = [], {}, {}
        for name in self.names:
            row = Measurement(name, resolution, batch)
            rows.append(row)
            if self._left() <= 0:
                row.problem = NO_TIME
                continue
            self._say(f"{name} at {resolution} pixels: memory and FLOPs")
            with _problems_of(row, "model"):
                model = built[name] = models.build(name, resolution, self.device)
                _describe(row, model)
                row.own_gflops = own_gflops(model, resolution)
            if row.problem is None:
                self._prepare(row, model, known, calls)
            _release(self.device)
        self._time(rows, calls, begin + 0.8 * seconds)
        for row in rows:
            if isinstance(built.get(row.model), VisionMamba) and row.seconds:
                self._say(f"{row.model} at {resolution} pixels: parts of a block")
                with _problems_of(row, "parts of a block"):
                    self._take_apart(row, built[row.model], seconds * 0.1)
        return rows

    def _prepare(self, row: Measurement, model: nn.Module, known, calls: dict) -> None:
        """Add the calls to time of this model; each runs once, for its memory and to be warm."""
        shape = (row.batch, models.channels(model), row.resolution, row.resolution)
        for mode in self.modes:
            step = training_step if mode == "training" else forward
            if _least_seconds(row, mode, known) > self._left():
                row.add_problem(f"{NO_TIME} ({mode})")
                continue
            with _problems_of(row, mode):
                needed = predicted_memory(model, shape, step)
                if needed > available_memory(self.device):
                    row.add_problem(f"out of memory ({mode}: needs {needed / 1e9:.1f} GB)")
                    continue
                images = torch.randn(shape, device=self.device)

                def call(step=step, images=images) -> None:
                    step(model, images)

                peak = measured_memory(call, model, images)
                row.peak_memory_mb[mode] = peak / 1e6
                calls[row.model, mode] = captured(call, self.device) if mode == "graph" else call
            model.zero_grad(set_to_none=True)
        if any(name == row.model for name, _ in calls):
            with _problems_of(row, "FLOPs"):
                row.gflops = count_gflops(model, torch.zeros(1, *shape[1:], device=self.device))

    def _time(self, rows: list[Measurement], calls: dict, end: float) -> None:
        """Time the calls, mode by mode, until `end` by the monotonic clock."""
        for position, mode in enumerate(self.modes):
            mine = {name: call for (name, m), call in calls.items() if m == mode}
            left = (end - time.monotonic()) / (len(self.modes) - position)
            self._time_mode(mode, [row for row in rows if row.model in mine], mine, left)

    def _time_mode(self, mode: str, rows: list[Measurement], calls: dict, seconds: float) -> None:
        """Interleave the models; without those that now find no memory."""
        while calls:
            followed = {name: self._followed(name, call) for name, call in calls.items()}
            try:
                timings = interleaved(
                    followed,
                    self.device,
                    repeats=self.repeats,
                    seconds=seconds,
                    warm=True,
                    report=lambda done: self._say(
                        f"{mode} at {rows[0].resolution} pixels: round {done + 1} "
                        f"of at most {self.repeats}"
                    ),
                )
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                del calls[self._running]
                for row in rows:
                    if row.model == self._running:
                        row.add_problem(f"out of memory ({mode})")
                _release(self.device)
                continue
            clock = clock_mhz(self.device)  # While it is still as fast as the work made it.
            for row in rows:
                if row.model in timings:
                    row.seconds[mode], row.clock_mhz = timings[row.model], clock
            return

    def _followed(self, key: str, call: Callable[[], object]) -> Callable[[], None]:
        """`call`, known by its key while it runs; Stopped instead where that is asked for."""

        def run() -> None:
            self._stop_if_asked()
            self._running = key
            call()

        return run

    def _take_apart(self, row: Measurement, model: VisionMamba, seconds: float) -> None:
        stages = block_stages(model, row.batch)
        if self.device.type == "cuda":
            # A part is shorter than its launches from Python.
            stages = {name: captured(call, self.device) for name, call in stages.items()}
        calls = {name: self._followed(name, call) for name, call in stages.items()}
        row.stages = interleaved(calls, self.device, repeats=self.repeats, seconds=seconds)
        row.scan_seconds = row.stages["scan"].median * model.config.depth / cycle(model)


@contextmanager
def _problems_of(row: Measurement, what: str) -> Iterator[None]:
    """Within it, what cannot be measured, and running out of memory, are problems of the row."""
    try:
        yield
    except UserError as error:
        row.add_problem(str(error))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        row.add_problem(f"out of memory ({what})")


def default_batch(resolution: int) -> int:
    """8 images at 224 pixels, fewer in proportion to the pixels above."""
    return max(1, round(8 * (224 / resolution) ** 2))


def forward(model: nn.Module, images: Tensor) -> None:
    """Logits, without gradients."""
    model.eval()
    with torch.no_grad():
        model(images)


def training_step(model: nn.Module, images: Tensor) -> None:
    """Forward and backward; the optimiser's step is the same for every model of a size."""
    model.train()
    model.zero_grad(set_to_none=True)
    model(images).float().logsumexp(dim=-1).mean().backward()


def _least_seconds(row: Measurement, mode: str, known: Sequence[Measurement]) -> float:
    """The least that measuring takes, a warm call and a timed one, judged by a smaller size.

    Time grows at least with the pixels. 0 where there was no smaller size.
    """
    smaller = [m for m in known if m.model == row.model and mode in m.seconds]
    if not smaller:
        return 0.0
    last = max(smaller, key=lambda m: m.resolution)
    pixels = row.batch * row.resolution**2 / (last.batch * last.resolution**2)
    return 2 * pixels * last.seconds[mode].median


def _describe(row: Measurement, model: nn.Module) -> None:
    row.parameters = count_parameters(model)
    row.scale = {"image_size": row.resolution}
    if isinstance(model, VisionMamba):
        config = model.config
        row.tokens = len(model.grid)
        row.steps = model.layouts[model.schedule[0]].n_steps
        row.scale |= {"d_model": config.d_model, "depth": config.depth}
        if config.patch_size[0] == config.patch_size[1]:
            row.scale["patch_size"] = config.patch_size[0]


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
