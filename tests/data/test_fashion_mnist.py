import gzip
import hashlib
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from fastvim.data import DataConfig, load
from fastvim.data.arrays import LabelledArrays, content_hash
from fastvim.data.fashion_mnist import (
    read_idx_images,
    read_idx_labels,
    read_official,
    read_subset,
)
from fastvim.data.locate import PACKAGED, locate
from fastvim.data.make_fashion_mnist_subset import choose, encode
from fastvim.errors import UserError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
needs_debian = pytest.mark.skipif(
    not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)


def test_subset_is_balanced_and_never_overlaps():
    splits = read_subset()
    assert {split: len(part) for split, part in splits.items()} == {
        "train": 12_000,
        "validation": 2_000,
        "test": 2_000,
    }
    for part in splits.values():
        assert np.bincount(part.labels).tolist() == [len(part) // 10] * 10
    every = [image.tobytes() for part in splits.values() for image in part.pixels]
    assert len(set(every)) == 16_000


def test_packaged_files_are_small_and_have_their_licence():
    files = list(PACKAGED.iterdir())
    assert sum(file.stat().st_size for file in files) < 8e6
    licence = (PACKAGED / "LICENSE.fashion-mnist").read_text()
    assert "MIT" in licence and "Zalando SE" in licence


def test_load_of_the_subset():
    data = load(DataConfig())
    assert (data.name, data.num_classes, data.in_channels) == ("fashion-mnist-subset", 10, 1)
    assert data.licence.startswith("MIT")
    assert data.class_names[9] == "Ankle boot"
    assert len(data.fingerprint) == 64
    assert not data.test_is_validation
    # The usual statistics of the set, so images are normalised to about mean 0 and deviation 1.
    images = torch.cat([images for images, _, _ in data.evaluation_batches("test", 500)])
    assert abs(images.mean()) < 0.1 and abs(images.std() - 1) < 0.1


def test_fingerprint_follows_pixels_labels_and_splits():
    def one(value, label, split="train"):
        pixels, labels = np.full((1, 1, 2, 2), value, np.uint8), np.array([label])
        return content_hash({split: LabelledArrays(pixels, labels)})

    assert one(3, 1) == one(3, 1)
    assert len({one(3, 1), one(4, 1), one(3, 2), one(3, 1, "test")}) == 4


@pytest.fixture
def packaged_copy(tmp_path):
    for file in PACKAGED.glob("*.png"):
        shutil.copy(file, tmp_path)
    return tmp_path


def test_damaged_subset(packaged_copy):
    path = packaged_copy / "fashion-mnist-validation.png"
    pixels = read_subset(packaged_copy)["validation"].pixels[:, 0].copy()
    pixels[7, 3, 3] ^= 1
    path.write_bytes(encode(pixels))
    with pytest.raises(UserError, match=r"fashion-mnist-validation\.png is damaged: its sha256"):
        read_subset(packaged_copy)
    path.write_bytes(encode(pixels[:1000]))
    with pytest.raises(UserError, match=r"fashion-mnist-validation\.png is damaged"):
        read_subset(packaged_copy)
    path.write_bytes((PACKAGED / path.name).read_bytes()[:5000])
    with pytest.raises(UserError, match=r"cannot read .*fashion-mnist-validation\.png"):
        read_subset(packaged_copy)
    path.unlink()
    with pytest.raises(UserError, match=r"cannot read .*fashion-mnist-validation\.png"):
        read_subset(packaged_copy)


@needs_debian
def test_script_makes_the_same_images_again():
    _, paths = locate("fashion-mnist", str(DEBIAN))
    official = read_official(paths)
    chosen = choose(official)
    packaged = read_subset()
    for split, pixels in chosen.items():
        assert np.array_equal(pixels, packaged[split].pixels[:, 0])

    # The labels are implied by the order: compare with those of the published files.
    published = {
        hashlib.sha256(image).hexdigest(): (split, label)
        for split, part in official.items()
        for image, label in zip(part.pixels.copy(), part.labels, strict=True)
    }
    for split, part in packaged.items():
        source = "test" if split == "test" else "train"
        for image, label in zip(part.pixels, part.labels, strict=True):
            assert published[hashlib.sha256(image).hexdigest()] == (source, label)


@needs_debian
def test_whole_set_holds_out_a_balanced_validation_split():
    data = load(DataConfig(name="fashion-mnist", root=str(DEBIAN), validation_fraction=0.05))
    assert data.split_sizes == {"train": 57_000, "validation": 3_000, "test": 10_000}
    assert np.bincount(data.splits["validation"].labels).tolist() == [300] * 10
    train = {image.numpy().tobytes() for image in data.splits["train"].pixels}
    assert not any(image.numpy().tobytes() in train for image in data.splits["validation"].pixels)
    smaller = load(DataConfig(name="fashion-mnist", root=str(DEBIAN), train_images=100))
    assert smaller.fingerprint == data.fingerprint


IMAGES = struct.pack(">4I", 2051, 3, 28, 28) + bytes(3 * 784)
LABELS = struct.pack(">2I", 2049, 3) + bytes([3, 0, 9])


def test_idx_files_are_read_plain_and_gzipped(tmp_path):
    (tmp_path / "images.gz").write_bytes(gzip.compress(IMAGES[:-1] + b"\7", mtime=0))
    (tmp_path / "labels").write_bytes(LABELS)
    assert read_idx_images(tmp_path / "images.gz").shape == (3, 28, 28)
    assert read_idx_images(tmp_path / "images.gz")[2, 27, 27] == 7
    assert read_idx_labels(tmp_path / "labels").tolist() == [3, 0, 9]


@pytest.mark.parametrize(
    ("read", "name", "content", "words"),
    [
        (read_idx_images, "file.gz", gzip.compress(IMAGES, mtime=0)[:-9], "cannot read"),
        (read_idx_images, "file.gz", b"not gzip at all", "cannot read"),
        (read_idx_images, "file", LABELS + IMAGES, "begins 2049, not 2051"),
        (read_idx_images, "file", IMAGES[:-1], "2367 bytes, its header promises 2368"),
        (read_idx_images, "file", IMAGES[:7], "7 bytes, its header alone has 16"),
        (read_idx_images, "file", IMAGES.replace(b"\x1c", b"\x1d"), "29 x 29"),
        (read_idx_labels, "file", IMAGES, "begins 2051, not 2049"),
        (read_idx_labels, "file", LABELS + b"\0", "12 bytes, its header promises 11"),
        (read_idx_labels, "file", LABELS[:-1] + b"\x0a", "label 10, labels are 0 to 9"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, read, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(path) in str(caught.value) and words in str(caught.value)


def test_set_with_too_few_images(tmp_path):
    for prefix in ("train", "t10k"):
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(IMAGES)
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(LABELS)
    with pytest.raises(UserError, match="has 3 entries, Fashion-MNIST has 60000"):
        load(DataConfig(name="fashion-mnist", root=str(tmp_path)))
