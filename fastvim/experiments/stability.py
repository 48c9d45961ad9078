"""`fastvim stability`: which runs to make, and how many steps fit into the time there is.

The study is an experiment file, `stability.yaml` in the output folder, made of what was asked and
of what the time allows; `stability.json` keeps both, so that the same command goes on with the
same runs.
"""

import itertools
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import yaml

from fastvim.errors import UserError, nearest
from fastvim.experiments.experiment import Experiment, load
from fastvim.experiments.plan import Plan, loaded, make_plan
from fastvim.experiments.schema import RunConfig
from fastvim.files import write_atomic
from fastvim.models.presets import PRESETS

NAME, CLAIM = "stability", "post-ssm-norm-spikes"
REQUEST_FILE, EXPERIMENT_FILE = "stability.json", "stability.yaml"
# Its rows are the variants of stability.yaml; the folder above gathers them over the ladder.
RUNS_FOLDER = "study"
LETTERS = {"t": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge"}
BACKBONES = {
    "vim": {"model.schedule": [], "model.class_token": "middle"},
    "fastvim": {"model.schedule": ["col", "row"], "model.class_token": "none"},
}
# Factor -> label of each value -> what it sets.
FACTORS: dict[str, dict[str, dict]] = {
    "norm": {
        "with": {"model.post_ssm_norm": True},
        "without": {"model.post_ssm_norm": False},
    },
    "merge": {
        "averaged": {"model.direction_merge": "mean"},
        "added": {"model.direction_merge": "sum"},
    },
    "precision": {
        name: {"training.precision": name} for name in ("float32", "bfloat16", "float16")
    },
    # The published range of delta's initial value, and ten times less and more.
    "delta_init": {
        "delta-published": {"model.dt_min": 1e-3, "model.dt_max": 0.1},
        "delta-small": {"model.dt_min": 1e-4, "model.dt_max": 0.01},
        "delta-large": {"model.dt_min": 1e-2, "model.dt_max": 1.0},
    },
}
# Sizes with a 4 x 4 grid and a batch of 8, so that a step takes a second; 7 x 7 and 16 below.
LARGE = ("base", "large", "huge")
LEAST_STEPS, MOST_STEPS = 30, 2000
# What is left of the budget for what was not measured.
SHARE = 0.85
TIMED_STEPS = 3
# Points of a run's curves in TensorBoard, or as many as it has steps.
POINTS = 200


@dataclass(frozen=True)
class Fit:
    """What the time allows: optimiser steps of each run, seeds, and the ladder.

    `fixed` and `per_step` are measured seconds: beside the steps and for one, over all groups.
    """

    steps: int
    seeds: int
    ladder: tuple[float, ...]
    fixed: float = 0.0
    per_step: float = 0.0

    def seconds(self, steps: int) -> float:
        """Seconds that all runs take with so many steps each."""
        return self.seeds * len(self.ladder) * (self.fixed + steps * self.per_step)


def variant_name(group: str, multiple: float) -> str:
    """`vim-without-lr4` for four times the recipe's learning rate."""
    return f"{group}-lr{multiple:g}"


def log_every(steps: int) -> int:
    """Steps between the points of TensorBoard's curves: few runs are long, and spikes are short."""
    return max(1, steps // POINTS)


class StudyRequest(Protocol):
    """What was asked for, as far as fitting it to the time goes; a dataclass.

    `minutes` is None where the recipe says how long a run is.
    """

    @property
    def ladder(self) -> tuple[float, ...]: ...
    @property
    def seeds(self) -> int: ...
    @property
    def minutes(self) -> float | None: ...
    @property
    def sets(self) -> tuple[str, ...]: ...

    def document(self, fit: Fit) -> dict:
        """The experiment file as a mapping."""


@dataclass(frozen=True)
class Request:
    """What was asked for. `ladder` are multiples of the recipe's learning rate."""

    model: str
    backbones: tuple[str, ...] = ("vim", "fastvim")
    factors: tuple[str, ...] = ("norm",)
    ladder: tuple[float, ...] = (1.0, 4.0, 16.0)
    seeds: int = 2
    minutes: float = 15.0
    sets: tuple[str, ...] = ()

    @property
    def size(self) -> str:
        """The size of the presets. UserError for a model that is neither a letter nor one."""
        name = LETTERS.get(self.model, self.model)
        name = name.removeprefix("fastvim_").removeprefix("vim_")
        if f"vim_{name}" not in PRESETS:
            known = [*LETTERS, *PRESETS]
            raise UserError(
                f"--model {self.model!r}{nearest(self.model, known)}; "
                f"there are {', '.join(LETTERS)} and {', '.join(PRESETS)}"
            )
        return name

    def groups(self) -> dict[str, dict]:
        """Variant without its learning rate -> its settings: `vim-without`, ..."""
        found = {}
        for backbone in self.backbones:
            for values in itertools.product(*(FACTORS[factor].items() for factor in self.factors)):
                name = "-".join([backbone, *(label for label, _ in values)])
                settings = dict(BACKBONES[backbone])
                for _, setting in values:
                    settings |= setting
                found[name] = settings
        return found

    def document(self, fit: Fit) -> dict:
        """The experiment file as a mapping."""
        size = self.size
        small_images = size not in ("tiny", "small", *LARGE)
        lr = 2e-3 if small_images else 1e-3
        groups = self.groups()
        variants, baselines = {}, {}
        for group, settings in groups.items():
            base = group.replace("-without", "-with") if "norm" in self.factors else None
            if base is None:
                base = next(name for name in groups if name.split("-")[0] == group.split("-")[0])
            for multiple in fit.ladder:
                name = variant_name(group, multiple)
                variants[name] = {**settings, "training.lr": float(f"{lr * multiple:.6g}")}
                if base != group:
                    baselines[name] = variant_name(base, multiple)
        return {
            "name": NAME,
            "question": "Where does training become unstable, and what of it does each factor "
            "change?",
            "metric": "loss",
            "seeds": fit.seeds,
            "base": {
                "task": "classification",
                "data": {
                    "name": "fashion-mnist-subset",
                    "validation_images": 16 if size in LARGE else 100,
                    "test_images": 16 if size in LARGE else 100,
                },
                "model": {
                    "name": f"fastvim_{size}",
                    "patch_size": 7 if size in LARGE else 4,
                    "image_size": 28,
                },
                "training": {
                    "optimizer": "adamw",
                    "batch_size": 8 if size in LARGE else 16,
                    "lr": lr,
                    "min_lr": 1e-6,
                    "weight_decay": 0.05,
                    # More epochs than the steps need: the cap ends the run.
                    "epochs": 1000,
                    "steps": fit.steps,
                    "warmup_epochs": 100,
                    "eval_every": 1000,
                    "checkpoint_every": 500,
                    "log_every": log_every(fit.steps),
                    "recorder": True,
                },
            },
            "variants": variants,
            **({"baseline": baselines} if baselines else {}),
        }


def prepare(request: StudyRequest, output: Path) -> tuple[Plan, Fit, bool]:
    """The plan for `output`, what fits, and whether it had been fitted before.

    Times a few steps of every variant where it had not. Raises UserError where the folder holds
    another study, the budget is too small for any or a variant does not fit into memory.
    """
    path = output / REQUEST_FILE
    asked = json.loads(json.dumps(asdict(request)))
    if path.exists():
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
            same = earlier["request"] == asked
            fit = Fit(**{**earlier["fit"], "ladder": tuple(earlier["fit"]["ladder"])})
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: corrupt ({error}); choose another --output") from None
        if not same:
            raise UserError(f"{output} holds a study with other options; choose another --output")
        return _plan(request, fit, output), fit, True
    fit = Fit(LEAST_STEPS, request.seeds, request.ladder)
    if request.minutes is not None:
        fit = fit_to(_costs(_plan(request, fit, output), request), request)
    plan = _plan(request, fit, output)
    write_atomic(path, json.dumps({"request": asked, "fit": asdict(fit)}, indent=1) + "\n")
    return plan, fit, False


def _plan(request: StudyRequest, fit: Fit, output: Path) -> Plan:
    text = yaml.safe_dump(request.document(fit), sort_keys=False)
    write_atomic(output / EXPERIMENT_FILE, "# Written by `fastvim stability`.\n" + text)
    experiment: Experiment = load(str(output / EXPERIMENT_FILE))
    return make_plan(experiment, sets=request.sets)


def fit_to(costs: Sequence[tuple[float, float]], request: StudyRequest) -> Fit:
    """Fit to `request.minutes` runs of (seconds before and after, seconds a step) a group.

    First the steps shrink, then the seeds, then the ladder, from its lower end.
    """
    available = SHARE * 60 * request.minutes
    choices = [(seeds, request.ladder) for seeds in range(request.seeds, 0, -1)]
    choices += [(1, request.ladder[i:]) for i in range(1, len(request.ladder))]
    fixed, per_step = (sum(cost[i] for cost in costs) for i in (0, 1))
    for seeds, ladder in choices:
        runs = seeds * len(ladder)
        steps = math.floor((available / runs - fixed) / per_step)
        if steps >= LEAST_STEPS:
            return Fit(min(steps, MOST_STEPS), seeds, ladder, fixed, per_step)
    needed = (fixed + LEAST_STEPS * per_step) / SHARE / 60
    raise UserError(
        f"--budget {request.minutes:g}: not enough for {LEAST_STEPS} steps of each variant at one "
        f"learning rate; that takes {needed:.3g} minutes, or choose smaller models"
    )


def _costs(plan: Plan, request: StudyRequest) -> list[tuple[float, float]]:
    """Seconds of a run beside its steps, and of one step, for every group: measured."""
    from fastvim.training.devices import is_out_of_memory

    first = variant_name("", request.ladder[0])
    found = []
    for variant in plan.variants:
        if not variant.name.endswith(first):
            continue
        try:
            found.append(_cost(variant.config))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"{variant.name}: out of memory in its first steps; choose smaller models, or "
                f"--set training.batch_size=N below {variant.config.training.batch_size}"
            ) from error
    return found


def _cost(config: RunConfig) -> tuple[float, float]:
    import torch

    from fastvim import tasks
    from fastvim.training import devices
    from fastvim.training.trainer import Trainer

    recipe, data = config.training, loaded(config.data)
    began = time.perf_counter()
    device = devices.choose_device()
    task = tasks.create(config.task, recipe)
    trainer = Trainer(
        task,
        task.build(config.nested()["model"], data, seed=0),
        recipe,
        steps_per_epoch=data.batches_per_epoch(recipe.batch_size),
        seed=0,
        device=device,
        precision=devices.choose_precision(recipe, device),
    )
    built = time.perf_counter() - began
    images, labels, _ = next(iter(data.train_batches(0, 0, recipe.batch_size)))
    images, labels = images.to(device), labels.to(device)
    times = []
    # The first step makes the optimiser's state.
    for step in range(1 + TIMED_STEPS):
        began = time.perf_counter()
        trainer.step(step, images, labels).loss.item()
        times.append(time.perf_counter() - began)
    per_step = statistics.median(times[1:])
    sizes = data.split_sizes
    evaluated = (sizes["validation"] + sizes["test"]) / recipe.batch_size / 3
    # The model is built once more for its FLOPs and written once; the measured step is slower.
    parameters = sum(parameter.nbytes for parameter in trainer.model.parameters())
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return 2 * built + (evaluated + 4) * per_step + parameters / 2e8, per_step
