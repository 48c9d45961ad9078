"""Whole batches from images in memory: crop, flip, resize, normalise and erase, all at once.

Shapes: B images of a batch, C channels, (H, W) of the stored images, S the
`image_size` of the configuration.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastvim.data.config import DataConfig
from fastvim.data.draws import Stream, generator
from fastvim.data.images import MemoryImages
from fastvim.data.transforms import Batch

# Of random erasing, as in timm: share of the image's area, log of height / width, tries.
_ERASED_AREA = (0.02, 1 / 3)
_ERASED_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))
_ERASE_TRIES = 10


def is_simple(config: DataConfig) -> bool:
    """Whether the training augmentation is simple enough for whole batches."""
    return config.scale is None and config.auto_augment is None and config.color_jitter == 0


def training_batches(
    images: MemoryImages,
    config: DataConfig,
    chunks: Sequence[np.ndarray],
    seed: int,
    epoch: int,
    start_batch: int,
) -> Iterator[Batch]:
    """An augmented batch for every array of positions in `chunks`; the first is `start_batch`.

    Images (B, C, S, S) float32, labels and positions int64 (B,).
    """
    count = len(images)
    crops = generator(seed, epoch, Stream.CROP).random((count, 2))
    shifts = torch.from_numpy((crops * (2 * config.padding + 1)).astype(np.int64))
    flips = torch.from_numpy(generator(seed, epoch, Stream.FLIP).random(count) < config.hflip)
    boxes = erased_boxes(count, config, seed, epoch)
    for batch, chunk in enumerate(chunks, start=start_batch):
        where = torch.from_numpy(chunk)
        pixels = _shifted(images.pixels[where], shifts[where], config.padding)
        pixels = torch.where(flips[where, None, None, None], pixels.flip(-1), pixels)
        pixels = _normalised(_resized(pixels, config.image_size, config), config)
        if config.re_prob > 0:
            noise = generator(seed, epoch, Stream.ERASE_PIXELS, batch)
            _erase(pixels, boxes[where], config.re_mode, noise)
        yield pixels, torch.from_numpy(images.labels[chunk]), where


def evaluation_batches(
    images: MemoryImages, config: DataConfig, chunks: Sequence[np.ndarray]
) -> Iterator[Batch]:
    """Resized, cropped in the centre and normalised; shapes as in `training_batches`."""
    side = math.floor(config.image_size / config.crop_pct)
    first = round((side - config.image_size) / 2)
    crop = slice(first, first + config.image_size)
    for chunk in chunks:
        where = torch.from_numpy(chunk)
        pixels = _resized(images.pixels[where], side, config)[:, :, crop, crop]
        yield _normalised(pixels, config), torch.from_numpy(images.labels[chunk]), where


def erased_boxes(count: int, config: DataConfig, seed: int, epoch: int) -> Tensor:
    """Top, left, bottom, right of the rectangle erased in each image, (count, 4) int64.

    Random erasing (arXiv 1708.04896) with timm's settings; all zero where nothing is erased.
    """
    if config.re_prob == 0:
        return torch.zeros(count, 4, dtype=torch.int64)
    side = config.image_size
    rng = generator(seed, epoch, Stream.ERASE)
    chosen = rng.random(count) < config.re_prob
    area = side**2 * rng.uniform(*_ERASED_AREA, (count, _ERASE_TRIES))
    aspect = np.exp(rng.uniform(*_ERASED_LOG_ASPECT, (count, _ERASE_TRIES)))
    heights = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    widths = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (heights < side) & (widths < side)
    first_fit = fits.argmax(axis=1)[:, None]
    height = np.take_along_axis(heights, first_fit, axis=1)[:, 0]
    width = np.take_along_axis(widths, first_fit, axis=1)[:, 0]
    place = rng.random((2, count))
    top = (place[0] * (side - height + 1)).astype(np.int64)
    left = (place[1] * (side - width + 1)).astype(np.int64)
    boxes = np.stack([top, left, top + height, left + width], axis=1)
    return torch.from_numpy(np.where((chosen & fits.any(axis=1))[:, None], boxes, 0))


def _shifted(pixels: Tensor, shifts: Tensor, padding: int) -> Tensor:
    """Pad (B, C, H, W) with black and crop it back `shifts` (B, 2) rows and columns in."""
    height, width = pixels.shape[-2:]
    padded = F.pad(pixels, [padding] * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view of every crop
    return windows[torch.arange(len(pixels)), :, shifts[:, 0], shifts[:, 1]]


def _resized(pixels: Tensor, side: int, config: DataConfig) -> Tensor:
    """(B, C, H, W) to (B, C, side, side), both uint8: torch then follows Pillow, which clamps
    bicubic's overshoot after each direction; in floating point edges differ by 20 grey levels."""
    if pixels.shape[-2:] == (side, side):
        return pixels
    return F.interpolate(pixels, (side, side), mode=config.interpolation, antialias=True)


def _normalised(pixels: Tensor, config: DataConfig) -> Tensor:
    mean = torch.tensor(config.mean)[:, None, None]
    std = torch.tensor(config.std)[:, None, None]
    return pixels.div(255).expand(-1, config.channels, -1, -1).sub(mean).div_(std)


def _erase(pixels: Tensor, boxes: Tensor, mode: str, rng: np.random.Generator) -> None:
    """Fill the boxes, in place, with 0 (the mean) or normal noise per channel or per pixel."""
    erased = boxes[:, 2].nonzero()[:, 0]
    side = torch.arange(pixels.shape[-1])
    top, left, bottom, right = boxes[erased].unsqueeze(-1).unbind(1)
    rows = (side >= top) & (side < bottom)
    columns = (side >= left) & (side < right)
    inside = (rows[:, :, None] & columns[:, None, :])[:, None]
    shape = (len(erased), pixels.shape[1], *(pixels.shape[2:] if mode == "pixel" else (1, 1)))
    if mode == "const":
        fill = torch.zeros(shape)
    else:
        fill = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    pixels[erased] = torch.where(inside, fill, pixels[erased])
