"""What a Vision Mamba is made of: every choice that an ablation may vary, checked and immutable.

This module needs no torch, so that an experiment file is validated at once.
"""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from fastvim.errors import UserError

IMAGE_AXES = ("row", "col")
# What the names of timm's models begin with, wherever a model is named.
TIMM_PREFIX = "timm/"


def _pair(value: object) -> object:
    """`n` means `[n, n]`; anything else is left for pydantic to judge."""
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


Side = Annotated[int, Field(ge=1, le=65536)]
Extent = Annotated[
    tuple[Side, Side],
    BeforeValidator(_pair, json_schema_input_type=Side | tuple[Side, Side]),
]


class ModelConfig(BaseModel):
    """A Vision Mamba classifier over a `row x col` token grid.

    `schedule` lists the axes that the blocks pool in turn, over and over: `[col, row]` is
    FastVim, `[col]` pools columns in every block, `[]` pools nothing and is Vim.
    Sizes are in pixels (`image_size`, `patch_size`, `stride`: one number or `[rows, columns]`)
    or in channels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_size: Extent = (224, 224)
    patch_size: Extent = (16, 16)
    stride: Extent | None = None
    in_channels: int = Field(3, ge=1)
    num_classes: int = Field(1000, ge=0)

    d_model: int = Field(192, ge=1, le=65536)
    depth: int = Field(24, ge=1, le=1024)
    d_state: int = Field(16, ge=1, le=256)
    d_conv: int = Field(4, ge=1, le=16)
    expand: int = Field(2, ge=1, le=16)
    dt_rank: int | None = Field(None, ge=1)

    schedule: tuple[str, ...] = ("col", "row")
    scan_order: tuple[str, ...] = IMAGE_AXES
    pooling: Literal["mean", "max", "attention"] = "mean"
    pooling_scale: float = Field(1.0, gt=0, le=1e6, allow_inf_nan=False)
    post_ssm_norm: bool = True
    gate_without_norm: bool = True
    direction_merge: Literal["mean", "sum"] = "mean"
    class_token: Literal["none", "head", "middle"] = "none"

    drop_path_rate: float = Field(0.0, ge=0, lt=1)
    norm_eps: float = Field(1e-5, gt=0, lt=1)
    dt_min: float = Field(1e-3, gt=0, allow_inf_nan=False)
    dt_max: float = Field(0.1, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        for axis in self.schedule:
            if axis not in IMAGE_AXES:
                raise ValueError(f"schedule: the grid has no axis {axis!r}, only row and col")
        if sorted(self.scan_order) != sorted(IMAGE_AXES):
            raise ValueError(f"scan_order: {list(self.scan_order)} is not an order of row and col")
        if self.class_token != "none" and self.schedule:
            raise ValueError(
                "class_token: a class token has no place on a pooled grid; "
                "use class_token: none, or an empty schedule (Vim)"
            )
        if self.dt_min > self.dt_max:
            raise ValueError(f"dt_min: {self.dt_min} is greater than dt_max {self.dt_max}")
        for axis, image, patch, step in zip(
            IMAGE_AXES, self.image_size, self.patch_size, self.strides, strict=True
        ):
            if patch > image:
                raise ValueError(
                    f"patch_size: a patch of {patch} pixels is larger than the image's {image} "
                    f"along {axis}"
                )
            if (image - patch) % step:
                raise ValueError(
                    f"image_size: {image} pixels along {axis} are not divided by patches of "
                    f"{patch} with stride {step}; the nearest that fits is "
                    f"{patch + round((image - patch) / step) * step}"
                )
        return self

    @property
    def gates(self) -> bool:
        """Whether the scans' output is multiplied by silu(z)."""
        return self.post_ssm_norm or self.gate_without_norm

    @property
    def strides(self) -> tuple[int, int]:
        """Pixels between patches along (row, col)."""
        return self.stride or self.patch_size

    @property
    def grid_size(self) -> tuple[int, int]:
        """Tokens along (row, col)."""
        rows, cols = (
            (image - patch) // step + 1
            for image, patch, step in zip(
                self.image_size, self.patch_size, self.strides, strict=True
            )
        )
        return rows, cols

    @property
    def d_inner(self) -> int:
        """Channels of a mixer."""
        return self.expand * self.d_model

    @property
    def delta_rank(self) -> int:
        """Rank of the projection that makes delta; ceil(d_model / 16) unless given."""
        return self.dt_rank or math.ceil(self.d_model / 16)


class MaskingConfig(BaseModel):
    """How a masked autoencoder hides tokens and what its decoder is.

    `pattern` says which tokens go: `random` ones, whole squares of `block_size` tokens (`block`),
    or random ones with equally many kept in every row (`row-balanced`).
    `pooling_divisor` is `full` (a pooled step is the sum of its kept tokens over the number that
    a full grid has there, as published) or `kept` (over the number kept). `reverse_ids` is
    `flipped`, the right thing, or `as_published`: see `TokenGrid.layout`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mask_ratio: float = Field(0.75, ge=0, lt=1)
    pattern: Literal["random", "block", "row-balanced"] = "random"
    block_size: int = Field(4, ge=1, le=65536)
    decoder_width: int = Field(512, ge=4, multiple_of=4)
    decoder_depth: int = Field(2, ge=1, le=64)
    pooling_divisor: Literal["full", "kept"] = "full"
    reverse_ids: Literal["flipped", "as_published"] = "flipped"
    normalise_targets: bool = True

    def kept_tokens(self, tokens: int) -> int:
        """How many of `tokens` are kept, rounded down.

        In floating point, as published: a ratio of 0.9 keeps 9 of 100, since 1 - 0.9 is just
        below 0.1.
        """
        return int(tokens * (1 - self.mask_ratio))

    def check(self, model: ModelConfig) -> None:
        """UserError where a masked autoencoder of this model makes no sense."""
        if model.class_token != "none":
            raise UserError(
                f"class_token: a masked autoencoder has none, not {model.class_token!r}; "
                "set model.class_token to none"
            )
        if model.strides != model.patch_size:
            raise UserError("stride: the patches of a masked autoencoder may not overlap")
        if model.d_model % 4:
            raise UserError(f"d_model: {model.d_model} is no multiple of 4, for fixed positions")
        tokens = model.grid_size[0] * model.grid_size[1]
        kept = self.kept_tokens(tokens)
        if not kept:
            raise UserError(
                f"mask_ratio: {self.mask_ratio:g} keeps none of {tokens} tokens; "
                f"{math.floor(1e4 * (1 - 1 / tokens)) / 1e4:g} keeps one"
            )

    def check_loss(self, model: ModelConfig) -> None:
        """UserError where nothing is removed: the loss would be a mean of nothing."""
        tokens = model.grid_size[0] * model.grid_size[1]
        if self.kept_tokens(tokens) == tokens:
            raise UserError(
                f"mask_ratio: {self.mask_ratio:g} removes none of {tokens} tokens, and there is "
                "nothing to predict; it must be greater than 0 and less than 1"
            )
