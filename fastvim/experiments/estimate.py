"""How long runs will take: from earlier runs of the same settings, or measured on a few steps."""

import heapq
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass

from fastvim.experiments.plan import loaded
from fastvim.experiments.schema import RunConfig
from fastvim.experiments.store import Run, RunRecord, Store
from fastvim.training.recipe import WITHOUT_EFFECT

# Images of a step that is tried out; more than a step's own are not.
MEASURED_BATCH = 64
SECONDS_TO_MEASURE = 3.0
# Beyond this a step is not tried out: memory would run out or minutes pass.
LARGEST = 2e9


@dataclass(frozen=True)
class Estimate:
    """Seconds that a run will take, None where it cannot be said, and what that rests on."""

    seconds: float | None
    basis: str


def seconds_side_by_side(seconds: Iterable[float], jobs: int) -> float:
    """Seconds until the last run ends, where each of `jobs` takes the next when it is free."""
    ends = [0.0] * jobs
    for each in seconds:
        heapq.heapreplace(ends, ends[0] + each)
    return max(ends)


def estimate(runs: Iterable[Run], store: Store) -> dict[str, Estimate]:
    """Identity -> estimate of each of `runs`, which are to be trained. Writes nothing."""
    earlier = _earlier(store)
    measured: dict[str, Estimate] = {}
    found = {}
    for run in runs:
        key = _key(run.config)
        if key in earlier:
            found[run.identity] = Estimate(earlier[key], "an earlier run")
            continue
        if key not in measured:
            measured[key] = _measure(run.config)
        found[run.identity] = measured[key]
    return found


def _key(config: RunConfig) -> str:
    values = {key: value for key, value in config.flat().items() if key not in WITHOUT_EFFECT}
    return json.dumps(values, sort_keys=True)


def _earlier(store: Store) -> dict[str, float]:
    """Settings -> seconds of the latest finished run that has them, here or in a sibling."""
    stores = [store, *(Store(folder.parent) for folder in store.siblings())]
    records: list[RunRecord] = [record for each in stores for record in each.all_runs()[0]]
    return {
        _key(record.run.config): float(record.result["cost"]["seconds"])
        for record in records
        if record.state == "done" and "seconds" in record.result["cost"]
    }


def _measure(config: RunConfig) -> Estimate:
    from fastvim.training.devices import is_out_of_memory

    grid = getattr(config.model, "grid_size", None)
    if grid is not None:
        tokens = grid[0] * grid[1] * MEASURED_BATCH
        if tokens * config.model.d_inner * config.model.depth > LARGEST:
            return Estimate(None, "too large to try out")
    try:
        per_image = _seconds_per_image(config)
    except (RuntimeError, MemoryError, ValueError) as error:
        reason = "out of memory" if is_out_of_memory(error) else str(error).splitlines()[0][:100]
        return Estimate(None, f"a step could not be tried out: {reason}")
    dataset = loaded(config.data)
    sizes = dataset.split_sizes
    recipe = config.training
    per_epoch = dataset.batches_per_epoch(recipe.batch_size)
    steps = recipe.total_steps(per_epoch)
    evaluations = -(-steps // (per_epoch * recipe.eval_every))
    # A forward pass is about a third of a training step.
    evaluated = evaluations * sizes["validation"] + sizes["test"]
    return Estimate(
        per_image * (steps * recipe.batch_size + evaluated / 3), "a few steps, measured"
    )


def _seconds_per_image(config: RunConfig) -> float:
    import torch

    from fastvim import tasks
    from fastvim.training import devices

    device = devices.choose_device()
    precision = devices.choose_precision(config.training, device)
    task = tasks.create(config.task, config.training, config.masking)
    model = task.build(config.nested()["model"], loaded(config.data), seed=0)
    model.to(device).train()
    batch = min(MEASURED_BATCH, config.training.forward_size)
    images = torch.randn(batch, config.model.in_channels, *config.model.image_size, device=device)
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    times = []
    started = time.perf_counter()
    # The first step fills caches.
    while len(times) < 2 or (
        len(times) < 10 and time.perf_counter() - started < SECONDS_TO_MEASURE
    ):
        began = time.perf_counter()
        with devices.autocast(precision, device):
            loss = task.loss(model, images, task.targets(model, labels, 0, 0, 0))
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    # Other work on the machine only ever makes a step slower.
    return min(times[1:]) / batch
