"""timm's models in a plan: what they take over, and whether they can be built as asked."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fastvim.errors import UserError, nearest
from fastvim.experiments.schema import RunConfig
from fastvim.models.config import TIMM_PREFIX

if TYPE_CHECKING:
    from torch import nn

    from fastvim.experiments.settings import Setting


def patch_warning(config: RunConfig, origins: "Mapping[str, Setting]") -> str | None:
    """What to say where a layer below the model's name gives it other patches than its own."""
    named = re.search(r"_patch(\d+)", config.model_name)
    if not config.model_name.startswith(TIMM_PREFIX) or named is None:
        return None
    size, patch = config.model.patch_size, origins["model.patch_size"]
    if size in (None, int(named[1])) or patch.rank >= origins["model.name"].rank:
        return None
    return (
        f"{config.model_name} gets patches of {size} pixels as the others do ({patch.layer}), not "
        f"the {named[1]} of its name; model.patch_size: null beside its name keeps those"
    )


def check_timm(config: RunConfig, origins: "Mapping[str, Setting]") -> None:
    """UserError, at the place of a setting, where timm cannot build the model as asked."""
    import timm

    name = config.model_name.removeprefix(TIMM_PREFIX)
    place = origins["model.name"].place
    if not timm.is_model(name):
        raise UserError(
            f"{place}: model.name = 'timm/{name}': timm has no model of that name"
            f"{nearest(name, timm.list_models())}"
        )
    try:
        model = _built(config)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    embedding = getattr(model, "patch_embed", None)
    patch = getattr(embedding, "patch_size", None)
    if not isinstance(patch, tuple) or getattr(embedding, "dynamic_img_pad", False):
        return
    if any(size % side for size, side in zip(config.model.image_size, patch, strict=False)):
        size = " x ".join(map(str, config.model.image_size))
        raise UserError(
            f"{origins['model.patch_size'].place or place}: model.name = 'timm/{name}': patches of "
            f"{patch[0]} pixels do not divide images of {size}, whose rest it would not see; set "
            "model.patch_size or data.image_size"
        )


def _built(config: RunConfig) -> "nn.Module":
    import torch

    from fastvim.tasks.classification import create

    settings = config.nested()["model"]
    del settings["name"]
    try:
        with torch.device("meta"):  # Shapes alone: no memory and hardly any time.
            return create(config.model_name, settings, seed=0)
    except UserError:
        # Some models look at numbers while they are built.
        return create(config.model_name, settings, seed=0)
