"""Building a model from a preset's name."""

from torch import nn

from fastvim.models.backbone import VisionMamba
from fastvim.models.presets import resolve_config


def create_model(name: str, seed: int = 0, **overrides) -> nn.Module:
    """The preset `name` (`fastvim_tiny`, `vim_base`, ...) with fields of `ModelConfig` changed.

    Its parameters depend only on `seed`. Raises UserError for an unknown name or field, or a
    value that does not fit.

    >>> model = create_model("fastvim_tiny", image_size=[192, 256], num_classes=10)
    """
    return VisionMamba(resolve_config(name, overrides), seed)
