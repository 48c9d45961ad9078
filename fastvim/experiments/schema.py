"""What an experiment file may hold, and what a run is made of.

An experiment file is a YAML mapping with the fields of `ExperimentFile`. Its `base`, variants
and profiles set values of a run by dotted name (`model.schedule`, `training.lr`); a nested
mapping means the same as dotted names. A run is a `RunConfig`.
"""

import difflib
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from fastvim.data.config import DataConfig
from fastvim.errors import nearest
from fastvim.models.config import TIMM_PREFIX, Extent, MaskingConfig, ModelConfig
from fastvim.training.recipe import Recipe

MAX_RUNS = 10_000
LIST_KEYS = "fastvim schema --keys"
INTERPOLATE = "interpolate_positions"
# Keys of `model` that only timm's vision transformers have.
TRANSFORMER_KEYS = ("embed_dim", "num_heads")
SECTIONS = {"data": DataConfig, "model": ModelConfig, "training": Recipe, "masking": MaskingConfig}

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
MAX_SEED = 2**31 - 1
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Seeds = Annotated[int, Field(ge=1, le=1000)] | Annotated[list[Seed], Field(min_length=1)]
Task = Literal["classification", "linear-probe", "masked-autoencoding"]
Metric = Literal["top1", "top5", "loss"]


class TimmConfig(BaseModel):
    """A model of the timm library, `model.name: timm/<name>`, for comparison.

    The fields from `class_token` on are for vision transformers (vit_*, deit_*), whose own values
    hold where they are null. `class_token: none` is mean pooling of normalised tokens.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_size: Extent = (224, 224)
    in_channels: int = Field(3, ge=1)
    num_classes: int = Field(1000, ge=1)
    drop_path_rate: float = Field(0.0, ge=0, lt=1)
    class_token: Literal["none"] | None = None
    patch_size: int | None = Field(None, ge=1, le=65536)
    embed_dim: int | None = Field(None, ge=1, le=65536)
    depth: int | None = Field(None, ge=1, le=1024)
    num_heads: int | None = Field(None, ge=1, le=1024)


class RunConfig(BaseModel):
    """Everything that decides one run, but its seed.

    `masking` belongs to the task masked-autoencoding, `pretrained` to the others.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Task = "classification"
    data: DataConfig
    model_name: str
    model: ModelConfig | TimmConfig
    training: Recipe
    masking: MaskingConfig | None = None
    pretrained: "Pretrained | None" = None

    def nested(self) -> dict:
        """As JSON values, in a YAML file's sections: task, data, model (with name), training;
        masking and pretrained where the run has them."""
        parts = {"task", "data", "model", "training", "masking"}
        values = self.model_dump(mode="json", include=parts)
        values["model"] = {"name": self.model_name, **values["model"]}
        if values["masking"] is None:
            del values["masking"]
        if self.pretrained is not None:
            values["pretrained"] = self.pretrained.nested()
        return values

    def flat(self) -> dict[str, Any]:
        """The same by dotted name."""
        return _flat(self.nested(), "")

    @classmethod
    def from_nested(cls, values: dict) -> "RunConfig":
        """The inverse of `nested`; ValueError where the values are not a run's."""
        values = dict(values)
        model = dict(values["model"])
        name = model.pop("name")
        kind = TimmConfig if name.startswith(TIMM_PREFIX) else ModelConfig
        if values.get("pretrained") is not None:
            run = dict(values["pretrained"])
            interpolate = run.pop(INTERPOLATE)
            values["pretrained"] = Pretrained(
                run=cls.from_nested(run), interpolate_positions=interpolate
            )
        return cls(**{**values, "model_name": name, "model": kind(**model)})


class Pretrained(BaseModel):
    """The run whose encoder another one starts from; it has the same seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: RunConfig
    # Whether position embeddings may be interpolated to another image size.
    interpolate_positions: bool = False

    def nested(self) -> dict:
        """The sections of the run, and what is done with its weights."""
        return {**self.run.nested(), INTERPOLATE: self.interpolate_positions}


def _flat(values: dict, prefix: str) -> dict[str, Any]:
    # No value of a run is itself a mapping.
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


class ExperimentFile(BaseModel):
    """The fields of an experiment file.

    With `extends` (the name of a shipped ablation, or a file), what is absent comes from there;
    `base`, variants and profiles are merged by dotted name, and a variant or profile set to null
    is left out. Its own `base` and `seeds` are stronger than the profiles that come from there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name | None = Field(None, description="Names the results; the file's name if absent.")
    extends: str | None = Field(None, description="Another ablation, by name or file.")
    question: str | None = Field(None, description="What the experiment is to answer.")
    claim: Name | None = Field(None, description="The claim of claims.yaml that it tests.")
    base: dict[str, Any] | None = Field(None, description="What all variants share.")
    baseline: Name | dict[Name, Name] | None = Field(
        None, description="The variant that others are compared with; or variant: its baseline."
    )
    variants: dict[Name, dict[str, Any] | None] | None = Field(
        None, description="Each variant: its values by dotted name; {} to keep the base."
    )
    seeds: Seeds | None = Field(None, description="A count (0, 1, ...) or a list of seeds.")
    metric: Metric | None = Field(None, description="The test metric that is compared.")
    profiles: dict[Name, dict[str, Any] | None] | None = Field(
        None,
        description="Where and how long: values by dotted name, `seeds`, and under "
        "`variants` (name, or a pattern such as finetune-*) what it changes of those alone.",
    )
    default_profile: Name | None = Field(None, description="The profile used when none is named.")


def known_keys() -> list[str]:
    """Every dotted name that a run has."""
    names = [f"{section}.{key}" for section, kind in SECTIONS.items() for key in kind.model_fields]
    names = ["task", "model.name", *names, *(f"model.{key}" for key in TRANSFORMER_KEYS)]
    return [*names, f"pretrained.{INTERPOLATE}", *(f"pretrained.{name}" for name in names)]


def unknown_key(key: str) -> str:
    """What to say of a dotted name that no run has: the nearest one that exists."""
    known = known_keys()
    section, _, field = key.lower().rpartition(".")
    inside = [name for name in known if name.startswith(f"{section}.")]
    if section and inside:
        # Fields of one section are nearer to each other than whole names with their section.
        close = difflib.get_close_matches(f"{section}.{field}", inside, n=1, cutoff=0.7)
        return f", did you mean {close[0]!r}?" if close else f"; see `{LIST_KEYS}`"
    owners = [name for name in known if name.rpartition(".")[2] == field]
    names = [*known, *{name.partition(".")[0] for name in known}]
    hint = f", did you mean {owners[0]!r}?" if owners else nearest(key.lower(), names)
    return hint or f"; see `{LIST_KEYS}`"


def plain_reason(message: str) -> str:
    """A message of pydantic in the words of YAML."""
    message = message.removeprefix("Value error, ")
    return message.replace("valid dictionary", "mapping").replace("valid tuple", "list")


def json_schema() -> dict:
    """A JSON Schema of experiment files for editors: fields, and dotted and nested names."""
    schema = ExperimentFile.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    sections, keys = {}, {}
    for section, kind in SECTIONS.items():
        part = kind.model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(part.pop("$defs", {}))
        properties = dict(part["properties"])
        if section == "model":
            properties = {"name": {"type": "string", "title": "Preset or timm/<name>"}} | properties
            scale = properties["pooling_scale"]
            properties["pooling_scale"] = {"anyOf": [scale, {"const": "auto"}]}
            timm = TimmConfig.model_json_schema()["properties"]
            for key in ("class_token", "patch_size", "depth"):  # null: the model's own.
                properties[key] = {"anyOf": [properties[key], timm[key]]}
            properties |= {key: timm[key] for key in TRANSFORMER_KEYS}
        sections[section] = _object(properties)
        keys |= {f"{section}.{key}": value for key, value in properties.items()}
    keys["task"] = {"enum": list(get_args(Task))}
    own = {**sections, **keys, INTERPOLATE: {"type": "boolean"}}
    keys |= {f"pretrained.{key}": value for key, value in own.items()}
    sections["pretrained"] = {"anyOf": [_object(own), {"type": "null"}]}
    settings = _object({**sections, **keys})
    definitions["settings"] = settings
    definitions["profile"] = {
        **settings,
        "properties": {
            **settings["properties"],
            "seeds": schema["properties"]["seeds"],
            "variants": {"type": "object", "additionalProperties": {"$ref": "#/$defs/settings"}},
        },
    }
    optional = {"anyOf": [{"$ref": "#/$defs/settings"}, {"type": "null"}]}
    profile = {"anyOf": [{"$ref": "#/$defs/profile"}, {"type": "null"}]}
    schema["properties"]["base"] = {"$ref": "#/$defs/settings"}
    schema["properties"]["variants"] = {"type": "object", "additionalProperties": optional}
    schema["properties"]["profiles"] = {"type": "object", "additionalProperties": profile}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "fastvim experiment"
    return schema


def _object(properties: dict) -> dict:
    return {"type": "object", "properties": properties, "additionalProperties": False}
