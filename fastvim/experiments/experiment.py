"""Experiment files found, read, and put on top of what they extend."""

import fnmatch
import functools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import ValidationError

from fastvim.errors import UserError, nearest
from fastvim.experiments.documents import Document, read_document, shorten
from fastvim.experiments.schema import ExperimentFile, plain_reason
from fastvim.experiments.settings import Layer, read_layer

SUFFIXES = (".yaml", ".yml")
# Rank of a layer: where two layers set a value, the higher one wins. To it is added twice the
# place of the file from the last extended one on, so that a file's base is stronger than the
# profiles that it inherits.
BASE, PROFILE, VARIANT, OF_PROFILE, SET, GRID = 0, 1, 2000, 2500, 3000, 4000
MAX_EXTENDS = 20


@dataclass(frozen=True)
class Experiment:
    """An experiment file with everything that it extends merged in, values not yet checked."""

    file: str
    name: str
    question: str
    claim: str | None
    # The variant that each is compared with; those that others are measured by have none.
    baselines: dict[str, str]
    metric: str
    seeds: tuple[int, ...]
    base: Layer
    variants: dict[str, Layer]
    profiles: dict[str, Layer]
    profile_seeds: dict[str, tuple[int, ...]] = field(default_factory=dict)
    # Profile -> pattern of variants' names -> what it changes of those alone.
    profile_variants: dict[str, dict[str, Layer]] = field(default_factory=dict)
    default_profile: str | None = None


def shipped() -> dict[str, Path]:
    """The experiments that come with the package: name -> file."""
    import fastvim.ablations

    folder = Path(fastvim.ablations.__file__).parent
    files = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    # A leading underscore marks what others extend; the claims are no experiment.
    return {name: f for name, f in files.items() if name != "claims" and name[0] != "_"}


@functools.cache
def claim_names() -> tuple[str, ...]:
    """The claims that an experiment may say it tests: the ids in claims.yaml."""
    import fastvim.ablations

    document = read_document(Path(fastvim.ablations.__file__).parent / "claims.yaml")
    return tuple(claim["id"] for claim in document.value["claims"])


def find(name: str, beside: Path | None = None) -> Path:
    """The file of a shipped ablation's name, or of a path (relative to `beside` if given).

    Raises UserError naming the nearest experiment when there is none.
    """
    looks_like_file = name.endswith(SUFFIXES) or "/" in name or "\\" in name
    if not looks_like_file:
        known = shipped()
        if name in known:
            return known[name]
        raise UserError(
            f"no ablation named {shorten(name)}{nearest(name, known)}; "
            f"there are {', '.join(known)}, or give a .yaml file"
        )
    try:
        path = Path(name).expanduser()
        path = path if beside is None or path.is_absolute() else beside / path
        if path.is_file():
            return path
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot read {shorten(name)}: {error}") from error
    raise UserError(f"no file {path}")


def load(name_or_file: str) -> Experiment:
    """Read an experiment by name or file, following `extends`.

    Raises UserError with file, line and column for anything that is wrong in a file itself;
    values are checked when a plan is made of it.
    """
    chain = _chain(find(name_or_file))
    parts = ("base", "variants", "profiles", "profile_seeds", "profile_variants")
    experiment: dict = {part: {} for part in parts}
    for place, (document, part) in enumerate(reversed(chain)):
        inherited = f" of {Path(document.file).stem}" if place < len(chain) - 1 else ""
        _merge(experiment, document, part, 2 * place, inherited)
    document, own = chain[0]
    return _complete(experiment, document, own)


def _chain(path: Path) -> list[tuple[Document, ExperimentFile]]:
    """The file and what it extends, nearest first."""
    chain: list[tuple[Document, ExperimentFile]] = []
    seen: list[Path] = []
    place = None
    while True:
        try:
            document = read_document(path)
            part = _checked(document)
        except UserError as error:
            raise (
                error if place is None else UserError(f"{error} (extended at {place})")
            ) from None
        chain.append((document, part))
        seen.append(path.resolve())
        if part.extends is None:
            return chain
        place = document.mark(("extends",))
        try:
            path = find(part.extends, beside=path.parent)
        except UserError as error:
            raise UserError(f"{place}: extends: {error}") from None
        if path.resolve() in seen or len(chain) > MAX_EXTENDS:
            files = " -> ".join(str(file.name) for file in [*seen, path])
            raise UserError(f"{place}: extends goes in a circle: {files}")


def _checked(document: Document) -> ExperimentFile:
    for key in document.value:
        if key not in ExperimentFile.model_fields:
            raise UserError(
                f"{document.mark((key,))}: unknown key {shorten(key)}"
                f"{nearest(key.lower(), ExperimentFile.model_fields)}; an experiment has "
                f"{', '.join(ExperimentFile.model_fields)}"
            )
    try:
        return ExperimentFile.model_validate(document.value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = tuple(part for part in first["loc"] if part != "[key]")
        while path and path not in document.marks:
            path = path[:-1]
        name = ".".join(str(part) for part in path)
        reason = plain_reason(first["msg"])
        if name == "seeds":
            reason = "expected a count from 1 to 1000, or a list of seeds (0 or greater)"
        value = document.value
        for part in path:
            value = value[part]
        raise UserError(
            f"{document.mark(path)}: {shorten(name)[1:-1]} = {shorten(value)}: {reason}"
        ) from None


def _merge(
    experiment: dict, document: Document, part: ExperimentFile, rank: int, inherited: str
) -> None:
    for name in ("question", "claim", "baseline", "metric", "seeds", "default_profile"):
        if getattr(part, name) is not None:
            experiment[name] = getattr(part, name)
    if part.seeds is not None:
        experiment["profile_seeds"].clear()
    if part.base is not None:
        layer = read_layer(document, ("base",), f"base{inherited}", BASE + rank)
        experiment["base"] |= layer
    for kind, level in (("variants", VARIANT), ("profiles", PROFILE)):
        for name, values in (getattr(part, kind) or {}).items():
            path = (kind, name)
            if values is None:
                if experiment[kind].pop(name, None) is None:
                    raise UserError(
                        f"{document.mark(path)}: {kind}.{name} is empty; write {{}} if it "
                        "changes nothing (null takes away what an extended file has)"
                    )
                continue
            label = f"{kind[:-1]} {name}{inherited}"
            ignore = ("seeds", "variants") if kind == "profiles" else ()
            layer = read_layer(document, path, label, level + rank, ignore)
            experiment[kind][name] = experiment[kind].get(name, {}) | layer
            if kind == "profiles" and "seeds" in values:
                experiment["profile_seeds"][name] = _profile_seeds(document, name, values["seeds"])
            if kind == "profiles" and "variants" in values:
                merged = experiment["profile_variants"].setdefault(name, {})
                for pattern, found in _profile_variants(document, name, inherited, rank).items():
                    merged[pattern] = merged.get(pattern, {}) | found


def _profile_variants(
    document: Document, profile: str, inherited: str, rank: int
) -> dict[str, Layer]:
    """What a profile changes of some variants: pattern -> layer, stronger than the variants'."""
    path = ("profiles", profile, "variants")
    given = document.value["profiles"][profile]["variants"]
    layers = {}
    for pattern, values in given.items() if isinstance(given, dict) else [(None, given)]:
        if pattern is None or not isinstance(values, dict):
            raise UserError(
                f"{document.mark((*path, pattern))}: profiles.{profile}.variants: expected a "
                "mapping of variants' names, or patterns such as finetune-*, to their values"
            )
        label = f"profile {profile}, {pattern}{inherited}"
        layers[pattern] = read_layer(document, (*path, pattern), label, OF_PROFILE + rank)
    return layers


def _profile_seeds(document: Document, profile: str, seeds: object) -> tuple[int, ...]:
    try:
        return seed_list(ExperimentFile.model_validate({"seeds": seeds}, strict=True).seeds)
    except (ValidationError, UserError):
        raise UserError(
            f"{document.mark(('profiles', profile, 'seeds'))}: profiles.{profile}.seeds = "
            f"{shorten(seeds)}: expected a count from 1 to 1000, or a list of different seeds"
        ) from None


def seed_list(seeds: int | list[int]) -> tuple[int, ...]:
    """A count n means seeds 0 to n-1; a list is taken as it is, UserError if one comes twice."""
    if isinstance(seeds, int):
        return tuple(range(seeds))
    if len(set(seeds)) != len(seeds):
        raise UserError(f"seeds = {shorten(seeds)}: a seed appears twice")
    return tuple(seeds)


def _complete(experiment: dict, document: Document, own: ExperimentFile) -> Experiment:
    file = document.file
    stem = Path(file).stem
    name = own.name
    if name is None:
        try:
            name = ExperimentFile(name=stem).name
        except ValidationError:
            raise UserError(f"{file}: give it a `name`; {shorten(stem)} cannot be one") from None
    if not experiment["base"]:
        raise UserError(f"{file}: there is no `base`: the values that all variants share")
    variants, profiles = experiment["variants"], experiment["profiles"]
    if not variants:
        raise UserError(f"{file}: there are no `variants`")
    baselines = _baselines(document, experiment.get("baseline"), variants)
    if experiment.get("claim") is not None:
        _known(document, "claim", experiment["claim"], claim_names())
    default = experiment.get("default_profile")
    if default is not None:
        _known(document, "default_profile", default, profiles)
    try:
        seeds = seed_list(experiment.get("seeds") or 1)
    except UserError as error:
        raise UserError(f"{document.mark(('seeds',))}: {error}") from None
    result = Experiment(
        file=file,
        name=name,
        question=(experiment.get("question") or "").strip(),
        claim=experiment.get("claim"),
        baselines=baselines,
        metric=experiment.get("metric") or "top1",
        seeds=seeds,
        base=experiment["base"],
        variants=variants,
        profiles=profiles,
        default_profile=default,
    )
    kept = {key: value for key, value in experiment["profile_seeds"].items() if key in profiles}
    layers = {k: v for k, v in experiment["profile_variants"].items() if k in profiles}
    for profile, patterns in layers.items():
        for pattern in patterns:
            path = ("profiles", profile, "variants", pattern)
            # An extended file may speak of variants that this one does away with.
            if path in document.marks and not fnmatch.filter(variants, pattern):
                raise UserError(
                    f"{document.mark(path)}: profiles.{profile}.variants: no variant is called "
                    f"{shorten(pattern)}{nearest(pattern, variants)}"
                )
    return replace(result, profile_seeds=kept, profile_variants=layers)


def _baselines(
    document: Document, given: str | dict[str, str] | None, variants: Iterable[str]
) -> dict[str, str]:
    """variant -> the variant that it is compared with; the first one where none is given."""
    if not isinstance(given, dict):
        baseline = given or next(iter(variants))
        _known(document, "baseline", baseline, variants)
        return {name: baseline for name in variants if name != baseline}
    for name, baseline in given.items():
        _known(document, "baseline", name, variants)
        _known(document, "baseline", baseline, variants)
        if baseline == name:
            raise UserError(f"{document.mark(('baseline', name))}: {name} is its own baseline")
    return dict(given)


def _known(document: Document, key: str, name: str, names: Iterable[str]) -> None:
    names = list(names)
    if name not in names:
        listed = f"; there are {', '.join(names) or 'none'}" if len(names) <= 12 else ""
        raise UserError(
            f"{document.mark((key,))}: {key} = {shorten(name)}: there is none of that name"
            f"{nearest(name, names)}{listed}"
        )
