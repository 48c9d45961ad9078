"""Any folder of images by class, as ImageNet-1k is kept: ROOT/train/CLASS/IMAGE, ROOT/val/...

With ROOT/test the three splits are train, val and test. Without it, as in ImageNet-1k whose test
labels are secret, ROOT/val is the test split too, as in published results. The licence is the
owner's. Colour; grey images are repeated over the channels, those of 16 bits divided by 257.
"""

import hashlib
import os
from pathlib import Path

import numpy as np

from fastvim.data.images import FileImages
from fastvim.errors import UserError


def read_image_folder(root: Path) -> tuple[dict[str, FileImages], tuple[str, ...], str]:
    """Splits `train`, `validation` and `test`, the class names, and the fingerprint.

    The fingerprint is the sha256 of the sorted paths, relative to the root, and sizes of all files.
    Raises UserError if a folder is missing or empty or the splits differ in their classes.
    """
    parts = {"train": root / "train", "validation": root / "val"}
    missing = [str(part) for part in parts.values() if not part.is_dir()]
    if missing:
        raise UserError(
            f"data set imagefolder was not found: no folder {', '.join(missing)} (data.root is "
            f"{root}). It needs train/CLASS/IMAGE and val/CLASS/IMAGE, and may have test/"
        )
    if (root / "test").is_dir():
        parts["test"] = root / "test"
    splits: dict[str, FileImages] = {}
    names: tuple[str, ...] = ()
    for split, part in parts.items():
        splits[split], found = _read_split(part)
        names = names or found
        if found != names:
            differing = ", ".join(sorted(set(found) ^ set(names))[:5])
            raise UserError(f"{part} and {parts['train']} have different classes: {differing}")
    fingerprint = _fingerprint(root, splits)
    splits.setdefault("test", splits["validation"])
    return splits, names, fingerprint


def _read_split(folder: Path) -> tuple[FileImages, tuple[str, ...]]:
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(folder))
    except OSError as error:
        raise UserError(f"data set imagefolder, {folder}: {error}") from error
    _refuse_loops(folder, {path.rpartition(os.sep)[0] for path, _ in found.samples})
    labels = np.array([label for _, label in found.samples], dtype=np.int64)
    paths = np.array([os.fsencode(path) for path, _ in found.samples])
    return FileImages(paths, labels), tuple(found.classes)


def _refuse_loops(folder: Path, places: set[str]) -> None:
    """UserError where a link leads back to a folder above it: images would be there many times.

    `places`: the folders below `folder` in which images were found.
    """
    for place in sorted(places):
        above = [path for path in Path(place).parents if path.is_relative_to(folder)]
        real = {os.path.realpath(path) for path in above}
        if os.path.realpath(place) in real:
            link = next(path for path in (Path(place), *above) if path.is_symlink())
            raise UserError(
                f"data set imagefolder: the link {link} leads back to {os.path.realpath(link)}, a "
                "folder above it, so that its images would be counted again and again"
            )


def _fingerprint(root: Path, splits: dict[str, FileImages]) -> str:
    digest = hashlib.sha256()
    for encoded in np.sort(np.concatenate([split.paths for split in splits.values()])):
        path = Path(os.fsdecode(encoded))
        try:
            size = path.stat().st_size
        except OSError as error:
            raise UserError(f"cannot read the image {path}: {error.strerror}") from error
        digest.update(os.fsencode(path.relative_to(root).as_posix()) + f" {size}\n".encode())
    return digest.hexdigest()
