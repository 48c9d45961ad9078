import subprocess
import sys

import pytest

from fastvim.data import DataConfig
from fastvim.data.sets import SETS


@pytest.mark.parametrize("name", SETS)
def test_resolved_config_survives_json(name):
    config = DataConfig(name=name, root="somewhere" if name == "imagefolder" else None)
    assert config.image_size == SETS[name].image_size
    assert len(config.mean) == len(config.std) == config.channels
    assert DataConfig.model_validate(config.model_dump(mode="json")) == config


def test_null_means_the_default_of_the_set():
    assert DataConfig(image_size=None, padding=None) == DataConfig()
    assert DataConfig(name="cifar10").padding == 4
    assert DataConfig(name="cifar10", validation_fraction=None).validation_fraction == 0.1
    assert DataConfig(scale=[0.3, 1.0]).padding == 0
    assert DataConfig(channels=3).mean == (0.286,) * 3


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "cifar"}, "did you mean 'cifar10'"),
        ({"name": ["cifar10"]}, "unknown data set"),
        ({"hflp": 0.5}, "hflp"),
        ({"image_size": True}, "image_size"),
        ({"image_size": "32"}, "image_size"),
        ({"image_size": 0}, "image_size"),
        ({"hflip": 1.5}, "hflip"),
        ({"hflip": float("nan")}, "hflip"),
        ({"mixup": -0.1}, "mixup"),
        ({"crop_pct": 0.0}, "crop_pct"),
        ({"ratio": [2.0, 1.0]}, "ratio"),
        ({"scale": [0.5, 1.5]}, "at most 1"),
        ({"scale": [0.5]}, "scale"),
        ({"scale": [0.5, 1.0], "padding": 2}, "padding"),
        ({"re_mode": "pixl"}, "'const', 'rand' or 'pixel'"),
        ({"auto_augment": "rnd-m9"}, "did you mean 'rand'"),
        ({"auto_augment": "rand-mx"}, "'mx'"),
        ({"auto_augment": "augmix-inc1"}, "'inc1'"),
        ({"train_images": 0}, "train_images"),
        ({"root": "somewhere"}, "read from the package"),
        ({"validation_fraction": 0.2}, "its own validation"),
        ({"name": "cifar10", "channels": 1}, "channels must be 3"),
        ({"name": "cifar10", "validation_fraction": 1.0}, "validation_fraction"),
        ({"name": "imagefolder"}, "data.root"),
    ],
)
def test_bad_values_are_named(values, words):
    with pytest.raises(ValueError) as caught:
        DataConfig(**values)
    assert words in str(caught.value)


def test_frozen():
    with pytest.raises(ValueError, match="frozen"):
        DataConfig().image_size = 3


def test_configuration_and_listing_need_no_torch():
    script = (
        "import sys, fastvim.data as data; data.DataConfig(); data.find_datasets(); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
