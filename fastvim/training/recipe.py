"""How a run is optimised: every setting, checked and immutable.

This module needs no torch, so that an experiment file is validated at once. The published
recipes are written in these fields in `ablations/` under the profile `paper`.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fastvim.errors import nearest

# timm's names. `sgd` there is Nesterov's; `momentum` is SGD with plain momentum.
ADAPTIVE = ("adam", "adamw", "nadamw", "lamb", "lion")
MOMENTUM = ("sgd", "momentum", "lars")
OPTIMIZERS = ADAPTIVE + MOMENTUM
RESPONSES = ("skip", "clip", "lower_lr", "roll_back")
# Bookkeeping: these settings of a run change how it is done, not what comes out of it.
WITHOUT_EFFECT = ("data.root", "data.workers", "training.checkpoint_every", "training.log_every")


class Recipe(BaseModel):
    """Optimiser, schedule, regularisation and bookkeeping of a run.

    Batch sizes count images over all micro-batches. Epochs are passes over the training split.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: int = Field(300, ge=1, le=100_000)
    # A cap on the number of optimiser steps. The schedule and its warm-up shrink with it.
    steps: int | None = Field(None, ge=1)
    batch_size: int = Field(1024, ge=1, le=1_000_000)
    # Images a forward pass; gradients of micro-batches are averaged over `batch_size`.
    micro_batch_size: int | None = Field(None, ge=1)

    optimizer: str = "adamw"
    # The peak learning rate; where `lr_batch` is given, at that batch size, scaled linearly.
    lr: float = Field(1e-3, gt=0)
    lr_batch: int | None = Field(None, ge=1)
    min_lr: float = Field(1e-5, ge=0)
    warmup_epochs: float = Field(5, ge=0)
    warmup_lr: float = Field(1e-6, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    # Where given, weight decay follows half a cosine from `weight_decay` to this.
    weight_decay_end: float | None = Field(None, ge=0)
    betas: tuple[float, float] | None = None
    momentum: float = Field(0.9, ge=0, lt=1)
    # Learning rates shrink by this factor a layer, from the head downwards.
    layer_decay: float | None = Field(None, gt=0, le=1)
    clip_grad: float | None = Field(None, gt=0)

    smoothing: float = Field(0.1, ge=0, lt=1)
    # A plain average from the first weights on, as published: a run of n steps wants at most
    # 1 - 5 / n or so.
    ema_decay: float | None = Field(None, ge=0, lt=1)

    # auto: bfloat16 autocast on a GPU, float32 on a CPU.
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    eval_batch_size: int | None = Field(None, ge=1)
    # Epochs between evaluations on the validation split; the last epoch is always evaluated.
    eval_every: int = Field(1, ge=1)
    # Steps between saved training states.
    checkpoint_every: int = Field(500, ge=1)
    # Steps between points in TensorBoard and reports of progress.
    log_every: int = Field(10, ge=1)
    # Watch the blocks, and write episodes/<step>.json where the loss spikes.
    recorder: bool = False
    # What to do about a step whose loss spikes, before the optimiser takes it; see `responses`.
    response: str | None = None
    # `clip`: the norm, over the median of ordinary steps; `lower_lr`: what the rate is times.
    response_factor: float = Field(0.5, gt=0, le=1)
    # Responses in a run; after them it goes on as one without.
    response_most: int = Field(10, ge=1)
    # `roll_back`: steps between the states that are kept to go back to.
    response_every: int = Field(100, ge=1)

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, name: str) -> str:
        if name not in OPTIMIZERS:
            raise ValueError(
                f"no optimizer named {name!r}{nearest(name, OPTIMIZERS)}; "
                f"there are {', '.join(OPTIMIZERS)}"
            )
        return name

    @field_validator("response")
    @classmethod
    def _known_response(cls, name: str | None) -> str | None:
        if name is not None and name not in RESPONSES:
            raise ValueError(
                f"no response named {name!r}{nearest(name, RESPONSES)}; "
                f"there are {', '.join(RESPONSES)}"
            )
        return name

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size: {self.micro_batch_size} does not divide "
                f"batch_size {self.batch_size}"
            )
        if self.warmup_epochs >= self.epochs and self.warmup_epochs > 0:
            raise ValueError(
                f"warmup_epochs: {self.warmup_epochs:g} leaves nothing of {self.epochs} epochs"
            )
        if self.min_lr > self.peak_lr:
            raise ValueError(f"min_lr: {self.min_lr:g} is above the peak of {self.peak_lr:g}")
        if self.warmup_lr > self.peak_lr and self.warmup_epochs:
            raise ValueError(f"warmup_lr: {self.warmup_lr:g} is above the peak {self.peak_lr:g}")
        if self.weight_decay_end is not None and self.weight_decay == 0:
            raise ValueError("weight_decay_end: needs a weight_decay above 0 to start from")
        if self.betas is not None:
            if self.optimizer not in ADAPTIVE:
                raise ValueError(f"betas: {self.optimizer} has momentum, not betas")
            if not all(0 <= beta < 1 for beta in self.betas):
                raise ValueError(f"betas: {list(self.betas)} are not both in [0, 1)")
        return self

    @property
    def peak_lr(self) -> float:
        """The learning rate at the end of warm-up, scaled to this batch size."""
        return self.lr * (self.batch_size / self.lr_batch if self.lr_batch else 1)

    @property
    def forward_size(self) -> int:
        """Images in one forward pass."""
        return self.micro_batch_size or self.batch_size

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps of the whole run."""
        steps = self.epochs * steps_per_epoch
        return steps if self.steps is None else min(steps, self.steps)

    def warmup_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps of warm-up, the same share of the run with or without a cap."""
        return round(self.total_steps(steps_per_epoch) * self.warmup_epochs / self.epochs)
