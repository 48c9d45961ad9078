"""The models of a study by name, and whether a study of them can begin."""

from collections.abc import Sequence

import torch
import yaml
from torch import nn

from fastvim.errors import UserError
from fastvim.models.backbone import VisionMamba
from fastvim.models.config import TIMM_PREFIX, ModelConfig
from fastvim.models.presets import resolve_config
from fastvim.models.timm_peers import create_timm, outline, unfitting_patches


def check(names: Sequence[str], resolutions: Sequence[int]) -> None:
    """UserError where a model does not exist, or its patches do not divide a size."""
    for name in names:
        for resolution in resolutions:
            if name.startswith(TIMM_PREFIX):
                _check_timm(name, resolution)
            else:
                _config(name, resolution)


def build(name: str, resolution: int, device: torch.device) -> nn.Module:
    """A preset or `timm/<name>` for square images of `resolution` pixels.

    Settings of a preset may follow its name: `fastvim_tiny:post_ssm_norm=false`.
    """
    if name.startswith(TIMM_PREFIX):
        return create_timm(name, {"image_size": (resolution, resolution)}).to(device)
    return VisionMamba(_config(name, resolution)).to(device)


def channels(model: nn.Module) -> int:
    """Channels of the images that `model` takes."""
    if isinstance(model, VisionMamba):
        return model.config.in_channels
    return model.default_cfg["input_size"][0]


def _config(name: str, resolution: int) -> ModelConfig:
    preset, *settings = name.split(":")
    overrides = {"image_size": resolution} | dict(_setting(text) for text in settings)
    return resolve_config(preset, overrides)


def _setting(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"{text!r} is not a setting: write key=value")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"{text!r}: {value!r} is not a value") from None


def _check_timm(name: str, resolution: int) -> None:
    size = (resolution, resolution)
    patch = unfitting_patches(outline(name, {"image_size": size}), size)
    if patch is not None:
        raise UserError(
            f"{name}: {resolution} pixels are not divided by its patches of {patch[0]}; "
            f"the nearest that fits is {max(1, round(resolution / patch[0])) * patch[0]}"
        )
