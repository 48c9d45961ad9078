"""A few training images as a model sees them, after augmentation."""

import io
import json
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fastvim.data import DataConfig, load
from fastvim.errors import UserError
from fastvim.reports.study import Study

COLUMNS = ROWS = 4
LARGEST_SIDE = 128
GAP = 2


@dataclass(frozen=True)
class Picture:
    """A sheet of images as a PNG file's bytes, RGB."""

    width: int
    height: int
    png: bytes


def example_images(study: Study) -> dict[str, Picture | str]:
    """Data set, or data set and variant where augmentations differ -> a sheet of the first images
    of the first epoch of the first seed, or the reason why there is none."""
    kinds: dict[str, tuple[str, DataConfig, int]] = {}
    for run in study.runs:
        data = run.record.run.config.data
        key = json.dumps(data.model_dump(mode="json", exclude={"root", "workers"}), sort_keys=True)
        kinds.setdefault(key, (run.variant, data, run.seed))
    found: dict[str, Picture | str] = {}
    for variant, data, seed in kinds.values():
        name = data.name if len(kinds) == 1 else f"{data.name}, {variant}"
        try:
            found[name] = _sheet(data, seed)
        except UserError as error:
            found[name] = f"no images: {error}"
    return found


def _sheet(config: DataConfig, seed: int) -> Picture:
    dataset = load(config)
    count = min(ROWS * COLUMNS, dataset.split_sizes["train"])
    images, _, _ = next(dataset.train_batches(seed, 0, count))
    mean = np.array(config.mean).reshape(1, -1, 1, 1)
    std = np.array(config.std).reshape(1, -1, 1, 1)
    pixels = (images.numpy() * std + mean).clip(0, 1)
    pixels = np.broadcast_to(pixels, (len(pixels), 3, *pixels.shape[2:]))
    pixels = np.round(255 * pixels.transpose(0, 2, 3, 1)).astype(np.uint8)
    height, width = pixels.shape[1:3]
    # Small images are enlarged in whole steps, large ones are made smaller.
    factor = max(1, LARGEST_SIDE // max(height, width))
    rows = -(-count // COLUMNS)
    scale = min(1.0, LARGEST_SIDE / max(height, width))
    cell = (round(width * factor * scale), round(height * factor * scale))
    size = (COLUMNS * (cell[0] + GAP) - GAP, rows * (cell[1] + GAP) - GAP)
    sheet = Image.new("RGB", size, "white")
    resample = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BILINEAR
    for place, image in enumerate(pixels):
        row, column = divmod(place, COLUMNS)
        corner = (column * (cell[0] + GAP), row * (cell[1] + GAP))
        sheet.paste(Image.fromarray(image).resize(cell, resample), corner)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return Picture(*size, buffer.getvalue())
