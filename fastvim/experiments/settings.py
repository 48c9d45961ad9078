"""Values by dotted name, each with where it came from, and their way into a `RunConfig`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from fastvim.data.config import DataConfig
from fastvim.errors import UserError, nearest
from fastvim.experiments.documents import Document, parse_value, shorten
from fastvim.experiments.pretraining import (
    OPTIONS,
    SECTION,
    check_pretrained,
    pretraining_layer,
    with_scale,
)
from fastvim.experiments.schema import (
    INTERPOLATE,
    SECTIONS,
    Pretrained,
    RunConfig,
    Task,
    TimmConfig,
    known_keys,
    plain_reason,
    unknown_key,
)
from fastvim.models.config import TIMM_PREFIX, MaskingConfig, ModelConfig
from fastvim.models.presets import PRESETS
from fastvim.training.recipe import Recipe

NESTED = (*SECTIONS, SECTION, *(f"{SECTION}.{section}" for section in SECTIONS))
# Fields of `model` that hold for whatever model a higher layer names.
OF_EVERY_MODEL = ("image_size", "in_channels", "num_classes", "drop_path_rate")
TRANSFORMERS = ("vit_", "deit_")
# The layer of what follows from the data set.
DATA_SET = "data set"
# Fields that are checked together: those that a message about one may be due to.
TOGETHER = {
    "image_size": ("patch_size", "stride"),
    "patch_size": ("image_size",),
    "class_token": ("schedule",),
    "schedule": ("class_token",),
    "dt_min": ("dt_max",),
    "micro_batch_size": ("batch_size",),
    "warmup_epochs": ("epochs",),
    "min_lr": ("lr", "lr_batch", "batch_size"),
    "warmup_lr": ("lr", "lr_batch", "batch_size"),
    "weight_decay_end": ("weight_decay",),
    "betas": ("optimizer",),
    "padding": ("scale",),
    "root": ("name",),
    "channels": ("name",),
}


@dataclass(frozen=True)
class Setting:
    """A value, the layer that set it (`base`, `profile quick`, ...) and its place."""

    value: Any
    layer: str
    place: str
    rank: int = 0


Layer = dict[str, Setting]


def read_layer(document: Document, path: tuple, layer: str, rank: int, ignore=()) -> Layer:
    """The mapping at `path` of a document as a layer: nested mappings become dotted names."""
    value: Any = document.value
    for part in path:
        value = value[part]
    result: Layer = {}

    def walk(node: Mapping, here: tuple, prefix: str) -> None:
        for key, child in node.items():
            name = f"{prefix}{key}"
            place = str(document.mark((*here, key)))
            if not prefix and key in ignore:
                continue
            if isinstance(child, Mapping) and name in NESTED:
                walk(child, (*here, key), f"{name}.")
                continue
            if name in NESTED and not (name == SECTION and child is None):
                raise UserError(f"{place}: {name} is a section: give it a mapping of its keys")
            if name not in (SECTION, *known_keys()):
                raise UserError(f"{place}: unknown key {shorten(name)}{unknown_key(name)}")
            if name in result:
                raise UserError(f"{place}: {name} is set twice (first at {result[name].place})")
            result[name] = Setting(child, layer, place, rank)

    walk(value, path, "")
    return result


def split_assignment(text: str, option: str) -> tuple[str, str, str]:
    """`key=value` as key, text of the value, and what to call the place in errors."""
    key, equals, value = text.partition("=")
    key, place = key.strip(), f"{option} {shorten(text)[1:-1]}"
    if not equals:
        raise UserError(f"{place}: expected key=value")
    if key in NESTED:
        inside = next(name for name in known_keys() if name.startswith(f"{key}."))
        raise UserError(f"{place}: {key} is a section: set one of its keys, such as {inside}")
    if key not in known_keys():
        raise UserError(f"{place}: unknown key {shorten(key)}{unknown_key(key)}")
    return key, value, place


def parse_assignment(text: str, option: str, rank: int) -> tuple[str, Setting]:
    """`key=value` of a `--set`, the value read as YAML."""
    key, value, place = split_assignment(text, option)
    return key, Setting(parse_value(value, place), option, place, rank)


def resolve(settings: Layer, prefix: str = "") -> tuple[RunConfig, dict[str, Setting]]:
    """The run that `settings` describe, and the origin of each of its values by dotted name.

    Values that nobody set are the model preset's or the default of their section; image size,
    channels and classes of the model follow the data. `prefix` stands before names in errors.
    Raises UserError that names the place of the value at fault.
    """
    sections = {name: _section(settings, name) for name in SECTIONS}
    task = _task(settings, prefix)
    pretrained, origins = _pretrained(settings)
    _share_image_size(sections)
    data = _validated(DataConfig, f"{prefix}data", sections["data"])
    chosen = sections["model"].get("name")
    of_timm = chosen is not None and str(chosen.value).startswith(TIMM_PREFIX)
    if "pooling_scale" in sections["model"] and not of_timm:
        scale = with_scale(sections["model"]["pooling_scale"], pretrained)
        sections["model"]["pooling_scale"] = scale
    name, model = _model(sections["model"], data, f"{prefix}model")
    training = _validated(Recipe, f"{prefix}training", sections["training"])
    _check_mixing(data, training, settings, prefix)
    masking = _masking(task, sections, model, name, prefix)
    run = RunConfig(
        task=task,
        data=data,
        model_name=name,
        model=model,
        training=training,
        masking=masking,
        pretrained=pretrained,
    )
    check_pretrained(run, settings)
    if run.training.layer_decay is not None and task != "classification":
        place = settings["training.layer_decay"].place
        raise UserError(f"{place}: {prefix}training.layer_decay does not apply to {task}")
    found = {
        key: origins[key] if key in origins else _origin(key, settings, sections, name)
        for key in run.flat()
    }
    return run, found


def _check_mixing(data: DataConfig, training: Recipe, settings: Layer, prefix: str) -> None:
    for key in ("mixup", "cutmix"):
        if getattr(data, key) and training.batch_size % 2:
            setting = settings["training.batch_size"]  # By default it is even.
            raise UserError(
                f"{setting.place}: {prefix}training.batch_size = {training.batch_size}: "
                f"{prefix}data.{key} pairs the images of a batch, so it must be even"
            )


def _task(settings: Layer, prefix: str) -> str:
    given = settings.get("task")
    if given is None:
        return "classification"
    names = get_args(Task)
    if given.value not in names:
        raise UserError(
            f"{given.place}: {prefix}task = {shorten(given.value)}: there is no such task"
            f"{nearest(str(given.value), names)}; there are {', '.join(names)}"
        )
    return given.value


def _pretrained(settings: Layer) -> tuple[Pretrained | None, dict[str, Setting]]:
    """The run that this one starts from, and the origins of its values."""
    layer = pretraining_layer(settings)
    if layer is None:
        return None, {}
    layer.setdefault("task", Setting("masked-autoencoding", "default", ""))
    default = Setting(False, "default", "")
    interpolate = layer.pop(INTERPOLATE, default)
    if not isinstance(interpolate.value, bool):
        raise UserError(
            f"{interpolate.place}: {SECTION}.{INTERPOLATE} = {shorten(interpolate.value)}: "
            "expected true or false"
        )
    run, origins = resolve(layer, f"{SECTION}.")
    origins[INTERPOLATE] = interpolate
    pretrained = Pretrained(run=run, interpolate_positions=interpolate.value)
    return pretrained, {f"{SECTION}.{key}": origin for key, origin in origins.items()}


def _masking(
    task: str,
    sections: dict[str, Layer],
    model: ModelConfig | TimmConfig,
    name: str,
    prefix: str,
) -> MaskingConfig | None:
    """How a masked autoencoder hides tokens; None for another task."""
    section = sections["masking"]
    if task != "masked-autoencoding":
        for key, setting in section.items():
            raise UserError(f"{setting.place}: {prefix}masking.{key} does not apply to {task}")
        return None
    for key in ("mixup", "cutmix"):
        setting = sections["data"].get(key)
        if setting is not None and setting.value:
            raise UserError(f"{setting.place}: {prefix}data.{key} does not apply to {task}")
    masking = _validated(MaskingConfig, f"{prefix}masking", section)
    if isinstance(model, TimmConfig):
        if not name.removeprefix(TIMM_PREFIX).startswith(TRANSFORMERS):
            raise UserError(f"{prefix}model.name = {name}: only vit_* and deit_* can do {task}")
        if model.class_token is None or model.patch_size is None:
            raise UserError(
                f"{prefix}model.name = {name}: {task} needs model.class_token: none and a "
                "model.patch_size"
            )
        # The rest of a transformer has no say in what can be masked.
        model = ModelConfig(image_size=model.image_size, patch_size=model.patch_size)
    try:
        masking.check(model)
        masking.check_loss(model)
    except UserError as error:
        key, _, reason = str(error).partition(": ")
        kind = "masking" if key in MaskingConfig.model_fields else "model"
        place = f"{sections[kind][key].place}: " if key in sections[kind] else ""
        raise UserError(f"{place}{prefix}{kind}.{key}: {reason}") from None
    return masking


def _section(settings: Layer, section: str) -> Layer:
    prefix = f"{section}."
    return {key.removeprefix(prefix): s for key, s in settings.items() if key.startswith(prefix)}


def _share_image_size(sections: dict[str, Layer]) -> None:
    """Images are as large as the model takes them: either section may say so."""
    data, model = sections["data"].get("image_size"), sections["model"].get("image_size")
    if data and not model:
        sections["model"]["image_size"] = data
    elif model and not data:
        sections["data"]["image_size"] = model
    elif data and model and _pair(data.value) != _pair(model.value):
        later, other = (model, data) if model.rank >= data.rank else (data, model)
        raise UserError(
            f"{later.place}: model.image_size = {shorten(model.value)} and data.image_size = "
            f"{shorten(data.value)} differ ({other.place}); set one of them"
        )


def _pair(size: object) -> object:
    return [size, size] if isinstance(size, int) else size


def _model(section: Layer, data: DataConfig, title: str) -> tuple[str, ModelConfig | TimmConfig]:
    chosen = section.pop("name", None)
    if chosen is None:
        raise UserError("the base sets no model.name: name a preset, such as fastvim_nano")
    name = chosen.value
    follow = {"image_size": data.image_size, "in_channels": data.channels}
    classes = _classes(data)
    if classes is not None:
        follow["num_classes"] = classes
    defaults = {key: Setting(value, DATA_SET, data.name) for key, value in follow.items()}
    for key, setting in defaults.items():
        section.setdefault(key, setting)
    if isinstance(name, str) and name.startswith(TIMM_PREFIX):
        transformer = name.removeprefix(TIMM_PREFIX).startswith(TRANSFORMERS)
        if transformer and "patch_size" in section:
            section["patch_size"] = _side(section["patch_size"])
        for key in [key for key in section if key not in OF_EVERY_MODEL]:
            if key == "patch_size" and transformer:
                continue  # A yardstick has the token grid of the models it stands beside.
            # What else a file's lower layer said of our models does not concern timm's.
            if section[key].rank < chosen.rank and section[key].layer not in OPTIONS:
                del section[key]
            elif not transformer or key not in TimmConfig.model_fields:
                raise UserError(f"{section[key].place}: model.{key} does not apply to {name}")
        return name, _validated(TimmConfig, title, section)
    if not isinstance(name, str) or name not in PRESETS:
        raise UserError(
            f"{chosen.place}: no model named {shorten(name)}{nearest(str(name), PRESETS)}; "
            f"there are {', '.join(PRESETS)} and timm/<name>"
        )
    return name, _validated(ModelConfig, title, section, PRESETS[name])


def _side(setting: Setting) -> Setting:
    """Square patches by one number, as timm has them."""
    size = setting.value
    square = isinstance(size, list) and len(size) == 2 and size[0] == size[1]
    return replace(setting, value=size[0]) if square else setting


def _classes(data: DataConfig) -> int | None:
    """Classes of the data set; None for a folder that is not there yet."""
    if data.facts.num_classes is not None:
        return data.facts.num_classes
    try:
        entries = (Path(data.root).expanduser() / "train").iterdir()
        return sum(entry.is_dir() for entry in entries) or None
    except (OSError, ValueError, RuntimeError):
        return None


def _validated(kind: type[BaseModel], name: str, section: Layer, defaults: Mapping | None = None):
    """A section's config object; UserError at the place of the value that does not fit."""
    values = {**(defaults or {}), **{key: setting.value for key, setting in section.items()}}
    for key, setting in section.items():
        # Validators that run before pydantic's types expect neither a mapping nor a list here.
        named = key != "name" or isinstance(setting.value, str)
        if isinstance(setting.value, dict) or not named:
            wanted = "a value, not a mapping" if named else "a name"
            raise UserError(
                f"{setting.place}: {name}.{key} = {shorten(setting.value)}: expected {wanted}"
            )
    try:
        config = kind(**values)
    except ValidationError as error:
        raise UserError(_explain(error, name, section)) from None
    dumped = config.model_dump(mode="json")
    for key, setting in section.items():
        wanted = _misread(setting.value, dumped[key])
        if wanted:
            value = shorten(setting.value)
            raise UserError(f"{setting.place}: {name}.{key} = {value}: expected {wanted}")
    return config


def _misread(given: object, read: object) -> str | None:
    """What was expected where pydantic read text as a number, a number as a truth value, ..."""
    if isinstance(given, (list, tuple)) and isinstance(read, (list, tuple)):
        pairs = zip(given, read, strict=False)
        return next((wanted for pair in pairs if (wanted := _misread(*pair))), None)
    if isinstance(read, bool):
        return None if isinstance(given, bool) else "true or false"
    if isinstance(read, (int, float)):
        number = isinstance(given, (int, float)) and not isinstance(given, bool)
        return None if number else "a number"
    return None


def _explain(error: ValidationError, name: str, section: Layer) -> str:
    first = error.errors(include_url=False)[0]
    reason = plain_reason(first["msg"])[:400]
    if len(first["loc"]) > 1 and isinstance(first["loc"][1], int):
        reason = f"item {first['loc'][1] + 1}: {reason}"
    if first["loc"]:
        key = str(first["loc"][0])
    else:
        # A check over several fields begins with the one at fault; where that was not set, the
        # last that was set of those it depends on is the one to look at.
        lead = reason.partition(":")[0]
        fields = [field for field in (lead, *TOGETHER.get(lead, ())) if field in section]
        set_by_user = [field for field in fields if section[field].layer != DATA_SET]
        key = max(set_by_user or fields, key=lambda field: section[field].rank, default=None)
        if key == lead:
            reason = reason.partition(":")[2].strip()
    if key is None or key not in section:
        return f"{name}: {reason}"
    setting = section[key]
    return f"{setting.place}: {name}.{key} = {shorten(setting.value)}: {reason}"


def _origin(key: str, settings: Layer, sections: dict[str, Layer], model: str) -> Setting:
    section, _, field = key.rpartition(".")
    if key in settings:
        return settings[key]
    if field == "image_size" and field in sections[section]:
        return sections[section][field]
    if section == "model" and field in sections["model"]:
        return sections["model"][field]
    if section == "model" and field in PRESETS.get(model, {}):
        return Setting(PRESETS[model][field], f"preset {model}", "")
    return Setting(None, "default", "")
