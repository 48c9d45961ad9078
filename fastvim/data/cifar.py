"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), in the binary or the Python version.

No licence is stated; the authors ask for a citation. Colour images of 32 x 32: 50,000 for training
and 10,000 for testing.

Binary: records of one label byte (CIFAR-100: coarse, then fine) and 3,072 pixel bytes, the red
plane first, each plane in row order. Python: pickles of a dictionary with `data`, uint8
(images, 3072) in the same order, and `labels` or `fine_labels`. Unpickling runs code that the file
chooses, so here the names of numpy that these files use stand for plain code below, and any other
name is an error.
"""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fastvim.data.arrays import LabelledArrays, check_labels
from fastvim.errors import UserError

SIDE = 32
PIXELS = 3 * SIDE * SIDE
IMAGES = {"train": 50_000, "test": 10_000}


def read_cifar(paths: Mapping[str, Path], layout: str, classes: int) -> dict[str, LabelledArrays]:
    """The set by split, `train` and `test`, pixels (images, 3, 32, 32).

    `paths` maps the published file names to where they are; `layout` is "binary" or "python";
    `classes` is 10 or 100 (fine labels). Raises UserError naming a damaged file.
    """
    files = {
        "test": [name for name in paths if name.startswith("test")],
        "train": [name for name in paths if not name.startswith("test")],
    }
    splits = {}
    for split, names in files.items():
        expected = IMAGES[split] // len(names)
        parts = [_read_file(paths[name], layout, classes, expected) for name in names]
        pixels = np.concatenate([part.pixels for part in parts])
        splits[split] = LabelledArrays(pixels, np.concatenate([part.labels for part in parts]))
    return splits


def _read_file(path: Path, layout: str, classes: int, expected: int) -> LabelledArrays:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    read = _read_binary if layout == "binary" else _read_python
    part = read(content, path, classes, expected)
    check_labels(part.labels, classes, path)
    return part


def _read_binary(content: bytes, path: Path, classes: int, expected: int) -> LabelledArrays:
    label_bytes = 1 if classes == 10 else 2
    size = expected * (label_bytes + PIXELS)
    if len(content) != size:
        raise UserError(f"{path} is damaged: {len(content)} bytes, should be {size}")
    records = np.frombuffer(content, np.uint8).reshape(expected, label_bytes + PIXELS)
    pixels = records[:, label_bytes:].reshape(expected, 3, SIDE, SIDE)
    return LabelledArrays(pixels, records[:, label_bytes - 1].astype(np.int64))


def _read_python(content: bytes, path: Path, classes: int, expected: int) -> LabelledArrays:
    batch = _unpickle(content, path)
    key = b"labels" if classes == 10 else b"fine_labels"
    if not isinstance(batch, dict) or b"data" not in batch or key not in batch:
        raise UserError(f"{path} is damaged: it lacks data or {key.decode()}")
    pixels = batch[b"data"].values if isinstance(batch[b"data"], _ByteArray) else np.empty(0)
    if pixels.shape != (expected, PIXELS):
        raise UserError(
            f"{path} is damaged: its data has the shape {pixels.shape}, not {(expected, PIXELS)}"
        )
    try:
        labels = np.asarray(batch[key], dtype=np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is damaged: {key.decode()}: {error}") from error
    if labels.shape != (expected,) or (labels < 0).any():
        raise UserError(f"{path} is damaged: {key.decode()} are not {expected} class numbers")
    return LabelledArrays(pixels.reshape(expected, 3, SIDE, SIDE), labels)


def _unpickle(content: bytes, path: Path) -> Any:
    try:
        return _ByteArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise anything, from EOFError to KeyError
        raise UserError(
            f"cannot read {path}: {error or type(error).__name__}; the binary version of the set "
            "(cifar-10-binary.tar.gz, cifar-100-binary.tar.gz) is read as well"
        ) from error


class _Uint8:
    """Stands for numpy's dtype and is the only one; its state, the byte order, says nothing."""

    def __init__(self, code: bytes | str, *_flags: object):
        if code not in (b"u1", "u1"):
            raise pickle.UnpicklingError(f"it holds an array of {code!r}, images are of u1")

    def __setstate__(self, _state: tuple) -> None:
        pass


class _ByteArray:
    """Stands for numpy's array: takes the state that numpy pickles, bytes only."""

    values = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple) -> None:
        _version, shape, dtype, column_order, raw = state
        if not isinstance(dtype, _Uint8) or column_order or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("it holds an array that is not of bytes in row order")
        self.values = np.frombuffer(raw, np.uint8).reshape(shape)


def _empty_array(*_shape_and_type: object) -> _ByteArray:
    return _ByteArray()


def _encode_latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in pickles of protocol 2."""
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


class _ByteArrayUnpickler(pickle.Unpickler):
    """Gives Python's own types and, for the names in numpy's pickles, the stand-ins above."""

    _allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _empty_array,
        ("numpy._core.multiarray", "_reconstruct"): _empty_array,
        ("numpy", "ndarray"): _ByteArray,
        ("numpy", "dtype"): _Uint8,
        ("_codecs", "encode"): _encode_latin1,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed")
        return self._allowed[module, name]
