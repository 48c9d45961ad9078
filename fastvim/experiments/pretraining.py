"""Runs that start from the encoder of another run: what the two share, and whether they fit."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from fastvim.errors import UserError
from fastvim.experiments.schema import (
    INTERPOLATE,
    TRANSFORMER_KEYS,
    Pretrained,
    RunConfig,
    TimmConfig,
)
from fastvim.models.config import ModelConfig

if TYPE_CHECKING:
    from fastvim.experiments.settings import Layer, Setting

SECTION = "pretrained"
AUTO = "auto"
OPTIONS = ("--set", "--grid")
# The images are the same, the augmentation is each run's own.
SHARED_DATA = (
    "name",
    "root",
    "image_size",
    "channels",
    "interpolation",
    "crop_pct",
    "validation_fraction",
    "train_images",
    "validation_images",
    "test_images",
    "workers",
)
# The encoder is the same but for these, which the pretraining does not take over.
OWN_MODEL = ("pooling_scale", "drop_path_rate")
# Where these differ, the weights of one model do not fit the other.
WEIGHTS = (
    "patch_size",
    "stride",
    "in_channels",
    "d_model",
    "depth",
    "d_state",
    "d_conv",
    "expand",
    "delta_rank",
    "class_token",
    "post_ssm_norm",
)


def pretraining_layer(settings: "Layer") -> "Layer | None":
    """The settings of the run that `settings` start from, or None if they start from nothing.

    What `pretrained` does not say of the data set and the model is as in the run itself; of the
    recipe and the augmentation nothing is taken over. `pretrained: null` does away with what
    lower layers say of it, and then options have nothing to change.
    """
    prefix = f"{SECTION}."
    none = settings.get(SECTION)
    own = {
        key.removeprefix(prefix): setting
        for key, setting in settings.items()
        if key.startswith(prefix)
        and (none is None or (setting.rank > none.rank and setting.layer not in OPTIONS))
    }
    if not own:
        return None
    shared = {f"data.{key}" for key in SHARED_DATA}
    shared |= {f"model.{key}" for key in ModelConfig.model_fields if key not in OWN_MODEL}
    shared |= {f"model.{key}" for key in ("name", *TRANSFORMER_KEYS)}
    if "data.image_size" in own or "model.image_size" in own:
        shared -= {"data.image_size", "model.image_size"}
    return {key: setting for key, setting in settings.items() if key in shared} | own


def with_scale(setting: "Setting", pretrained: Pretrained | None) -> "Setting":
    """`model.pooling_scale`, where `auto` becomes the scale that goes with the pretraining."""
    if setting.value != AUTO:
        return setting
    if pretrained is None or pretrained.run.masking is None:
        raise UserError(
            f"{setting.place}: model.pooling_scale = auto is taken from the mask ratio of "
            "`pretrained`, and this run starts from no masked autoencoder"
        )
    return replace(setting, value=matching_scale(pretrained.run))


def matching_scale(pretraining: RunConfig) -> float:
    """What brings the pooled values of a full grid to the size that pretraining has seen.

    There a step's mean was the sum over its kept tokens divided by the full count, about
    1 - mask_ratio times a mean (arXiv 2502.00594, FastMaskVim). Without such pooling it is 1.
    """
    model, masking = pretraining.model, pretraining.masking
    pools = isinstance(model, ModelConfig) and model.schedule and model.pooling == "mean"
    if masking is None or not pools or masking.pooling_divisor == "kept":
        return 1.0
    return round(1 - masking.mask_ratio, 12)


def scale_warning(config: RunConfig, origins: "Mapping[str, Setting]") -> str | None:
    """What to say where nobody thought of the scale after masked pretraining."""
    if config.pretrained is None or config.pretrained.run.masking is None:
        return None
    scale = matching_scale(config.pretrained.run)
    if scale == 1 or origins["model.pooling_scale"].layer != "default":
        return None
    ratio = config.pretrained.run.masking.mask_ratio
    return (
        f"starts from a masked autoencoder (mask ratio {ratio:g}) and leaves its pooled values "
        f"unscaled, with which transfer fails (arXiv 2502.00594); set model.pooling_scale: "
        f"{scale:g} or auto (1 to see it fail)"
    )


def check_pretrained(config: RunConfig, settings: "Layer") -> None:
    """UserError, at the place of a setting, where a run cannot start from its `pretrained`."""
    task = config.task
    if config.pretrained is None:
        if task == "linear-probe":
            raise UserError(
                f"{_place(settings, 'task')}task = linear-probe: it probes a trained encoder, so a "
                "`pretrained` section must say how that is trained"
            )
        return
    before = config.pretrained.run
    if task == "masked-autoencoding":
        raise UserError(
            f"{_place(settings, 'task')}task = masked-autoencoding: it starts from nothing; remove "
            "`pretrained` (null takes away what a lower layer says)"
        )
    if before.task == "linear-probe":
        raise UserError(
            f"{_place(settings, 'pretrained.task')}pretrained.task = linear-probe: "
            "a probe trains no encoder"
        )
    if isinstance(config.model, TimmConfig) or isinstance(before.model, TimmConfig):
        fields: tuple[str, ...] = tuple(TimmConfig.model_fields)
        fields = tuple(key for key in fields if key not in ("num_classes", "drop_path_rate"))
        if before.model_name != config.model_name:
            raise UserError(
                f"{_place(settings, 'pretrained.model.name', 'model.name')}pretrained.model.name = "
                f"{before.model_name}, but the run's is {config.model_name}"
            )
    else:
        fields = WEIGHTS
        if "attention" in (before.model.pooling, config.model.pooling):
            fields = (*fields, "pooling")
        if not config.pretrained.interpolate_positions:
            fields = (*fields, "image_size")
    for field in fields:
        now, then = getattr(config.model, field), getattr(before.model, field)
        if now == then:
            continue
        hint = ""
        if field == "image_size" and fields[-1] == field:
            hint = f"; to interpolate position embeddings, set {SECTION}.{INTERPOLATE}: true"
        elif field == "image_size":
            hint = "; position embeddings of timm's models are not interpolated"
        keys = [f"{each}.{field}" for each in ("pretrained.model", "model")]
        keys += [f"{each}.{field}" for each in ("pretrained.data", "data")]
        keys += ["pretrained.model.name", "model.name"]  # Which presets they are of.
        raise UserError(
            f"{_place(settings, *keys)}pretrained.model.{field} = {_text(then)}, but the run that "
            f"starts from it has {_text(now)}{hint}"
        )


def _place(settings: "Layer", *keys: str) -> str:
    """Where the first of `keys` that is set was set, for the start of a message."""
    for key in keys:
        if key in settings and settings[key].place:
            return f"{settings[key].place}: "
    return ""


def _text(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
