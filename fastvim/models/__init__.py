"""Vision Mamba models: mixer, block, backbone, presets, checkpoints."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastvim.models.create import create_model
    from fastvim.models.presets import resolve_config

__all__ = ["create_model", "resolve_config"]


def __getattr__(name: str) -> Any:
    # Configurations are checked without torch, so models are imported when they are asked for.
    if name == "create_model":
        from fastvim.models.create import create_model

        return create_model
    if name == "resolve_config":
        from fastvim.models.presets import resolve_config

        return resolve_config
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
