"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747), whole and as packaged.

Licence: MIT, Zalando SE. Grey images of 28 x 28, ten classes.

Whole: the four idx files as published, gzipped or not: 60,000 training and 10,000 test images.
Packaged: a PNG a split, `fashion-mnist-train.png` and so on, in which the images are tiles, 100 in
a row of tiles, sorted by class with the same number of each; so tile i of n has class 10 i / n.
`fastvim.data.make_fashion_mnist_subset` makes them.
"""

import gzip
import hashlib
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from fastvim.data.arrays import LabelledArrays, check_labels
from fastvim.data.locate import PACKAGED
from fastvim.errors import UserError

SIDE = 28
CLASSES = 10
TILES_PER_ROW = 100
SUBSET_SIZES = {"train": 12_000, "validation": 2_000, "test": 2_000}
# Of the decoded pixels, so that it does not change with the version of the compressor.
SUBSET_SHA256 = {
    "train": "26e0e028ba2514d454a8093a82c0cf05a58560f1c4df352bb5d8ab619eacde01",
    "validation": "ac9b4e43ace683341fe4230fc9934c0f3216e0864269a14faea94d8c951d7dce",
    "test": "bc803d67a1c8288cc01e3eec5aafcc0a79fc882c9187e54e73fa6e653e1b4bf5",
}

_IMAGES_MAGIC = 2051
_LABELS_MAGIC = 2049
_OFFICIAL_SIZES = {"train": 60_000, "test": 10_000}


def read_subset(folder: Path = PACKAGED) -> dict[str, LabelledArrays]:
    """The packaged images by split, pixels (images, 1, 28, 28).

    Raises UserError if a file is missing or is not what was packaged.
    """
    splits = {}
    for split, count in SUBSET_SIZES.items():
        path = folder / f"fashion-mnist-{split}.png"
        pixels = _read_tiles(path, count)
        if hashlib.sha256(pixels.data).hexdigest() != SUBSET_SHA256[split]:
            raise UserError(f"{path} is damaged: its sha256 is wrong; install the package again")
        labels = np.arange(count) * CLASSES // count
        splits[split] = LabelledArrays(pixels[:, None], labels.astype(np.int64))
    return splits


def _read_tiles(path: Path, count: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            mosaic = np.asarray(image)
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        raise UserError(f"cannot read {path}: {error}; install the package again") from error
    rows = count // TILES_PER_ROW
    if mosaic.shape != (rows * SIDE, TILES_PER_ROW * SIDE) or mosaic.dtype != np.uint8:
        raise UserError(f"{path} is damaged: {mosaic.dtype} pixels of shape {mosaic.shape}")
    tiles = mosaic.reshape(rows, SIDE, TILES_PER_ROW, SIDE).swapaxes(1, 2)
    return np.ascontiguousarray(tiles).reshape(count, SIDE, SIDE)


def read_official(paths: Mapping[str, Path]) -> dict[str, LabelledArrays]:
    """The whole set by split, `train` and `test`, pixels (images, 1, 28, 28).

    `paths` maps the published file names (without .gz) to where they are.
    """
    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images_path = paths[f"{prefix}-images-idx3-ubyte"]
        labels_path = paths[f"{prefix}-labels-idx1-ubyte"]
        pixels, labels = read_idx_images(images_path), read_idx_labels(labels_path)
        for path, length in ((images_path, len(pixels)), (labels_path, len(labels))):
            if length != _OFFICIAL_SIZES[split]:
                raise UserError(
                    f"{path} has {length} entries, Fashion-MNIST has {_OFFICIAL_SIZES[split]}"
                )
        splits[split] = LabelledArrays(pixels[:, None], labels.astype(np.int64))
    return splits


def read_idx_images(path: Path) -> np.ndarray:
    """uint8 (images, 28, 28) from an idx3 file; UserError if it is damaged."""
    content = _read(path)
    magic, count, rows, columns = _header(content, ">4I", path)
    _check_magic(magic, _IMAGES_MAGIC, path)
    if (rows, columns) != (SIDE, SIDE):
        raise UserError(f"{path} has images of {rows} x {columns}, Fashion-MNIST has 28 x 28")
    _check_length(len(content), 16 + count * SIDE * SIDE, path)
    return np.frombuffer(content, np.uint8, offset=16).reshape(count, SIDE, SIDE)


def read_idx_labels(path: Path) -> np.ndarray:
    """uint8 (images,) from an idx1 file; UserError if it is damaged."""
    content = _read(path)
    magic, count = _header(content, ">2I", path)
    _check_magic(magic, _LABELS_MAGIC, path)
    _check_length(len(content), 8 + count, path)
    labels = np.frombuffer(content, np.uint8, offset=8)
    check_labels(labels, CLASSES, path)
    return labels


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _header(content: bytes, layout: str, path: Path) -> tuple[int, ...]:
    size = struct.calcsize(layout)
    if len(content) < size:
        raise UserError(f"{path} is damaged: {len(content)} bytes, its header alone has {size}")
    return struct.unpack(layout, content[:size])


def _check_magic(magic: int, expected: int, path: Path) -> None:
    if magic != expected:
        raise UserError(f"{path} is not the idx file expected: it begins {magic}, not {expected}")


def _check_length(length: int, expected: int, path: Path) -> None:
    if length != expected:
        raise UserError(f"{path} is damaged: {length} bytes, its header promises {expected}")
