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
from fastvim.profiling.budget import PARTS, Budget, expected_seconds
from fastvim.profiling.flops import literature_gflops, own_gflops
from fastvim.profiling.machine import clock_mhz
from fastvim.profiling.measurement import NO_TIME, Measurement, with_size
from fastvim.profiling.memory import available_memory, measured_memory, predicted_memory
from fastvim.profiling.stages import block_stages, cycle
from fastvim.profiling.timing import captured, interleaved
from fastvim.training.costs import count_gflops, count_parameters
from fastvim.training.devices import is_out_of_memory


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
        whole: larger sizes get fewer rounds. What would take longer than is left, judged by the
        sizes before (those `before` too), and what does not fit in memory, say so in `problem`.
        """
        self._budget = Budget(self.minutes)
        known = list(before)
        # By the root of the side, not by the pixels: small sizes get all their rounds, and what
        # they leave goes to the larger ones.
        left = sum(resolution**0.5 for resolution in resolutions)
        for resolution in resolutions:
            share = resolution**0.5 / left
            left -= resolution**0.5
            found = self._measure_size(resolution, known, max(0.0, self._budget.left()) * share)
            known = with_size(known, found)
            yield found
            _release(self.device)

    def _stop_if_asked(self) -> None:
        # Asked, not told by an exception: one that comes in a callback of gc.collect is lost.
        if self.should_stop():
            raise Stopped

    def _say(self, message: str) -> None:
        self._stop_if_asked()
        left = max(0.0, self._budget.left()) / 60
        self.report(f"{message}, {left:.1f} min of the budget left")

    def _measure_size(self, resolution, known, seconds: float) -> list[Measurement]:
        begin, batch = time.monotonic(), self.batch or default_batch(resolution)
        rows = [Measurement(name, resolution, batch) for name in self.names]
        built = {row.model: self._build(row) for row in rows}
        present = [row for row in rows if row.problem is None]
        calls = {}
        # All models in one mode, then in the next: where time runs out, what is left compares.
        for mode in self.modes:
            for row in present:
                self._say(f"{mode} at {resolution} pixels: memory of {row.model}")
                with _problems_of(row, mode):
                    self._first_call(row, built[row.model], mode, known, calls)
                built[row.model].zero_grad(set_to_none=True)
                _release(self.device)
        for row in present:
            if any(name == row.model for name, _ in calls):
                self._count_operations(row, built[row.model], known)
        self._time(present, calls, begin + 0.8 * seconds)
        for row in present:
            self._take_apart(row, built[row.model], known, seconds * 0.1)
        return rows

    def _build(self, row: Measurement) -> nn.Module | None:
        """The model, described in its row; None where that says why there is none."""
        if self._budget.left() <= 0:
            row.problem = NO_TIME
            return None
        self._say(f"{row.model} at {row.resolution} pixels: building")
        model = None
        with _problems_of(row, "model"):
            model = models.build(row.model, row.resolution, self.device)
            _describe(row, model)
            row.own_gflops = own_gflops(model, row.resolution)
        return model

    def _has_time(self, row: Measurement, what: str, seconds: float) -> bool:
        """Whether so much is free; where it is not, the row says that there is no time for it."""
        if seconds <= self._budget.free():
            return True
        row.add_problem(f"{NO_TIME} ({what})")
        return False

    def _first_call(self, row: Measurement, model: nn.Module, mode: str, known, calls) -> None:
        """Add the call to time of this model; it runs once, for its memory and to be warm."""
        shape = (row.batch, models.channels(model), row.resolution, row.resolution)
        step = training_step if mode == "training" else forward
        # To be warm, and to be timed.
        if not self._has_time(row, mode, 2 * expected_seconds(row, mode, known)):
            return
        needed = predicted_memory(model, shape, step)
        if needed > available_memory(self.device):
            row.add_problem(f"out of memory ({mode}: needs {needed / 1e9:.1f} GB)")
            return
        images = torch.randn(shape, device=self.device)

        def call() -> None:
            step(model, images)

        begin = time.monotonic()
        row.peak_memory_mb[mode] = measured_memory(call, model, images) / 1e6
        took = time.monotonic() - begin
        calls[row.model, mode] = captured(call, self.device) if mode == "graph" else call
        self._budget.keep((row.model, mode), took)
        parts = _parts_seconds(row, known)
        if parts <= self._budget.free():
            self._budget.keep((row.model, PARTS), parts)

    def _count_operations(self, row: Measurement, model: nn.Module, known) -> None:
        """FLOPs by fvcore, which computes a forward pass of one image."""
        if not self._has_time(row, "FLOPs", expected_seconds(row, "forward", known) / row.batch):
            return
        self._say(f"{row.model} at {row.resolution} pixels: FLOPs")
        image = torch.zeros(
            1, models.channels(model), row.resolution, row.resolution, device=self.device
        )
        with _problems_of(row, "FLOPs"):
            row.gflops = count_gflops(model, image)
            row.literature_gflops = literature_gflops(model, row.gflops)

    def _time(self, rows: list[Measurement], calls: dict, end: float) -> None:
        """Time the calls, mode by mode, until `end` by the monotonic clock."""
        for position, mode in enumerate(self.modes):
            mine = {name: call for (name, m), call in calls.items() if m == mode}
            for name in mine:
                self._budget.release((name, mode))
            share = (end - time.monotonic()) / (len(self.modes) - position)
            timed = [row for row in rows if row.model in mine]
            self._time_mode(mode, timed, mine, min(share, self._budget.free()))

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

    def _take_apart(self, row: Measurement, model: nn.Module, known, seconds: float) -> None:
        """Time the parts of the blocks of a model that has them and was measured."""
        self._budget.release((row.model, PARTS))
        if not isinstance(model, VisionMamba) or not row.seconds:
            return
        if not self._has_time(row, PARTS, _parts_seconds(row, known)):
            return
        self._say(f"{row.model} at {row.resolution} pixels: {PARTS}")
        with _problems_of(row, PARTS):
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


def _parts_seconds(row: Measurement, known: Sequence[Measurement]) -> float:
    """The least that the parts of a block take: to make their inputs, to be warm, to be timed."""
    return 3 * expected_seconds(row, PARTS, known)


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
