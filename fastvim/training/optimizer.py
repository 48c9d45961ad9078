"""Parameter groups, the optimiser, and what changes from step to step."""

import math

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

from fastvim.training.recipe import ADAPTIVE, Recipe


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """timm's optimiser over timm's parameter groups.

    Biases, norms and whatever `model.no_weight_decay()` names get no weight decay. With
    `layer_decay`, the learning rate of a layer k below the head is multiplied by its k-th power
    (layers as `model.group_matcher()` tells them; Bao et al., arXiv 2106.08254).
    """
    options: dict = {}
    if recipe.optimizer in ADAPTIVE:
        if recipe.betas is not None:
            options["betas"] = recipe.betas
    else:
        options["momentum"] = recipe.momentum
    if recipe.optimizer in ("adam", "adamw"):
        # One pass over all parameters instead of a dozen each; the same numbers every time.
        options["fused"] = True
    return create_optimizer_v2(
        model,
        opt=recipe.optimizer,
        lr=recipe.peak_lr,
        weight_decay=recipe.weight_decay,
        layer_decay=recipe.layer_decay,
        **options,
    )


class Schedule:
    """Learning rate and weight decay of every step: functions of the step alone.

    The learning rate rises linearly over the warm-up and then follows half a cosine (timm's
    CosineLRScheduler, updated each step); weight decay follows half a cosine between its ends
    (Caron et al., arXiv 2104.14294).
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int
    ) -> None:
        self.total = recipe.total_steps(steps_per_epoch)
        self._optimizer = optimizer
        self._ends = (recipe.weight_decay, recipe.weight_decay_end)
        self._decayed = [group["weight_decay"] > 0 for group in optimizer.param_groups]
        self._learning_rate = CosineLRScheduler(
            optimizer,
            t_initial=self.total,
            lr_min=recipe.min_lr,
            warmup_t=recipe.warmup_steps(steps_per_epoch),
            warmup_lr_init=recipe.warmup_lr,
            t_in_epochs=False,
        )

    def set(self, step: int, factor: float = 1.0) -> float:
        """Set every group for `step` (from 0) and return the head's learning rate.

        Learning rates are `factor` times the schedule's.
        """
        self._learning_rate.step_update(step)
        start, end = self._ends
        # The optimiser makes new groups when its state is loaded, so they are looked up here.
        groups = self._optimizer.param_groups
        for group in groups:
            group["lr"] *= factor
        if end is not None:
            decay = end + (start - end) * (1 + math.cos(math.pi * step / self.total)) / 2
            for group, decayed in zip(groups, self._decayed, strict=True):
                if decayed:
                    group["weight_decay"] = decay
        return max(group["lr"] for group in groups)
