"""The files here have CIFAR's formats and sizes and made-up pixels.

Image i of a file is filled with 7 i mod 251 in red, 1 + that in green and 2 + that in blue, but
for one marked pixel.
"""

import pickle
import struct

import numpy as np
import pytest

from fastvim.data import DataConfig, load
from fastvim.data.cifar import read_cifar
from fastvim.errors import UserError


def pixels_and_labels(count: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    fill = (np.arange(count) * 7 % 251).astype(np.uint8)
    pixels = np.empty((count, 3, 1024), np.uint8)
    pixels[:] = fill[:, None, None] + np.arange(3, dtype=np.uint8)[:, None]
    pixels[:, 1, 5 * 32 + 30] = 255  # green, row 5, column 30
    return pixels.reshape(count, 3072), (np.arange(count) % classes).astype(np.uint8)


def python2_pickle(pixels: np.ndarray, key: bytes, labels: list[int]) -> bytes:
    """The pickle that Python 2 and its numpy wrote, as published; Python 3 cannot write it."""

    def short(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text

    dtype = b"cnumpy\ndtype\n(" + short(b"u1") + b"K\x00K\x01tR"
    dtype += b"(K\x03" + short(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"".join(b"J" + struct.pack("<i", size) for size in pixels.shape)
    raw = b"T" + struct.pack("<i", pixels.size) + pixels.tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + short(b"b") + b"tR"
    array += b"(K\x01(" + shape + b"t" + dtype + b"\x89" + raw + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + short(b"data") + array + short(key) + numbers + b"u."


@pytest.fixture(scope="module")
def cifar10_binary(tmp_path_factory):
    root = tmp_path_factory.mktemp("cifar10")
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    pixels, labels = pixels_and_labels(10_000, 10)
    content = np.concatenate([labels[:, None], pixels], axis=1).tobytes()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / f"{name}.bin").write_bytes(content)
    return root


def test_cifar10_binary(cifar10_binary):
    data = load(DataConfig(name="cifar10", root=str(cifar10_binary)))
    assert data.split_sizes == {"train": 45_000, "validation": 5_000, "test": 10_000}
    assert data.class_names[0] == "airplane" and data.in_channels == 3
    images = data.splits["test"]
    assert images.labels[:12].tolist() == [*range(10), 0, 1]
    assert images.pixels[13, :, 0, 0].tolist() == [91, 92, 93]
    assert images.pixels[13, :, 5, 30].tolist() == [91, 255, 93]
    batch, _, _ = next(data.train_batches(0, 0, 4))
    assert batch.shape == (4, 3, 32, 32)


def test_python_version_is_the_same_set(cifar10_binary, tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels, labels = pixels_and_labels(10_000, 10)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    content = python2_pickle(pixels, b"labels", labels.tolist())
    for name in names:
        (folder / name).write_bytes(content)
    # Written anew by Python 3, as some tools do.
    again = pickle.dumps({b"data": pixels, b"labels": labels.tolist()}, protocol=2)
    (folder / "data_batch_3").write_bytes(again)
    python = load(DataConfig(name="cifar10", root=str(tmp_path), train_images=10))
    binary = load(DataConfig(name="cifar10", root=str(cifar10_binary), train_images=10))
    assert python.fingerprint == binary.fingerprint


def test_cifar100_takes_the_fine_label(tmp_path):
    for name, count in (("train.bin", 50_000), ("test.bin", 10_000)):
        pixels, labels = pixels_and_labels(count, 100)
        content = np.concatenate([labels[:, None] // 5, labels[:, None], pixels], axis=1)
        (tmp_path / name).write_bytes(content.tobytes())
    data = load(DataConfig(name="cifar100", root=str(tmp_path)))
    assert data.num_classes == 100 and data.class_names[99] == "worm"
    assert data.splits["test"].labels[:3].tolist() == [0, 1, 2]
    assert data.splits["test"].pixels[13, :, 5, 30].tolist() == [91, 255, 93]
    assert np.bincount(data.splits["validation"].labels).tolist() == [50] * 100


def test_damaged_binary_file_is_named(tmp_path):
    path = tmp_path / "test.bin"
    paths = {"train.bin": tmp_path / "train.bin", "test.bin": path}
    path.write_bytes(bytes(3074 * 9_999))
    with pytest.raises(
        UserError, match=r"test\.bin is damaged: 30736926 bytes, should be 30740000"
    ):
        read_cifar(paths, "binary", 100)
    path.write_bytes(bytes([0, 100]) + bytes(3074 * 10_000 - 2))
    with pytest.raises(UserError, match=r"test\.bin is damaged: label 100"):
        read_cifar(paths, "binary", 100)
    path.unlink()
    with pytest.raises(UserError, match=r"cannot read .*test\.bin"):
        read_cifar(paths, "binary", 100)


class Attack:
    """Unpickled in the usual way, it would make a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        import os

        return os.mkdir, (self.folder,)


def test_pickle_runs_no_code(tmp_path):
    path = tmp_path / "test"
    paths = {"train": tmp_path / "train", "test": path}
    path.write_bytes(pickle.dumps(Attack(tmp_path / "made"), protocol=2))
    with pytest.raises(UserError, match="mkdir, which is not allowed"):
        read_cifar(paths, "python", 100)
    assert not (tmp_path / "made").exists()
    pickle.loads(path.read_bytes())  # the file was a real attack
    assert (tmp_path / "made").exists()


PIXELS, FINE = pixels_and_labels(4, 100)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "Ran out of input"),
        (b"no pickle", "cannot read"),
        (python2_pickle(PIXELS, b"fine_labels", FINE.tolist())[:-50], "cannot read"),
        (python2_pickle(PIXELS, b"fine_labels", FINE.tolist()), "shape (4, 3072)"),
        (python2_pickle(PIXELS, b"labels", FINE.tolist()), "lacks data or fine_labels"),
        (pickle.dumps([1, 2], protocol=2), "lacks data"),
        (pickle.dumps({b"data": {}, b"fine_labels": []}, protocol=2), "shape (0,)"),
        (pickle.dumps({b"data": PIXELS.astype(float)}, protocol=2), "array of 'f8'"),
        (pickle.dumps({b"data": np.asfortranarray(PIXELS)}, protocol=2), "row order"),
    ],
)
def test_damaged_pickle_is_named(tmp_path, content, words):
    path = tmp_path / "test"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_cifar({"train": tmp_path / "train", "test": path}, "python", 100)
    assert str(path) in str(caught.value) and words in str(caught.value)
