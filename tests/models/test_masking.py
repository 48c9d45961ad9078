import pytest
import torch

from fastvim.errors import UserError
from fastvim.models import resolve_config
from fastvim.models.config import MaskingConfig
from fastvim.models.masked_autoencoder import MaskedAutoencoder
from fastvim.models.masking import kept_places

GRID = (6, 8)


def noise(batch=5):
    return torch.rand(batch, 48, generator=torch.Generator().manual_seed(1))


def kept(**masking):
    return kept_places(noise(), GRID, MaskingConfig(**masking))


def grid_of(places):
    """Which tokens are kept, (B, rows, cols)."""
    return torch.zeros(len(places), 48).scatter(1, places, 1).reshape(-1, *GRID)


def test_random_keeps_the_smallest():
    places = kept(mask_ratio=0.75)
    assert places.shape == (5, 12)
    smallest = noise().topk(12, largest=False).indices.sort(dim=1).values
    assert torch.equal(places, smallest)


@pytest.mark.parametrize("ratio", [0.75, 0.6, 0.9])
def test_every_row_keeps_equally_many(ratio):
    places = kept(mask_ratio=ratio, pattern="row-balanced")
    rows = grid_of(places).sum(dim=2)
    assert places.shape[1] == int(48 * (1 - ratio))
    assert int(rows.max() - rows.min()) <= 1
    # Random masking does leave rows unequal, so the test can fail.
    unequal = grid_of(kept(mask_ratio=ratio)).sum(dim=2)
    assert int(unequal.max() - unequal.min()) > 1


def test_whole_blocks_are_removed():
    places = kept(mask_ratio=0.75, pattern="block", block_size=2)
    blocks = grid_of(places).reshape(5, 3, 2, 4, 2).permute(0, 1, 3, 2, 4).reshape(5, 12, 4)
    assert torch.equal(
        blocks.sum(dim=2).sort(dim=1).values, torch.tensor([[0.0] * 9 + [4] * 3] * 5)
    )


def test_blocks_that_do_not_divide_the_grid_keep_the_right_number():
    places = kept(mask_ratio=0.7, pattern="block", block_size=5)
    assert places.shape == (5, 14)
    assert all(len(set(row)) == 14 for row in places.tolist())


@pytest.mark.parametrize("pattern", ["random", "block", "row-balanced"])
def test_places_are_ascending_and_differ_between_images(pattern):
    places = kept(mask_ratio=0.75, pattern=pattern, block_size=2)
    assert (places.diff(dim=1) > 0).all()
    assert len({tuple(row) for row in places.tolist()}) > 1


@pytest.mark.parametrize(
    ("model", "masking", "message"),
    [
        ({}, {"mask_ratio": 0.99}, r"mask_ratio: 0.99 keeps none of 49 tokens; 0.9795 keeps one"),
        ({"class_token": "middle", "schedule": []}, {}, "class_token: .* none, not 'middle'"),
        ({"d_model": 30}, {}, "d_model: 30 is no multiple of 4"),
        ({"stride": 3, "patch_size": 4}, {}, "stride: .* may not overlap"),
    ],
)
def test_what_makes_no_sense_is_named(model, masking, message):
    config = resolve_config("fastvim_femto", {"patch_size": 4, **model})
    with pytest.raises(UserError, match=message):
        MaskedAutoencoder(config, MaskingConfig(**masking))


def test_the_largest_ratio_that_is_named_keeps_one():
    config = resolve_config("fastvim_femto", {"patch_size": 4})
    assert MaskingConfig(mask_ratio=0.9795).kept_tokens(49) == 1
    MaskingConfig(mask_ratio=0.9795).check(config)
