"""Mixup and CutMix of a whole batch by timm, with draws of their own for every batch."""

import torch
from torch import Tensor

from fastvim.data.config import DataConfig
from fastvim.data.draws import Stream, seeded_globals
from fastvim.errors import UserError


class BatchMixing:
    """timm's Mixup (arXiv 1710.09412, 1905.04899) made repeatable batch by batch.

    Apply it to the global batch, before it is cut into micro-batches: it pairs the first image
    with the last.
    """

    def __init__(self, config: DataConfig, num_classes: int, smoothing: float = 0.0):
        from timm.data import Mixup

        self._mixup = Mixup(
            mixup_alpha=config.mixup,
            cutmix_alpha=config.cutmix,
            prob=config.mixup_prob,
            switch_prob=config.mixup_switch_prob,
            label_smoothing=smoothing,
            num_classes=num_classes,
        )

    def __call__(
        self, images: Tensor, labels: Tensor, seed: int, epoch: int, batch: int
    ) -> tuple[Tensor, Tensor]:
        """Mixed images (B, C, H, W), in place, and targets (B, num_classes) that sum to 1.

        `labels` int64 (B,). Raises UserError if B is odd.
        """
        if len(images) % 2:
            raise UserError(
                f"mixup and cutmix pair images: the batch must be even, not {len(images)}"
            )
        with torch.no_grad(), seeded_globals(seed, epoch, Stream.MIXING, batch):
            return self._mixup(images, labels)


def create_mixing(
    config: DataConfig, num_classes: int, smoothing: float = 0.0
) -> BatchMixing | None:
    """The mixing that `config` asks for, or None if it asks for none."""
    if config.mixup == 0 and config.cutmix == 0:
        return None
    return BatchMixing(config, num_classes, smoothing)
