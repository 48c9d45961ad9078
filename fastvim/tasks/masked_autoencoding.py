"""Masked autoencoding: predict the patches that the encoder was not shown.

Axes: B batch, L tokens of the full grid, K kept tokens, P = patch rows * columns * channels.
"""

import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fastvim.data.draws import Stream, generator
from fastvim.models.config import TIMM_PREFIX, MaskingConfig
from fastvim.models.masked_autoencoder import MaskedAutoencoder
from fastvim.models.masked_transformer import MaskedTransformer
from fastvim.models.presets import resolve_config
from fastvim.tasks.classification import Evaluation, create, fitted

PICTURED = 8
SMALLEST_SIDE = 84
GAP = 2


class MaskedAutoencoding:
    """The mean squared error of the removed patches; labels are not looked at."""

    metrics = ("loss",)

    def __init__(self, masking: MaskingConfig) -> None:
        self.masking = masking

    def build(self, model: Mapping, dataset, seed: int) -> nn.Module:
        """A masked autoencoder whose encoder is that of a run's `model` section.

        Raises UserError where model, masking and data do not fit together.
        """
        name, settings = fitted(model, dataset)
        if name.startswith(TIMM_PREFIX):
            vit = create(name, settings, seed)
            return MaskedTransformer(vit, self.masking, seed)
        return MaskedAutoencoder(resolve_config(name, settings), self.masking, seed)

    def targets(
        self, model: MaskedAutoencoder, labels: Tensor, seed: int, epoch: int, batch: int
    ) -> Tensor:
        """The noise (B, L) that decides what is kept: a function of seed, epoch and batch."""
        tokens = len(model.grid)
        draws = generator(seed, epoch, Stream.MASKING, batch).random((len(labels), tokens))
        return torch.from_numpy(draws.astype(np.float32)).to(labels.device)

    def loss(self, model: MaskedAutoencoder, images: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of images (B, C, H, W) with the noise `targets` (B, L)."""
        return model(images, targets)[0]

    @torch.no_grad()
    def evaluate(
        self, model: MaskedAutoencoder, batches: Iterable[tuple[Tensor, Tensor]]
    ) -> Evaluation:
        """Mean loss over a split; every image always loses the same tokens."""
        total, count = 0.0, 0
        for images, _ in batches:
            loss = model(images, _fixed_noise(model, count, images))[0]
            total += loss.item() * len(images)
            count += len(images)
        return Evaluation({"loss": total / count}, {})

    def collect(self, model: nn.Module, batches_of: Callable) -> Any:
        """Nothing is measured at the end alone."""

    def final(self, model: nn.Module, collected: Any) -> dict[str, float]:
        """Nothing is measured at the end alone."""
        return {}

    @torch.no_grad()
    def picture(self, model: MaskedAutoencoder, dataset) -> bytes:
        """The first validation images, what is kept of them, and the reconstruction, row by row.

        Kept patches stand in the reconstruction as they are; the others are predicted, with the
        mean and deviation of the true patch where the loss is of normalised patches.
        """
        count = min(PICTURED, dataset.split_sizes["validation"])
        images, _, _ = next(iter(dataset.evaluation_batches("validation", count)))
        images = images.to(next(model.parameters()).device)
        _, predicted, mask = model(images, _fixed_noise(model, 0, images))
        patches, mask = model.patches(images), mask[..., None].bool()
        if model.masking.normalise_targets:
            deviation = (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()
            predicted = predicted * deviation + patches.mean(dim=-1, keepdim=True)
        mean, std = (
            torch.tensor(value, device=images.device).view(1, -1, 1, 1)
            for value in (dataset.config.mean, dataset.config.std)
        )
        restored = model.unpatched(torch.where(mask, predicted.to(patches.dtype), patches))
        removed = model.unpatched(mask.expand_as(patches).to(images.dtype)) > 0
        shown = [pixels * std + mean for pixels in (images, restored)]
        grey = torch.where(removed, torch.full_like(images, 0.5), shown[0])
        return _sheet([shown[0], grey, shown[1]])


def _fixed_noise(model: MaskedAutoencoder, first: int, images: Tensor) -> Tensor:
    """The noise (B, L) of the images `first`, first + 1, ... of a split, the same in every run."""
    rows = [
        generator(0, 0, Stream.MASKING_EVALUATION, place).random(len(model.grid))
        for place in range(first, first + len(images))
    ]
    return torch.from_numpy(np.stack(rows).astype(np.float32)).to(images.device)


def _sheet(rows: list[Tensor]) -> bytes:
    """A PNG file with a row for each of `rows`: images (B, C, H, W) with pixels in 0..1."""
    height, width = rows[0].shape[2:]
    # Small images are enlarged in whole steps.
    factor = max(1, SMALLEST_SIDE // max(height, width))
    height, width = height * factor + GAP, width * factor + GAP
    sheet = Image.new("RGB", (len(rows[0]) * width - GAP, len(rows) * height - GAP), "white")
    for row, images in enumerate(rows):
        pixels = (255 * images.clamp(0, 1)).round().to(torch.uint8).cpu().numpy()
        for column, image in enumerate(pixels):
            image = np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0)
            large = image.repeat(factor, axis=0).repeat(factor, axis=1)
            sheet.paste(Image.fromarray(large), (column * width, row * height))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
