"""Operators called without PyTorch's dispatcher: never where somebody is to see them."""

import pytest
import torch
from operator_cases import needs_cpu_backend, scan_inputs
from torch.autograd import forward_ad
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.flop_counter import FlopCounterMode

from fastvim.kernels import selective_scan
from fastvim.kernels.norm import rms_norm
from fastvim.models import create_model

pytestmark = needs_cpu_backend


def scan(*tensors):
    return selective_scan(*tensors, delta_softplus=True)


def tensors() -> list[torch.Tensor]:
    return [t for t in scan_inputs(2, 4, 5, 3).values() if isinstance(t, torch.Tensor)]


def test_modes_see_the_operator():
    with FlopCounterMode(display=False) as counter:
        watched = scan(*tensors())
    assert counter.get_total_flops() > 0
    assert torch.equal(watched, scan(*tensors()))


def test_tensors_without_data_meet_the_operator():
    elsewhere = [tensor.to("meta") for tensor in tensors()]
    assert scan(*elsewhere).shape == scan(*tensors()).shape


def test_subclasses_see_the_operator():
    x, weight = torch.randn(3, 8), torch.ones(8)
    y = rms_norm(TwoTensor(x, 2 + x), weight, 1e-5)
    assert torch.equal(y.a, rms_norm(x, weight, 1e-5))
    assert torch.equal(y.b, rms_norm(2 + x, weight, 1e-5))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_transforms_meet_the_operator():
    """Their tensors have no data to compute on: PyTorch maps the operator, and has no gradient."""
    u, *others = tensors()
    mapped = torch.vmap(lambda u: scan(u, *others))(torch.stack([u, 2 * u]))
    assert torch.equal(mapped, torch.stack([scan(u, *others), scan(2 * u, *others)]))
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.grad(lambda u: scan(u, *others).sum())(u)


def test_second_derivatives_are_refused():
    """Left out in silence, a penalty on a gradient would be a constant."""
    leaves = [tensor.requires_grad_() for tensor in tensors()]
    gradient, *_ = torch.autograd.grad(scan(*leaves).sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        torch.autograd.grad(gradient.sum(), leaves)


def forward_mode(function, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, x))).tangent


@pytest.mark.parametrize(
    "derive",
    [
        forward_mode,
        lambda function, x: torch.func.jvp(function, (x,), (x,)),
        lambda function, x: torch.func.jacfwd(function)(x),
        lambda function, x: torch.vmap(lambda row: torch.func.jvp(function, (row,), (row,)))(
            x[None]
        ),
        lambda function, x: torch.func.jvp(torch.vmap(function), (x[None],), (x[None],)),
    ],
    ids=["forward_ad", "jvp", "jacfwd", "mapped jvp", "jvp of mapped"],
)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_forward_mode_derivatives_are_refused(derive):
    """PyTorch drops the tangents of such operators: the derivatives would be zeros."""
    u, *others = tensors()
    model = create_model("fastvim_femto", image_size=8).requires_grad_(False)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        derive(lambda u: scan(u, *others), u)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        derive(model, torch.randn(2, 1, 8, 8))
    with forward_ad.dual_level():
        assert torch.equal(scan(u, *others), scan(*map(torch.clone, (u, *others))))


def test_forward_mode_derivatives_of_a_backward_are_refused():
    model = create_model("fastvim_femto", image_size=8)
    x = torch.randn(2, 1, 8, 8)
    [y] = model.forward_intermediates(x, 1, intermediates_only=True)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        forward_mode(lambda grad_y: torch.autograd.grad(y, model.pos_embed, grad_y)[0], y.detach())


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_a_model_is_mapped():
    models = [create_model("fastvim_femto", image_size=8, seed=seed) for seed in (0, 1)]
    weights, buffers = torch.func.stack_module_state(models)
    x = torch.randn(2, 1, 8, 8)

    def run(weights, buffers):
        return torch.func.functional_call(models[0], (weights, buffers), (x,))

    with torch.no_grad():
        mapped = torch.vmap(run)(weights, buffers)
        torch.testing.assert_close(mapped, torch.stack([model(x) for model in models]))


def test_another_default_device_changes_nothing():
    x, weight = torch.randn(3, 4, 8), torch.randn(8)
    given, expected = tensors(), scan(*tensors())
    with torch.device("meta"):
        assert rms_norm(x, weight, 1e-5).device.type == "cpu"
        assert torch.equal(scan(*given), expected)


def negated(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, in memory of the other sign, as PyTorch makes them of conjugates' parts."""
    lazy = torch._neg_view(-tensor)
    assert lazy.is_neg() and torch.equal(lazy, tensor)
    return lazy


def test_signs_that_are_yet_to_be_turned():
    given = tensors()
    assert torch.equal(scan(*map(negated, given)), scan(*given))
    x, weight = torch.randn(3, 8), torch.randn(8)
    assert torch.equal(rms_norm(negated(x), weight, 1e-5), rms_norm(x, weight, 1e-5))


def test_gradients_whose_signs_are_yet_to_be_turned():
    tokens, model = torch.randn(2, 1, 28, 28), create_model("fastvim_femto", image_size=28)
    y = model.forward_features(tokens)
    grad_y, weights = torch.randn_like(y), list(model.parameters())
    expected = torch.autograd.grad(y, weights, grad_y, retain_graph=True, allow_unused=True)
    found = torch.autograd.grad(y, weights, negated(grad_y), allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        assert one is other is None or torch.equal(one, other)
