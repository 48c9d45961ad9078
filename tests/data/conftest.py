from pathlib import Path

import pytest
from PIL import Image

from fastvim.data.fashion_mnist import read_subset


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """Real images of three classes in root/train and root/val; not square, not of one size."""
    root = tmp_path_factory.mktemp("imagefolder")
    arrays = read_subset()
    for split, folder, per_class in (("train", "train", 8), ("validation", "val", 3)):
        part = arrays[split]
        for label in range(3):
            positions = (part.labels == label).nonzero()[0][:per_class]
            target = root / folder / f"class{label}"
            target.mkdir(parents=True)
            for place, position in enumerate(positions):
                image = Image.fromarray(part.pixels[position, 0]).resize((40 + place, 36))
                image.save(target / f"{position}.png")
    return root
