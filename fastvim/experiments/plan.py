"""From an experiment to its runs: the product of variants, grid values and seeds."""

import fnmatch
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastvim.data import DataConfig, load
from fastvim.errors import UserError, nearest
from fastvim.experiments.cells import cells
from fastvim.experiments.documents import shorten
from fastvim.experiments.experiment import SET, Experiment, seed_list
from fastvim.experiments.forced import check_forced
from fastvim.experiments.identity import run_identity
from fastvim.experiments.pretraining import SECTION, scale_warning
from fastvim.experiments.schema import MAX_RUNS, MAX_SEED, RunConfig
from fastvim.experiments.settings import (
    Layer,
    Setting,
    parse_assignment,
    resolve,
)
from fastvim.experiments.store import Run
from fastvim.experiments.timm_models import check_timm, patch_warning
from fastvim.models.config import TIMM_PREFIX

if TYPE_CHECKING:
    from fastvim.data.dataset import Dataset

BATCH_SIZE = "training.batch_size"


@dataclass(frozen=True)
class Variant:
    """One row of the table: a resolved run without its seed."""

    name: str
    config: RunConfig
    # Where each value came from, by dotted name.
    origins: dict[str, Setting]
    # The variant it is compared with; None for the baseline itself.
    baseline: str | None


@dataclass(frozen=True)
class Plan:
    """What is to be run: every variant with every seed."""

    experiment: Experiment
    profile: str
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]
    # What the user should know before anything is trained.
    warnings: tuple[str, ...] = ()

    def variant(self, name: str) -> Variant:
        """The variant called `name`; UserError with the nearest if there is none."""
        names = {variant.name: variant for variant in self.variants}
        if name not in names:
            raise UserError(
                f"no variant {shorten(name)} in {self.experiment.name}{nearest(name, names)}; "
                f"there are {', '.join(names)}"
            )
        return names[name]


def make_plan(
    experiment: Experiment,
    profile: str | None = None,
    seeds: str | None = None,
    variants: str | None = None,
    sets: Sequence[str] = (),
    grid: Sequence[str] = (),
) -> Plan:
    """Resolve and check every variant.

    Layers, the later the stronger: preset and defaults, base and profile (first of what the file
    extends, then its own), variant, `sets` (key=value), `grid` (key=a,b,c: each value makes a
    further variant of each variant). `seeds` is a count or a list (`3`, `0,3,5`); `variants` a
    list of names.
    Raises UserError for the first value that does not fit.
    """
    profile = _profile(experiment, profile)
    chosen = _chosen(experiment, variants)
    run_seeds = _seeds(experiment, profile, seeds)
    combinations = cells(grid)
    if len(chosen) * len(combinations) * len(run_seeds) > MAX_RUNS:
        total = len(chosen) * len(combinations) * len(run_seeds)
        raise UserError(f"the plan has {total} runs; the limit is {MAX_RUNS}")
    shared = _stronger(experiment.base, experiment.profiles.get(profile, {}))
    given = dict(parse_assignment(text, "--set", SET + i) for i, text in enumerate(sets))
    planned = []
    for name in chosen:
        for suffix, cell in combinations.items():
            settings = shared | _of_variant(experiment, profile, name) | given | cell
            try:
                run, origins = resolve(settings)
            except UserError as error:
                if any(str(error).startswith(setting.place) for setting in settings.values()):
                    raise
                # No value of the file is at fault, but one that is absent.
                raise UserError(f"{experiment.file}: variant {name}: {error}") from None
            baseline = _baseline(experiment.baselines, name, suffix, next(iter(combinations)))
            if baseline is not None and baseline.partition("+")[0] not in chosen:
                baseline = None
            planned.append(Variant(name + suffix, run, origins, baseline))
    return Plan(experiment, profile, run_seeds, tuple(planned), _warnings(planned))


def _stronger(base: Layer, profile: Layer) -> Layer:
    """Both, and where both set a value the one of the higher rank."""
    changes = {
        key: setting
        for key, setting in profile.items()
        if key not in base or setting.rank > base[key].rank
    }
    return base | changes


def _of_variant(experiment: Experiment, profile: str, name: str) -> Layer:
    """A variant's own values, and what the profile changes of them."""
    layer = dict(experiment.variants[name])
    for pattern, changes in experiment.profile_variants.get(profile, {}).items():
        if fnmatch.fnmatchcase(name, pattern):
            layer |= changes
    return layer


def _warnings(variants: Sequence[Variant]) -> tuple[str, ...]:
    said: dict[str, list[str]] = {}
    for variant in variants:
        for find in (scale_warning, patch_warning):
            warning = find(variant.config, variant.origins)
            if warning is not None:
                said.setdefault(warning, []).append(variant.name)
    return tuple(f"{', '.join(names)}: {warning}" for warning, names in said.items())


def _profile(experiment: Experiment, profile: str | None) -> str:
    """The profile's name; `base` where the experiment has none and none is asked for."""
    if profile is None:
        profile = experiment.default_profile
    if profile is None:
        return "base"
    if profile not in experiment.profiles:
        raise UserError(
            f"no profile {shorten(profile)} in {experiment.name}"
            f"{nearest(profile, experiment.profiles)}; "
            f"there are {', '.join(experiment.profiles) or 'none'}"
        )
    return profile


def _chosen(experiment: Experiment, variants: str | None) -> list[str]:
    if variants is None:
        return list(experiment.variants)
    names = [name.strip() for name in variants.split(",") if name.strip()]
    for name in names:
        if name not in experiment.variants:
            raise UserError(
                f"no variant {shorten(name)} in {experiment.name}"
                f"{nearest(name, experiment.variants)}; "
                f"there are {', '.join(experiment.variants)}"
            )
    if not names:
        raise UserError("--variants names none")
    return [name for name in experiment.variants if name in names]


def _seeds(experiment: Experiment, profile: str, seeds: str | None) -> tuple[int, ...]:
    if seeds is None:
        return experiment.profile_seeds.get(profile, experiment.seeds)
    problem = f"--seeds {shorten(seeds)}: expected a count from 1 to 1000, or a list such as 0,3,5"
    if not re.fullmatch(r"\s*\d{1,20}\s*(,\s*\d{1,20}\s*)*,?\s*", seeds):
        raise UserError(problem)
    numbers = [int(part) for part in seeds.split(",") if part.strip()]
    if "," in seeds:
        if max(numbers) > MAX_SEED:
            raise UserError(f"--seeds: the seed {max(numbers)} is above the largest, {MAX_SEED}")
        return seed_list(numbers)
    if not 1 <= numbers[0] <= 1000:
        raise UserError(problem)
    return seed_list(numbers[0])


def _baseline(baselines: Mapping[str, str], name: str, suffix: str, first: str) -> str | None:
    """The variant to compare with: the baseline in the same grid cell; for a variant that has
    none, itself in the first cell."""
    if name in baselines:
        return baselines[name] + suffix
    return None if suffix == first else name + first


def identified_runs(plan: Plan) -> list[Run]:
    """Every run of the plan with its identity, seed by seed, so that pairs are complete early.

    Reads the data sets for their fingerprints; raises UserError where one is missing or damaged,
    or does not fit the model or the batch size, and where FASTVIM_KERNELS forces a backend that
    cannot run here.
    """
    check_forced()
    fingerprints = {v.name: _fingerprint(v) for v in plan.variants}
    before = {v.name: _pretraining_fingerprint(v) for v in plan.variants}
    names = _pretraining_names(plan)
    runs = []
    for seed in plan.seeds:
        for v in plan.variants:
            pretraining = None
            if v.config.pretrained is not None:
                config = v.config.pretrained.run
                identity = run_identity(config, seed, before[v.name])
                pretraining = Run(names[v.name], seed, config, identity, starts_others=True)
            identity = run_identity(
                v.config, seed, fingerprints[v.name], pretraining and pretraining.identity
            )
            runs.append(Run(v.name, seed, v.config, identity, pretraining))
    return runs


def _pretraining_names(plan: Plan) -> dict[str, str]:
    """Variant -> what to call the run it starts from: `pretraining`, and where there are
    several, for which variant first."""
    first: dict[str, str] = {}
    keys = {
        v.name: json.dumps(v.config.pretrained.run.nested(), sort_keys=True)
        for v in plan.variants
        if v.config.pretrained is not None
    }
    for name, key in keys.items():
        first.setdefault(key, name)
    if len(first) == 1:
        return dict.fromkeys(keys, "pretraining")
    return {name: f"pretraining-for-{first[key]}" for name, key in keys.items()}


def _pretraining_fingerprint(variant: Variant) -> str:
    """Of the data of the run that a variant starts from; empty if from none."""
    if variant.config.pretrained is None:
        return ""
    config = variant.config.pretrained.run
    dataset = loaded(config.data)
    _check_batch(dataset, config, variant.origins[f"{SECTION}.{BATCH_SIZE}"], f"{SECTION}.")
    return dataset.fingerprint


def _fingerprint(variant: Variant) -> str:
    dataset = loaded(variant.config.data)
    has = {"num_classes": dataset.num_classes, "in_channels": dataset.in_channels}
    for key, number in has.items():
        given = getattr(variant.config.model, key)
        if given != number:
            setting = variant.origins[f"model.{key}"]
            raise UserError(
                f"{setting.place or setting.layer}: model.{key} = {given}, but {dataset.name} "
                f"has {number}"
            )
    _check_batch(dataset, variant.config, variant.origins[BATCH_SIZE])
    if variant.config.model_name.startswith(TIMM_PREFIX):
        check_timm(variant.config, variant.origins)
    return dataset.fingerprint


def _check_batch(dataset: "Dataset", config: RunConfig, setting: Setting, prefix: str = "") -> None:
    try:
        dataset.batches_per_epoch(config.training.batch_size)
    except UserError as error:
        raise UserError(
            f"{setting.place or setting.layer}: {prefix}{BATCH_SIZE}: {error}"
        ) from None


@functools.lru_cache(maxsize=4)
def loaded(config: DataConfig) -> "Dataset":
    """`fastvim.data.load`, remembered: the variants of a plan mostly share their data."""
    return load(config)
