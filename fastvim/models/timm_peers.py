"""timm's models beside the suite's own: built as asked, or one message that says why not."""

from collections.abc import Mapping, Sequence

import timm
import torch
from torch import Tensor, nn

from fastvim.errors import UserError, nearest
from fastvim.models.config import TIMM_PREFIX

_NAMES = {"image_size": "img_size", "in_channels": "in_chans"}
# What timm raises where it cannot build a model, and where an image does not fit one.
_REFUSALS = (RuntimeError, TypeError, ValueError, AssertionError)


def create_timm(name: str, settings: Mapping) -> nn.Module:
    """`timm/<name>` with `settings` in this suite's names; what is absent or None, as timm has it.

    Draws its weights from torch's random numbers. UserError where timm has no such model or cannot
    build it so.
    """
    bare = name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(bare):
        known = [TIMM_PREFIX + model for model in timm.list_models()]
        raise UserError(f"timm has no model {bare!r}{nearest(name, known)}")
    options = {_NAMES.get(key, key): value for key, value in settings.items() if value is not None}
    if options.pop("class_token", None) == "none":
        # Mean pooling of normalised tokens, as of a masked autoencoder's encoder.
        options |= {"class_token": False, "global_pool": "avg", "fc_norm": False}
    try:
        return _created(bare, options)
    except _REFUSALS as error:
        raise UserError(f"timm cannot build {name!r}: {error}") from error


def _created(name: str, options: dict) -> nn.Module:
    try:
        return timm.create_model(name, **options)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        # Convolutional networks take any image size and have no such argument.
        return timm.create_model(name, **{k: v for k, v in options.items() if k != "img_size"})


def try_image(model: nn.Module, name: str, image: Tensor) -> None:
    """UserError where `image` (1, C, H, W) does not go through: many models find out only then."""
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(image)
    except _REFUSALS as error:
        raise UserError(f"timm cannot build {name!r}: {error}") from error
    model.train(training)


def outline(name: str, settings: Mapping) -> nn.Module:
    """The model of `create_timm` after `try_image`, mostly shapes alone: for checks.

    `settings` have an `image_size` (rows, columns). UserError as of the two.
    """

    def tried() -> nn.Module:
        model = create_timm(name, settings)
        channels = settings.get("in_channels") or model.default_cfg["input_size"][0]
        try_image(model, name, torch.zeros(1, channels, *settings["image_size"]))
        return model

    try:
        with torch.device("meta"):  # No memory and hardly any time.
            return tried()
    except UserError:
        # Some models look at numbers while they are built.
        return tried()


def unfitting_patches(model: nn.Module, size: Sequence[int]) -> tuple[int, ...] | None:
    """Sides of the model's patches where they do not divide an image's: it would not see the rest.

    None where they do, and where a model has none or fills the image up.
    """
    embedding = getattr(model, "patch_embed", None)
    patch = getattr(embedding, "patch_size", None)
    if not isinstance(patch, tuple) or getattr(embedding, "dynamic_img_pad", False):
        return None
    divides = all(side % own == 0 for side, own in zip(size, patch, strict=False))
    return None if divides else patch
