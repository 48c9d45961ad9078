"""The images of one split, in memory or in files, as the loaders take them."""

import os
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastvim.errors import UserError


@dataclass(frozen=True)
class MemoryImages:
    """`pixels` uint8 (images, 1 or 3 channels, rows, columns), `labels` int64 (images,)."""

    pixels: Tensor
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, positions: np.ndarray) -> "MemoryImages":
        return MemoryImages(self.pixels[torch.from_numpy(positions)], self.labels[positions])

    def pil(self, position: int) -> Image.Image:
        """The image in RGB, grey ones repeated: timm's colour operations expect three channels."""
        pixels = self.pixels[position].permute(1, 2, 0).numpy()
        return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).convert(
            "RGB"
        )


@dataclass(frozen=True)
class FileImages:
    """Images in files, decoded when they are asked for.

    `paths` holds encoded paths, dtype S, (images,), `labels` int64 (images,). Python strings would
    be copied into every worker process as their reference counts change.
    """

    paths: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, positions: np.ndarray) -> "FileImages":
        return FileImages(self.paths[positions], self.labels[positions])

    def pil(self, position: int) -> Image.Image:
        """The image in RGB, 16 bits a pixel scaled to 8. Raises UserError naming the file if it
        cannot be decoded or the range of its pixels is not known."""
        path = os.fsdecode(self.paths[position])
        try:
            with Image.open(path) as image:
                return _rgb(image)
        except Exception as error:  # a damaged file makes Pillow raise almost anything
            raise UserError(f"cannot read the image {path}: {error}") from error


def _rgb(image: Image.Image) -> Image.Image:
    """Pillow itself would cut every grey value off at 255."""
    # Of these formats mode I holds 16 bits too.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        grey = (np.asarray(image).astype(np.int32) + 128) // 257
        image = Image.fromarray(grey.astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(
            f"the range of its pixels (mode {image.mode}) is not known; save it with 8 or 16 bits"
        )
    return image.convert("RGB")


Images = MemoryImages | FileImages
