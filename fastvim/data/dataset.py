"""A loaded data set: its identity, its splits, and batches in an order fixed by the seed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fastvim.data import batches
from fastvim.data.arrays import balanced_subset, content_hash
from fastvim.data.cifar import read_cifar
from fastvim.data.config import DataConfig
from fastvim.data.draws import Stream, generator
from fastvim.data.fashion_mnist import read_official, read_subset
from fastvim.data.image_folder import read_image_folder
from fastvim.data.images import Images, MemoryImages
from fastvim.data.locate import locate
from fastvim.data.transforms import (
    Batch,
    evaluation_transform,
    train_transform,
    transformed_batches,
)
from fastvim.errors import UserError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Dataset:
    """A data set as training and evaluation use it.

    Batches are (images, labels, positions): float32 (B, in_channels, image_size, image_size)
    normalised, int64 (B,), and int64 (B,) places in the split. `fingerprint` identifies the
    content, not where it lies or which part the configuration uses. `test_is_validation` says that
    both are the same images, as in ImageNet-1k.
    """

    config: DataConfig
    class_names: tuple[str, ...]
    fingerprint: str
    splits: dict[str, Images]
    test_is_validation: bool

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def licence(self) -> str:
        return self.config.facts.licence

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def in_channels(self) -> int:
        return self.config.channels

    @property
    def split_sizes(self) -> dict[str, int]:
        """Images in `train`, `validation` and `test`."""
        return {split: len(images) for split, images in self.splits.items()}

    def batches_per_epoch(self, batch_size: int, drop_last: bool = True) -> int:
        """Training batches in an epoch. Raises UserError if `batch_size` exceeds the images and
        an incomplete batch is dropped: there would be nothing to train on."""
        images = len(self.splits["train"])
        if batch_size < 1 or (drop_last and batch_size > images):
            raise UserError(
                f"batch size {batch_size} does not fit {self.name}, which has {images} training "
                "images here"
            )
        return images // batch_size if drop_last else -(-images // batch_size)

    def train_batches(
        self,
        seed: int,
        epoch: int,
        batch_size: int,
        start_batch: int = 0,
        drop_last: bool = True,
    ) -> Iterator[Batch]:
        """The batches of one epoch from `start_batch` on, shuffled and augmented.

        The order is a function of (seed, epoch); an image's augmentation of (seed, epoch, place
        in the split), and its erased noise of the batch number too.
        """
        images = self.splits["train"]
        count = self.batches_per_epoch(batch_size, drop_last)
        order = generator(seed, epoch, Stream.ORDER).random(len(images)).argsort(kind="stable")
        chunks = [
            order[batch * batch_size : (batch + 1) * batch_size]
            for batch in range(start_batch, count)
        ]
        if isinstance(images, MemoryImages) and batches.is_simple(self.config):
            return batches.training_batches(images, self.config, chunks, seed, epoch, start_batch)
        transform = train_transform(self.config)
        return transformed_batches(images, transform, self.config, chunks, draws=(seed, epoch))

    def evaluation_batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        """All of `split`, `validation` or `test`, in order, without augmentation."""
        images = self.splits[split]
        places = np.arange(len(images))
        chunks = [places[i : i + batch_size] for i in range(0, len(images), batch_size)]
        if isinstance(images, MemoryImages):
            return batches.evaluation_batches(images, self.config, chunks)
        return transformed_batches(images, evaluation_transform(self.config), self.config, chunks)


def load_dataset(config: DataConfig) -> Dataset:
    """Read the set that `config` names into memory, or list its files for `imagefolder`.

    Raises UserError if files are missing or damaged, or fewer images exist than are asked for.
    """
    splits: Mapping[str, Images]
    if config.facts.in_memory:
        splits, fingerprint = _read_into_memory(config)
        class_names = config.facts.class_names
    else:
        assert config.root is not None  # the configuration makes sure
        splits, class_names, fingerprint = read_image_folder(Path(config.root).expanduser())
    same = splits["test"] is splits["validation"]
    return Dataset(config, class_names, fingerprint, _limited(splits, config), same)


def _read_into_memory(config: DataConfig) -> tuple[dict[str, MemoryImages], str]:
    if config.name == "fashion-mnist-subset":
        arrays = read_subset()
    else:
        layout, paths = locate(config.name, config.root)
        if config.name == "fashion-mnist":
            arrays = read_official(paths)
        else:
            arrays = read_cifar(paths, layout.format, len(config.facts.class_names))
    splits = {
        split: MemoryImages(torch.tensor(part.pixels), part.labels)
        for split, part in arrays.items()
    }
    if "validation" not in splits:
        assert config.validation_fraction is not None  # the configuration makes sure
        train = splits["train"]
        count = max(1, round(config.validation_fraction * len(train)))
        held_out = balanced_subset(train.labels, count)
        kept = np.setdiff1d(np.arange(len(train)), held_out)
        splits |= {"validation": train.subset(held_out), "train": train.subset(kept)}
    return {split: splits[split] for split in SPLITS}, content_hash(arrays)


def _limited(splits: Mapping[str, Images], config: DataConfig) -> dict[str, Images]:
    limited: dict[str, Images] = {}
    for split, images in splits.items():
        count = getattr(config, f"{split}_images")
        if count is not None and count > len(images):
            raise UserError(
                f"data.{split}_images is {count}, but {config.name} has {len(images)} here"
            )
        whole = count is None or count == len(images)
        limited[split] = images if whole else images.subset(balanced_subset(images.labels, count))
    return limited
