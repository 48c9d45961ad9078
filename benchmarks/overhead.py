"""What the suite costs over a bare loop, step by step in turns.

    python benchmarks/overhead.py [--steps 200] [--rounds 3] [--threads 2] [--json FILE]

A run of the suite asks after each of its steps whether to stop; here that is where a bare loop
takes the same step, on the same batch with a model of its own, so that a slow moment of the machine
falls on both. Steps are compared in pairs; those that TensorBoard is told of, by default every
tenth, apart from the others. What happens once in a run is compared apart: loading, counting FLOPs
and memory, saved states, evaluation on the validation and test splits, checkpoint and result.
Together they make the overhead of a run of `pooling-alternation`'s quick profile: fastvim_pico on a
14 x 14 grid, 1,125 batches of 32.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from timing import arguments, finish, spread
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler

from fastvim.analysis.intervals import median_interval
from fastvim.data import DataConfig, load
from fastvim.models import create_model
from fastvim.training.recipe import Recipe
from fastvim.training.run import train_run

DATA = DataConfig()
MODEL = {"name": "fastvim_pico", "patch_size": 2}
QUICK_STEPS = 1125
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


class Bare:
    """A loop as one writes it for one experiment, a step at a time."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.data = recipe, load(DATA)
        self.model = create_model(**MODEL, seed=0)
        self.optimizer = create_optimizer_v2(
            self.model, "adamw", lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True
        )
        self.schedule = CosineLRScheduler(
            self.optimizer, recipe.steps, lr_min=recipe.min_lr, warmup_t=10, t_in_epochs=False
        )
        self.criterion = LabelSmoothingCrossEntropy(recipe.smoothing)
        self.batches = enumerate(self.data.train_batches(0, 0, recipe.batch_size))

    def step(self) -> None:
        """The next batch."""
        number, (images, labels, _) = next(self.batches)
        self.schedule.step_update(number)
        self.optimizer.zero_grad()
        self.criterion(self.model(images), labels).backward()
        self.optimizer.step()

    def finish(self) -> None:
        """Accuracy and loss on the validation and test splits."""
        self.model.eval()
        for split in ("validation", "test"):
            right = loss = 0.0
            with torch.no_grad():
                for images, labels, _ in self.data.evaluation_batches(split, 32):
                    logits = self.model(images)
                    right += (logits.argmax(dim=1) == labels).sum().item()
                    loss += F.cross_entropy(logits, labels, reduction="sum").item()


def both(recipe: Recipe) -> dict[str, list[dict[str, float]]]:
    """Seconds by each clock of the suite's and the bare loop's parts: start, steps, end.

    A part of the suite begins where the bare loop's part before it ended.
    """
    seconds: dict[str, list[dict[str, float]]] = {"suite": [], "bare": []}
    mark: dict[str, float] = {}

    def begin() -> None:
        # The wall's clock last here and first in `note`: reading the processor's waits for what
        # runs on the other cores, up to 2 ms.
        mark.update({name: clock() for name, clock in reversed(CLOCKS.items())})

    def note(who: str) -> None:
        end = {name: clock() for name, clock in CLOCKS.items()}
        seconds[who].append({name: end[name] - mark[name] for name in CLOCKS})
        begin()

    begin()
    bare = Bare(recipe)
    note("bare")

    def take_bare_step() -> bool:
        note("suite")
        bare.step()
        note("bare")
        return False

    with tempfile.TemporaryDirectory() as folder:
        train_run(
            task="classification",
            data=DATA,
            model=MODEL,
            training=recipe,
            seed=0,
            directory=Path(folder),
            # The suite's start ends where its first step begins.
            report=lambda event: note("suite") if event["event"] == "start" else None,
            should_stop=take_bare_step,
        )
        note("suite")
    bare.step()
    bare.finish()
    note("bare")
    return seconds


def taken_apart(seconds: dict, clock: str, saves: int) -> tuple[dict, tuple[float, float]]:
    """By one clock, seconds of (suite, bare): of ordinary steps by number, and of the rest."""
    pairs = [
        (suite[clock], bare[clock])
        for suite, bare in zip(seconds["suite"], seconds["bare"], strict=True)
    ]
    last = len(pairs) - 1
    # The first step makes the optimiser's state, the second measures memory.
    once = {0, 1, 2, last, *range(saves + 1, last, saves)}
    suite, bare = (sum(pairs[i][who] for i in once) for who in (0, 1))
    return {i: pair for i, pair in enumerate(pairs) if i not in once}, (suite, bare)


def main() -> None:
    """Measure and print."""
    given = arguments(__doc__, rounds=3, steps=200)
    # As many saved states as in the quick profile, of which every 500th step saves one.
    saves = max(1, given.steps // 3)
    recipe = Recipe(
        epochs=1,
        steps=given.steps,
        batch_size=32,
        lr=3e-3,
        warmup_epochs=0.2,
        checkpoint_every=saves,
    )
    both(recipe.model_copy(update={"steps": 5}))
    runs = [both(recipe) for _ in range(given.rounds)]
    results = []
    for clock in CLOCKS:
        parts = [taken_apart(run, clock, saves) for run in runs]
        percent: dict[bool, list[float]] = {False: [], True: []}  # by whether it was logged
        for ordinary, _ in parts:
            for number, (suite, bare) in ordinary.items():
                percent[number % recipe.log_every == 0].append(100 * (suite / bare - 1))
        steps, sure = spread(percent[False]), median_interval(np.array(percent[False]))
        logged = spread(percent[True])
        mean = steps["median"] + (logged["median"] - steps["median"]) / recipe.log_every
        step = statistics.median(bare for ordinary, _ in parts for _, bare in ordinary.values())
        added = spread([suite - bare for _, (suite, bare) in parts])
        once = statistics.median(bare for _, (_, bare) in parts)
        total = mean * QUICK_STEPS * step + 100 * added["median"]
        total /= QUICK_STEPS * step + once
        between = f"quartiles {_range(steps['quartiles'])}"
        if sure is not None:
            between += f"; 95 % interval of the median {_range(sure)}"
        print(
            f"{clock}: {1e3 * step:.1f} ms a bare step, the suite's {steps['median']:+.2f} % "
            f"({between}; {len(percent[False])} pairs),\n  {logged['median']:+.2f} % where it "
            f"logs ({_range(logged['quartiles'])}; {len(percent[True])} pairs)\n"
            f"  once a run {once:.2f} s, the suite's {added['median']:+.2f} s "
            f"({_range(added['quartiles'])}, {len(runs)} runs)\n"
            f"  a quick run of {QUICK_STEPS} steps {total:+.2f} %"
        )
        results.append(
            {
                "title": f"overhead by the {clock} clock",
                "bare step, ms": 1e3 * step,
                "steps, % more": steps,
                "logged steps, % more": logged,
                "once a run, s": once,
                "once a run, s more": added,
                "quick run, % more": total,
            }
        )
    finish(results, given.json)


def _range(ends) -> str:
    return f"{ends[0]:+.2f} to {ends[1]:+.2f}"


if __name__ == "__main__":
    main()
