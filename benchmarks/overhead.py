"""What the suite costs over a bare loop: whole runs of the same steps, taken in turns.

    python benchmarks/overhead.py [--steps 60] [--pairs 5]

Both load the packaged images, build the same model, take the same optimiser steps on the same
batches (the quick profile's: fastvim_pico on a 14 x 14 grid, batch 64) and evaluate on the
validation and test splits. The suite adds history, TensorBoard, gradient norms, saved states,
costs, checkpoint and result. Printed: the median seconds of each, and of the ratios of
neighbours, by the wall clock and by the processor's.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler

from fastvim.data import DataConfig, load
from fastvim.models import create_model
from fastvim.training.recipe import Recipe
from fastvim.training.run import train_run

DATA = DataConfig()
MODEL = "fastvim_pico"


def bare(recipe: Recipe) -> float:
    """A loop as one writes it for one experiment; returns the test accuracy in percent."""
    data = load(DATA)
    model = create_model(MODEL, seed=0)
    optimizer = create_optimizer_v2(
        model, "adamw", lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True
    )
    schedule = CosineLRScheduler(
        optimizer, recipe.steps, lr_min=recipe.min_lr, warmup_t=10, t_in_epochs=False
    )
    criterion = LabelSmoothingCrossEntropy(recipe.smoothing)
    batches = data.train_batches(0, 0, recipe.batch_size)
    for step, (images, labels, _) in zip(range(recipe.steps), batches, strict=False):
        schedule.step_update(step)
        optimizer.zero_grad()
        criterion(model(images), labels).backward()
        optimizer.step()
    model.eval()
    for split in ("validation", "test"):
        right = loss = 0.0
        with torch.no_grad():
            for images, labels, _ in data.evaluation_batches(split, recipe.batch_size):
                logits = model(images)
                right += (logits.argmax(dim=1) == labels).sum().item()
                loss += F.cross_entropy(logits, labels, reduction="sum").item()
    return 100 * right / data.split_sizes["test"]


def suite(recipe: Recipe) -> float:
    """The same through `train_run`."""
    with tempfile.TemporaryDirectory() as folder:
        result = train_run(
            task="classification",
            data=DATA,
            model={"name": MODEL},
            training=recipe,
            seed=0,
            directory=Path(folder),
            report=lambda event: None,
            should_stop=lambda: False,
        )
    return result["metrics"]["top1"]


def timed(function, recipe: Recipe) -> tuple[float, float]:
    """Seconds by the wall clock and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    function(recipe)
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    recipe = Recipe(
        epochs=1, steps=options.steps, batch_size=64, lr=2e-3, warmup_epochs=0.2, warmup_lr=0
    )
    for function in (bare, suite):
        function(recipe.model_copy(update={"steps": 3}))
    times: dict = {bare: [], suite: []}
    for pair in range(options.pairs):
        # Who goes first changes, so that a machine that slows down favours nobody.
        for function in (bare, suite) if pair % 2 else (suite, bare):
            times[function].append(timed(function, recipe))
    for clock, name in enumerate(("wall", "processor")):
        ratios = [s[clock] / b[clock] for b, s in zip(times[bare], times[suite], strict=True)]
        medians = [statistics.median(t[clock] for t in times[f]) for f in (bare, suite)]
        print(
            f"{name:9}  bare {medians[0]:6.2f} s  suite {medians[1]:6.2f} s  "
            f"overhead {100 * (statistics.median(ratios) - 1):+.1f} %  "
            f"(pairs {', '.join(f'{100 * (ratio - 1):+.1f}' for ratio in ratios)})"
        )


if __name__ == "__main__":
    main()
