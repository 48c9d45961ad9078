"""The resolution study: models over image sizes, forward and training step, time and memory."""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import torch
import yaml
from torch import Tensor, nn

from fastvim.errors import UserError
from fastvim.models.backbone import VisionMamba
from fastvim.models.presets import resolve_config
from fastvim.profiling.stages import block_stages
from fastvim.profiling.timing import Timing, interleaved
from fastvim.training.costs import count_gflops, count_parameters, step_memory

MODES = ("forward", "training")
TIMM_PREFIX = "timm/"
# Bytes that a training step keeps for a token and a channel of one block, generously: used only
# to leave out what surely does not fit.
_KEPT_BYTES = 80


@dataclass
class Measurement:
    """One model at one image size. Times in seconds a batch, memory in MB, GFLOPs an image."""

    model: str
    resolution: int
    batch: int
    tokens: int
    steps: int
    parameters: int
    gflops: float | None = None
    seconds: dict[str, Timing] = field(default_factory=dict)
    peak_memory_mb: dict[str, float] = field(default_factory=dict)
    stages: dict[str, Timing] = field(default_factory=dict)
    scan_seconds: float | None = None
    problem: str | None = None

    def images_per_second(self, mode: str) -> float | None:
        timing = self.seconds.get(mode)
        return self.batch / timing.median if timing else None

    def to_dict(self) -> dict:
        rates = {mode: self.images_per_second(mode) for mode in self.seconds}
        return asdict(self) | {"images_per_second": rates}


def default_batch(resolution: int) -> int:
    """8 images at 224 pixels, fewer in proportion to the pixels above."""
    return max(1, round(8 * (224 / resolution) ** 2))


def build(name: str, resolution: int, device: torch.device) -> nn.Module:
    """A preset or `timm/<name>` for square images of `resolution` pixels.

    Settings of a preset may follow its name: `fastvim_tiny:post_ssm_norm=false`.
    """
    if not name.startswith(TIMM_PREFIX):
        preset, *settings = name.split(":")
        overrides = {"image_size": resolution} | dict(_setting(text) for text in settings)
        return VisionMamba(resolve_config(preset, overrides)).to(device)
    import timm

    try:
        model = timm.create_model(name.removeprefix(TIMM_PREFIX), img_size=resolution)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"model {name!r} cannot be built at {resolution} pixels: {error}") from None
    return model.to(device)


def _setting(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"{text!r} is not a setting: write key=value")
    return key, yaml.safe_load(value)


def study(
    names: Sequence[str],
    resolutions: Sequence[int],
    *,
    modes: Sequence[str] = MODES,
    device: torch.device,
    batch: int | None = None,
    repeats: int = 7,
    minutes: float = 10.0,
    report: Callable[[str], None] = lambda message: None,
) -> Iterator[list[Measurement]]:
    """Measure every model at every size; yields the measurements of a size when it is done.

    The models of a size are timed in turn, round by round. `minutes` is the budget of the whole:
    later, larger sizes get fewer rounds, and those for which no time is left, and those that do
    not fit in memory, say so in `problem`.
    """
    end = time.monotonic() + 60 * minutes
    # Time grows with the pixels, so that is how the budget is shared.
    left = sum(resolution**2 for resolution in resolutions)
    for resolution in resolutions:
        share = resolution**2 / left
        left -= resolution**2
        seconds = max(0.0, end - time.monotonic()) * share
        yield _measure_size(names, resolution, modes, device, batch, repeats, seconds, report)
        gc.collect()


def _measure_size(names, resolution, modes, device, batch, repeats, seconds, report):
    batch = batch or default_batch(resolution)
    found, calls, models = [], {}, {}
    for name in names:
        report(f"{name} at {resolution}")
        model = models[name] = build(name, resolution, device)
        row = _describe(name, model, resolution, batch)
        found.append(row)
        if seconds <= 0:
            row.problem = "no time left in the budget"
            continue
        images = torch.randn(batch, _channels(model), resolution, resolution, device=device)
        for mode in modes:
            call = _forward(model, images) if mode == "forward" else _training_step(model, images)
            try:
                if mode == "training":
                    _refuse_what_cannot_fit(model, row)
                row.peak_memory_mb[mode] = _peak_memory(call, model, images) / 1e6
                calls[name, mode] = call
            except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
                if "memory" not in str(error):
                    raise
                row.problem = f"out of memory ({mode})"
        row.gflops = count_gflops(model, images[:1])
    report(f"timing at {resolution}")
    timings = interleaved(calls, device, repeats=repeats, seconds=seconds * 0.6)
    for row in found:
        row.seconds = {
            mode: timings[row.model, mode] for mode in modes if (row.model, mode) in calls
        }
        model = models[row.model]
        if isinstance(model, VisionMamba) and seconds > 0:
            stages = block_stages(model, batch)
            row.stages = interleaved(stages, device, repeats=repeats, seconds=seconds * 0.1)
            row.scan_seconds = row.stages["scan"].median * model.config.depth
    return found


def _describe(name: str, model: nn.Module, resolution: int, batch: int) -> Measurement:
    tokens = steps = 0
    if isinstance(model, VisionMamba):
        tokens = len(model.grid)
        steps = model.layouts[model.schedule[0]].n_steps
    return Measurement(name, resolution, batch, tokens, steps, count_parameters(model))


def _channels(model: nn.Module) -> int:
    if isinstance(model, VisionMamba):
        return model.config.in_channels
    return model.default_cfg["input_size"][0]


def _forward(model: nn.Module, images: Tensor) -> Callable[[], None]:
    def run() -> None:
        model.eval()
        with torch.no_grad():
            model(images)

    return run


def _training_step(model: nn.Module, images: Tensor) -> Callable[[], None]:
    """Forward and backward; the optimiser's step is the same for every model of a size."""

    def run() -> None:
        model.train()
        model.zero_grad(set_to_none=True)
        model(images).float().logsumexp(dim=-1).mean().backward()

    return run


def _peak_memory(call: Callable[[], None], model: nn.Module, images: Tensor) -> float:
    if images.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(images.device)
        call()
        return torch.cuda.max_memory_allocated(images.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return step_memory(call, model, optimizer, [images])


def _refuse_what_cannot_fit(model: nn.Module, row: Measurement) -> None:
    """MemoryError before the operating system would kill the process instead."""
    device = next(model.parameters()).device
    if device.type == "cuda" or not isinstance(model, VisionMamba):
        return
    config = model.config
    needed = _KEPT_BYTES * row.batch * row.tokens * config.d_model * config.depth
    if needed > available_memory():
        raise MemoryError(f"needs about {needed / 1e9:.0f} GB of memory")


def available_memory() -> float:
    """Bytes that the operating system can still give; infinity where it does not say."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
        return 1024.0 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return float("inf")
