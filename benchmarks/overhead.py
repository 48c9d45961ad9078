"""What the suite costs over a bare loop, step by step in turns.

    python benchmarks/overhead.py [--steps 150] [--rounds 3] [--threads 2] [--json FILE]

A run of the suite asks after each of its steps whether to stop; here that is where a bare loop
takes the same step, on the same batch with a model of its own, so that a slow moment of the machine
falls on both. Compared are blocks of ten steps (the suite writes to TensorBoard once in ten), and
apart from them what happens once in a run: loading, counting FLOPs and memory, saved states,
evaluation on the validation and test splits, checkpoint and result. Together they make the overhead
of a run of `pooling-alternation`'s quick profile: fastvim_pico on a 14 x 14 grid, 1,125 batches of
32.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import arguments, finish, spread
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler

from fastvim.data import DataConfig, load
from fastvim.models import create_model
from fastvim.training.recipe import Recipe
from fastvim.training.run import train_run

DATA = DataConfig()
MODEL = {"name": "fastvim_pico", "patch_size": 2}
BLOCK = 10
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


def now() -> dict[str, float]:
    """Every clock."""
    return {name: clock() for name, clock in CLOCKS.items()}


def both(recipe: Recipe) -> dict[str, list[dict[str, float]]]:
    """Seconds by each clock of the suite's and the bare loop's parts: start, steps, end.

    A part of the suite begins where the bare loop's part before it ended.
    """
    seconds: dict[str, list[dict[str, float]]] = {"suite": [], "bare": []}
    mark = now()

    def note(who: str) -> None:
        nonlocal mark
        end = now()
        seconds[who].append({name: end[name] - mark[name] for name in CLOCKS})
        mark = now()

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


def taken_apart(suite: list[float], bare: list[float], saves: int) -> dict:
    """By one clock: seconds of the blocks of ordinary steps, and of all that happens once."""
    # The first step makes the optimiser's state and the second measures memory.
    once = {0, 1, 2, len(bare) - 1, *range(saves + 1, len(bare) - 1, saves)}
    ordinary = [i for i in range(len(bare)) if i not in once]
    blocks = [ordinary[i : i + BLOCK] for i in range(0, len(ordinary) - BLOCK + 1, BLOCK)]
    return {
        "blocks": [(sum(suite[i] for i in b), sum(bare[i] for i in b)) for b in blocks],
        "once": (sum(suite[i] for i in once), sum(bare[i] for i in once)),
    }


def main() -> None:
    """Measure and print."""
    given = arguments(__doc__, rounds=3, steps=150)
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
        parts = [
            taken_apart(
                [part[clock] for part in run["suite"]], [p[clock] for p in run["bare"]], saves
            )
            for run in runs
        ]
        blocks = [block for part in parts for block in part["blocks"]]
        steps = spread([100 * (suite / bare - 1) for suite, bare in blocks])
        step = statistics.median(bare for _, bare in blocks) / BLOCK
        added = spread([suite - bare for suite, bare in (part["once"] for part in parts)])
        once = statistics.median(part["once"][1] for part in parts)
        total = steps["median"] * QUICK_STEPS * step + 100 * added["median"]
        total /= QUICK_STEPS * step + once
        print(
            f"{clock:9}  {1e3 * step:.1f} ms a bare step; the suite's {steps['median']:+.2f} % "
            f"({_range(steps)}, {len(blocks)} blocks of {BLOCK}); once a run {once:.2f} s, "
            f"the suite's {added['median']:+.2f} s ({_range(added)}, {len(runs)} runs); "
            f"a quick run of {QUICK_STEPS} steps {total:+.2f} %"
        )
        results.append(
            {
                "title": f"overhead by the {clock} clock",
                "bare step, ms": 1e3 * step,
                "steps, % more": steps,
                "once a run, s": once,
                "once a run, s more": added,
                "quick run, % more": total,
            }
        )
    finish(results, given.json)


def _range(values: dict) -> str:
    low, high = values["quartiles"]
    return f"quartiles {low:+.2f} to {high:+.2f}"


if __name__ == "__main__":
    main()
