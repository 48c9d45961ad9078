"""timm's models in a plan: what they take over, and whether they can be built as asked."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fastvim.errors import UserError
from fastvim.experiments.schema import RunConfig
from fastvim.models.config import TIMM_PREFIX

if TYPE_CHECKING:
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
    from fastvim.models.timm_peers import outline, unfitting_patches

    place = origins["model.name"].place
    settings = config.nested()["model"]
    name = settings.pop("name")
    try:
        model = outline(name, settings)
    except UserError as error:
        raise UserError(f"{place}: model.name: {error}") from error
    patch = unfitting_patches(model, config.model.image_size)
    if patch is not None:
        size = " x ".join(map(str, config.model.image_size))
        raise UserError(
            f"{origins['model.patch_size'].place or place}: model.name = {name!r}: patches of "
            f"{patch[0]} pixels do not divide images of {size}, whose rest it would not see; set "
            "model.patch_size or data.image_size"
        )
