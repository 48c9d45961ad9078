"""The paper's claims as data: `ablations/claims.yaml`, its schema, and scales.

A scale is where a result was made, as a flat mapping (dataset, image_size, d_model, epochs ...).
A claim names one; evidence is at the same scale when it agrees in everything that one names.
"""

import reprlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fastvim.errors import UserError, nearest

Scalar = str | int | float
Identifier = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9.]+)*$")]
Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

# Commands that test claims without being an experiment file.
COMMANDS = {"profile": "fastvim profile", "stability": "fastvim stability --model b"}
# Claims about these need several runs of each variant.
REPRODUCTION_SEEDS = 5

# An image folder carries no name: this many classes and training images are ImageNet-1k, which
# has 1,281,167 of them, some held out for validation.
IMAGENET_CLASSES, IMAGENET_IMAGES = 1000, 1_200_000


class Claim(BaseModel):
    """One claim.

    `kind`: `difference` (variant - baseline of a metric of trained runs), `value` (a metric of
    `variant` alone), `ratio` (variant / baseline of a cost), `spikes` (counts of loss spikes).
    `direction` is what the variant is claimed to be: `higher` or `lower` than the baseline, or
    `about` the value. `value` is the published number in the metric's units and `tolerance` the
    half-width of what still agrees with it; accuracies and average precision are better when
    higher. `transfers`: whether the direction is claimed beyond
    the published scale, so that evidence elsewhere may speak on it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Identifier
    statement: Text
    source: Text
    kind: Literal["difference", "value", "ratio", "spikes"]
    metric: Text
    unit: Text
    variant: Text
    baseline: Text | None = None
    direction: Literal["higher", "lower", "about"]
    published: Text
    value: Annotated[float, Field(allow_inf_nan=False)] | None = None
    tolerance: Positive | None = None
    scale: dict[str, Scalar]
    transfers: bool = True
    exact: bool = False
    experiments: tuple[Text, ...] = ()
    needs: Text | None = None

    @model_validator(mode="after")
    def _check(self) -> "Claim":
        if (self.value is None) != (self.tolerance is None):
            raise ValueError("value and tolerance are given together or not at all")
        if self.direction == "about" and self.value is None:
            raise ValueError("direction: about needs a value and a tolerance")
        if self.direction == "about" and self.transfers:
            raise ValueError(
                "transfers: a value holds at its own scale only; direction: about needs "
                "transfers: false"
            )
        if (self.kind == "value") != (self.baseline is None):
            raise ValueError("baseline: needed for every kind but value, which has none")
        if self.kind == "value" and self.direction != "about":
            raise ValueError("direction: a claim of kind value is about its value")
        if self.kind == "spikes" and (self.value is not None or self.direction == "about"):
            raise ValueError("kind: spikes are compared by direction, without a value")
        if self.kind == "ratio" and self.value is not None and self.value <= 0:
            raise ValueError("value: a ratio is above 0")
        if self.exact and self.kind != "ratio":
            raise ValueError("exact: only counted costs, of kind ratio, have no spread")
        if bool(self.experiments) == bool(self.needs):
            raise ValueError("experiments, or needs where none is shipped: exactly one of them")
        return self

    def command(self, experiment: str, profile: str | None = None, seeds: int | None = None) -> str:
        """The command line that makes evidence of this claim with `experiment`."""
        if experiment in COMMANDS:
            return COMMANDS[experiment]
        words = f"fastvim ablate {experiment}"
        words += f" --profile {profile}" if profile else ""
        return words + (f" --seeds {seeds}" if seeds else "")

    @property
    def paper_command(self) -> str | None:
        """The command that tests the claim at its own scale; None where nothing shipped does."""
        if not self.experiments:
            return None
        return self.command(self.experiments[0], "paper", REPRODUCTION_SEEDS)


def load_claims(path: str | Path | None = None) -> dict[str, Claim]:
    """Claims by id, from a YAML file with `scales` and `claims`; the shipped one by default.

    A claim's `scale` names an entry of `scales`. Raises UserError naming file and key for
    anything that is wrong, with the nearest valid name for one that is unknown.
    """
    source = resources.files("fastvim.ablations") / "claims.yaml" if path is None else Path(path)
    document = _read(source)
    _only(document, ("scales", "claims"), str(source), "")
    scales, entries = document.get("scales"), document.get("claims")
    if not isinstance(scales, dict) or not isinstance(entries, list):
        raise UserError(f"{source}: expected `scales`, a mapping, and `claims`, a list")
    claims: dict[str, Claim] = {}
    for position, entry in enumerate(entries):
        claim = _claim(entry, scales, f"{source}: claims[{position}]")
        if claim.id in claims:
            raise UserError(f"{source}: claims[{position}].id: {claim.id!r} is there twice")
        claims[claim.id] = claim
    return claims


def find_claim(claims: Mapping[str, Claim], name: str) -> Claim:
    """`claims[name]`, or a UserError with the nearest id."""
    if name not in claims:
        raise UserError(
            f"no claim {name!r}{nearest(name, claims)}; the claims are in ablations/claims.yaml"
        )
    return claims[name]


def scale_from_config(config: Mapping, train_images: int | None = None) -> dict[str, Scalar]:
    """The scale of a run, from its resolved config (sections data, model, training).

    `train_images`, the number of images trained on, lets an image folder be known as ImageNet-1k.
    What the config does not say is absent, and then no claim that names it is at the same scale.
    """
    data, model = config.get("data", {}), config.get("model", {})
    training, pretrained = config.get("training", {}), config.get("pretrained") or {}
    dataset = data.get("name")
    if (
        dataset == "imagefolder"
        and model.get("num_classes") == IMAGENET_CLASSES
        and (train_images or 0) >= IMAGENET_IMAGES
    ):
        dataset = "imagenet-1k"
    found = {
        "dataset": dataset,
        "train_images": train_images,
        "image_size": _side(model.get("image_size", data.get("image_size"))),
        "patch_size": _side(model.get("patch_size")),
        "d_model": model.get("d_model"),
        "depth": model.get("depth"),
        "epochs": training.get("epochs") if training.get("steps") is None else None,
        "steps": training.get("steps"),
        "pretraining_epochs": (pretrained.get("training") or {}).get("epochs"),
    }
    return {key: value for key, value in found.items() if value is not None}


def scale_gaps(claimed: Mapping[str, Scalar], evidence: Mapping[str, Scalar]) -> list[str]:
    """What of the claimed scale the evidence does not match; empty at the same scale."""
    return [
        f"{key} {evidence.get(key, 'not recorded')} for {value}"
        for key, value in claimed.items()
        if evidence.get(key) != value
    ]


def describe_scale(scale: Mapping[str, Scalar]) -> str:
    """A scale in words: `imagenet-1k, image_size 224, epochs 300`."""
    if not scale:
        return "a scale that was not recorded"
    return ", ".join(
        str(value) if key in ("dataset", "device") else f"{key} {value}"
        for key, value in scale.items()
    )


def _side(size) -> Scalar | None:
    """One number for a square, `rows x columns` otherwise."""
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return size[0] if size[0] == size[1] else f"{size[0]}x{size[1]}"
    return size


def _claim(entry, scales: dict, where: str) -> Claim:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected a mapping, not {reprlib.repr(entry)}")
    if isinstance(entry.get("id"), str):
        where = f"{where} ({reprlib.repr(entry['id'])})"
    _only(entry, tuple(Claim.model_fields), where, " ")
    name = entry.get("scale")
    if not isinstance(name, str) or name not in scales:
        raise UserError(
            f"{where} scale: {reprlib.repr(name)} is not one of the scales"
            f"{nearest(str(name)[:100], scales)}; there are {', '.join(map(str, scales))}"
        )
    try:
        return Claim.model_validate({**entry, "scale": scales[name]})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        value = f", not {reprlib.repr(first['input'])}" if key and "input" in first else ""
        raise UserError(f"{where} {key + ': ' if key else ''}{message}{value}") from None


def _only(mapping: dict, allowed: tuple[str, ...], where: str, gap: str) -> None:
    for key in mapping:
        if key not in allowed:
            raise UserError(
                f"{where}:{gap}unknown key {reprlib.repr(key)}{nearest(str(key)[:100], allowed)}; "
                f"allowed are {', '.join(allowed)}"
            )


def _read(source) -> dict:
    try:
        document = yaml.safe_load(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {source}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: not UTF-8 text ({error.reason})") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise UserError(f"{source}{place}: {problem}") from error
    if not isinstance(document, dict):
        raise UserError(f"{source}: expected a mapping with `scales` and `claims`")
    return document
