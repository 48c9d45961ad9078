"""Images in memory as the readers give them, and the choice of balanced subsets."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fastvim.errors import UserError


@dataclass(frozen=True)
class LabelledArrays:
    """`pixels` uint8 (images, channels, rows, columns), `labels` int64 (images,)."""

    pixels: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def check_labels(labels: np.ndarray, num_classes: int, where: object) -> None:
    """Raises UserError naming the file `where` if a label is outside 0..num_classes - 1."""
    if len(labels) and int(labels.max()) >= num_classes:
        raise UserError(
            f"{where} is damaged: label {int(labels.max())}, labels are 0 to {num_classes - 1}"
        )


def content_hash(splits: Mapping[str, LabelledArrays]) -> str:
    """sha256 (hexadecimal) of the decoded images and labels, the same however they are packed."""
    digest = hashlib.sha256()
    for name in sorted(splits):
        split = splits[name]
        digest.update(f"{name} {split.pixels.shape}".encode())
        digest.update(np.ascontiguousarray(split.pixels).data)
        digest.update(split.labels.astype("<i8").tobytes())
    return digest.hexdigest()


def balanced_subset(labels: np.ndarray, count: int) -> np.ndarray:
    """Sorted positions of `count` images, spread over the classes as evenly as they allow.

    Fixed: it depends on the labels and `count` only, and a smaller subset lies in a larger one.
    """
    priority = np.random.default_rng(0).random(len(labels))
    by_class = np.lexsort((priority, labels))
    first_of_class = np.searchsorted(labels[by_class], labels[by_class])
    rank_in_class = np.empty(len(labels), dtype=np.int64)
    rank_in_class[by_class] = np.arange(len(labels)) - first_of_class
    return np.sort(np.lexsort((labels, rank_in_class))[:count])
