import numpy as np
import pytest
import torch

from fastvim.data.config import DataConfig
from fastvim.data.mixing import create_mixing
from fastvim.errors import UserError


def mixed(values, batch=0, seed=0, size=8):
    mixing = create_mixing(DataConfig(**values), num_classes=10, smoothing=0.1)
    images = torch.arange(size, dtype=torch.float32)[:, None, None, None].expand(-1, 1, 28, 28)
    return mixing(images.clone(), torch.arange(size) % 10, seed, 0, batch)


def test_none_asked_for():
    assert create_mixing(DataConfig(), 10) is None


@pytest.mark.parametrize("values", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mixing_depends_on_seed_epoch_and_batch_only(values):
    np.random.seed(4)
    images, targets = mixed(values)
    np.random.seed(5)
    state = np.random.get_state()[1].copy()
    again = mixed(values)
    assert torch.equal(images, again[0]) and torch.equal(targets, again[1])
    assert np.array_equal(state, np.random.get_state()[1])
    assert torch.allclose(targets.sum(1), torch.ones(8))
    others = [mixed(values, batch=1), mixed(values, seed=1)]
    assert all(not torch.equal(images, other) for other, _ in others)


@pytest.mark.parametrize("values", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_targets_have_the_weights_of_the_images(values):
    """Image i is filled with i and mixed with 7 - i, so its mean tells the weight it kept."""
    for batch in range(5):
        images, targets = mixed(values, batch)
        for place in (0, 1, 2):
            kept = (images[place].mean() - (7 - place)) / (2 * place - 7)
            expected = 0.9 * kept + 0.01
            assert torch.isclose(targets[place, place], expected, atol=1e-4)


def test_probability_zero_leaves_the_images():
    images, targets = mixed({"mixup": 0.8, "mixup_prob": 0.0})
    assert images[3].unique().tolist() == [3.0]
    assert torch.allclose(targets[3, 3], torch.tensor(0.91))


def test_odd_batch():
    with pytest.raises(UserError, match="even, not 7"):
        mixed({"mixup": 0.8}, size=7)
