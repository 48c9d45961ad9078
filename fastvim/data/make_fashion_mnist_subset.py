"""Make the packaged subset of Fashion-MNIST from the whole set.

    python -m fastvim.data.make_fashion_mnist_subset --source /usr/share/datasets/fashion-mnist

In each class the images are ordered by the sha256 of their pixels, which is as good as shuffled
and the same everywhere. Of the official training images the first 200 of a class are for
validation and the next 1,200 for training; the first 200 official test images are for testing.
An image that occurs twice anywhere in the set is left out.
"""

import argparse
import hashlib
import io
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from fastvim.data.arrays import LabelledArrays
from fastvim.data.fashion_mnist import (
    CLASSES,
    SIDE,
    SUBSET_SIZES,
    TILES_PER_ROW,
    read_official,
)
from fastvim.data.locate import PACKAGED, locate
from fastvim.files import write_atomic


def choose(official: dict[str, LabelledArrays]) -> dict[str, np.ndarray]:
    """Pixels (images, 28, 28) of every split, sorted by class, from the whole set."""
    hashes = {split: _hashes(arrays.pixels) for split, arrays in official.items()}
    seen = Counter(digest for each in hashes.values() for digest in each)
    per_class = {split: size // CLASSES for split, size in SUBSET_SIZES.items()}
    chosen: dict[str, list[np.ndarray]] = {split: [] for split in SUBSET_SIZES}
    for label in range(CLASSES):
        ordered = {
            split: sorted(
                (digest, position)
                for position, digest in enumerate(hashes[split])
                if arrays.labels[position] == label and seen[digest] == 1
            )
            for split, arrays in official.items()
        }
        held_out = per_class["validation"]
        parts = {
            "validation": ("train", slice(0, held_out)),
            "train": ("train", slice(held_out, held_out + per_class["train"])),
            "test": ("test", slice(0, per_class["test"])),
        }
        for split, (source, part) in parts.items():
            positions = [position for _, position in ordered[source][part]]
            chosen[split].append(official[source].pixels[positions, 0])
    return {split: np.concatenate(images) for split, images in chosen.items()}


def _hashes(pixels: np.ndarray) -> list[str]:
    return [hashlib.sha256(np.ascontiguousarray(image).data).hexdigest() for image in pixels]


def encode(pixels: np.ndarray) -> bytes:
    """The PNG of (images, 28, 28) uint8 as tiles, 100 in a row."""
    tiles = pixels.reshape(-1, TILES_PER_ROW, SIDE, SIDE).swapaxes(1, 2)
    buffer = io.BytesIO()
    Image.fromarray(tiles.reshape(-1, TILES_PER_ROW * SIDE)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the packaged subset of Fashion-MNIST.")
    parser.add_argument("--source", required=True, help="folder with the four idx files")
    parser.add_argument("--output", type=Path, default=PACKAGED, help="folder to write to")
    arguments = parser.parse_args()
    _, paths = locate("fashion-mnist", arguments.source)
    for split, pixels in choose(read_official(paths)).items():
        path = arguments.output / f"fashion-mnist-{split}.png"
        content = encode(pixels)
        write_atomic(path, content)
        print(f"{path}: {len(content)} bytes, pixels {hashlib.sha256(pixels.data).hexdigest()}")


if __name__ == "__main__":
    main()
