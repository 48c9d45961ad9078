"""The presets as timm models, so that a user's own script gets them by `timm.create_model`.

Names are `<preset>_patch<size>_<image>`: fastvim_tiny_patch16_224, vim_base_patch16_224, ...
"""

import sys
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from fastvim.errors import UserError
from fastvim.models.presets import PRESETS, resolve_config

# timm's names of what ModelConfig calls otherwise.
_TIMM_NAMES = {"img_size": "image_size", "in_chans": "in_channels"}


def _full_name(preset: str) -> str:
    config = resolve_config(preset)
    return f"{preset}_patch{config.patch_size[0]}_{config.image_size[0]}"


def _default_cfg(preset: str) -> dict[str, Any]:
    config = resolve_config(preset)
    return {
        "url": "",
        "num_classes": config.num_classes,
        "input_size": (config.in_channels, *config.image_size),
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": (0.485, 0.456, 0.406)[: config.in_channels],
        "std": (0.229, 0.224, 0.225)[: config.in_channels],
        "first_conv": "patch_embed",
        "classifier": "head",
        "license": "apache-2.0",
    }


# timm reads these two names from the module of a registered function.
default_cfgs = generate_default_cfgs({_full_name(name): _default_cfg(name) for name in PRESETS})
__all__: list[str] = []


def _register(preset: str) -> None:
    def entry(pretrained: bool = False, **kwargs: Any):
        from fastvim.models.backbone import VisionMamba

        def build(**settings: Any) -> VisionMamba:
            overrides = {
                _TIMM_NAMES.get(key, key): value
                for key, value in settings.items()
                if value is not None
            }
            # timm's train.py always says them, if only that there is none.
            drop_rate = overrides.pop("drop_rate", 0)
            global_pool = overrides.pop("global_pool", None)
            if drop_rate:
                raise UserError(
                    f"drop_rate is {drop_rate!r}; this model has no dropout, only drop_path_rate"
                )
            model = VisionMamba(resolve_config(preset, overrides))
            model.check_global_pool(global_pool)
            return model

        out_indices = kwargs.pop("out_indices", 3)
        return build_model_with_cfg(
            build,
            entry.__name__,
            pretrained,
            feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
            **kwargs,
        )

    entry.__name__ = entry.__qualname__ = _full_name(preset)
    entry.__doc__ = f"The preset {preset} with its published patch and image size."
    setattr(sys.modules[__name__], entry.__name__, register_model(entry))


for _preset in PRESETS:
    _register(_preset)
