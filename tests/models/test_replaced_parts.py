"""Parts that are replaced, patched or watched are called, on every backend."""

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from fastvim.models import create_model
from fastvim.models.mixer import Mixer


class Silent(Mixer):
    def forward(self, x, layout, divisor=None):
        return torch.zeros_like(x)


def replace_class(mixer):
    mixer.__class__ = Silent


def patch_forward(mixer):
    mixer.forward = lambda x, layout, divisor=None: torch.zeros_like(x)


@pytest.mark.parametrize("replace", [replace_class, patch_forward])
def test_a_mixer_of_another_kind(replace):
    model, x = create_model("fastvim_femto"), torch.randn(2, 1, 28, 28)
    for block in model.blocks:
        replace(block.mixer)
    assert torch.equal(model.forward_features(x), model.norm(model.embed(x)))


def with_norms(make) -> nn.Module:
    model = create_model("fastvim_femto").double()
    for block in model.blocks:
        block.mixer.norm = make(block.mixer.norm.normalized_shape).double()
    return model


@pytest.mark.parametrize(
    ("norm", "same"),
    [
        (nn.LayerNorm, lambda shape: nn.Sequential(nn.LayerNorm(shape))),
        (
            lambda shape: nn.LayerNorm(shape, eps=0.5),
            lambda shape: nn.Sequential(nn.LayerNorm(shape, eps=0.5)),
        ),
        (
            lambda shape: nn.LayerNorm(shape, elementwise_affine=False),
            lambda shape: nn.LayerNorm(shape),
        ),
    ],
    ids=["wrapped", "another eps", "without weights"],
)
def test_a_norm_after_the_scan_of_another_kind(norm, same):
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    torch.testing.assert_close(with_norms(norm)(x), with_norms(same)(x), rtol=1e-10, atol=1e-12)


def test_no_norm_after_the_scan():
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    plain = create_model("fastvim_femto", post_ssm_norm=False).double()
    torch.testing.assert_close(with_norms(lambda _: nn.Identity())(x), plain(x))


def test_hooks_of_the_norm_after_the_scan_and_of_all_modules():
    model, seen = create_model("fastvim_femto"), []
    x = torch.randn(2, 1, 28, 28)
    plain = model(x)
    hook = model.blocks[0].mixer.norm.register_forward_hook(lambda *_: seen.append("norm"))
    torch.testing.assert_close(model(x), plain)
    hook.remove()
    assert seen == ["norm"]
    hook = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m)))
    try:
        torch.testing.assert_close(model(x), plain)
    finally:
        hook.remove()
    assert seen.count(Mixer) == len(model.blocks)


def test_stochastic_depth_that_trains_alone():
    """As for the spread of predictions, while the rest of the model is evaluated."""
    model, x = (
        create_model("fastvim_femto", depth=4, drop_path_rate=0.5).eval(),
        torch.randn(4, 1, 28, 28),
    )
    for module in model.modules():
        if isinstance(module, DropPath):
            module.train()
    assert not torch.equal(model(x), model(x))
