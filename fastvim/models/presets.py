"""Models by name: the published sizes (arXiv 2502.00594, table 1) and small ones for CPU work.

This module needs no torch.
"""

from collections.abc import Mapping

from pydantic import ValidationError

from fastvim.errors import UserError, nearest
from fastvim.models.config import ModelConfig

_SIZES: dict[str, dict] = {
    "tiny": {"d_model": 192, "depth": 24},
    "small": {"d_model": 384, "depth": 24},
    "base": {"d_model": 768, "depth": 24},
    "large": {"d_model": 1024, "depth": 48},
    "huge": {"d_model": 1280, "depth": 64, "patch_size": 14},
}
# For 28-pixel grey images on a laptop: a 14x14 grid, as ImageNet's at 224/16.
_SMALL_IMAGES: dict = {"image_size": 28, "patch_size": 2, "in_channels": 1, "num_classes": 10}
_SIZES |= {
    "femto": {"d_model": 32, "depth": 2, **_SMALL_IMAGES},
    "pico": {"d_model": 48, "depth": 4, **_SMALL_IMAGES},
    "nano": {"d_model": 96, "depth": 8, **_SMALL_IMAGES},
}
_FAMILIES: dict[str, dict] = {
    "fastvim": {"schedule": ("col", "row")},
    # The unpooled baseline of the paper has the class token in the middle of the sequence.
    "vim": {"schedule": (), "class_token": "middle"},
}
PRESETS: dict[str, dict] = {
    f"{family}_{size}": {**choices, **sizes}
    for family, choices in _FAMILIES.items()
    for size, sizes in _SIZES.items()
}


def resolve_config(name: str, overrides: Mapping | None = None) -> ModelConfig:
    """The configuration of preset `name` with `overrides` of its fields.

    Raises UserError for an unknown preset or field (naming the nearest) and for a value that
    does not fit.
    """
    overrides = dict(overrides or {})
    if name not in PRESETS:
        raise UserError(
            f"no model named {name!r}{nearest(name, PRESETS)}; "
            f"there are {', '.join(PRESETS)} and timm/<name>"
        )
    for key in overrides:
        if key not in ModelConfig.model_fields:
            raise UserError(
                f"model {name} has no setting {key!r}{nearest(key, ModelConfig.model_fields)}"
            )
    return checked_config(f"model {name}", {**PRESETS[name], **overrides})


def checked_config(what: str, values: Mapping) -> ModelConfig:
    """`ModelConfig` of `values`. UserError, which begins with `what`, for one that does not fit."""
    try:
        return ModelConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        prefix = f"{place} = {first['input']!r}: " if place else ""
        raise UserError(f"{what}: {prefix}{reason}") from None
