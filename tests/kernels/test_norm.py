"""RMSNorm against PyTorch's."""

import pytest
import torch
import torch.nn.functional as F
from operator_cases import needs_cpu_backend, relative_error

from fastvim.kernels import rms_norm, use_backend

pytestmark = needs_cpu_backend


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 7, 16), (2, 3, 37), (0, 4)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_as_pytorch(shape, dtype, tolerance):
    generator = torch.Generator().manual_seed(sum(shape))
    x, grad = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    weight = torch.randn(shape[-1], generator=generator).to(dtype)
    found, expected = [], []
    with use_backend("cpu"):
        for results, norm in ((found, rms_norm), (expected, _pytorch)):
            leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
            y = norm(*leaves, 1e-3)
            results += [y.detach(), *torch.autograd.grad(y, leaves, grad)]
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) < tolerance


def _pytorch(x, weight, eps):
    return F.rms_norm(x, weight.shape, weight, eps)


def test_strided_input_and_opcheck():
    x = torch.randn(4, 3, 6, dtype=torch.float64).transpose(0, 1).requires_grad_()
    weight = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert relative_error(rms_norm(x, weight, 1e-5), _pytorch(x, weight, 1e-5)) < 1e-14
    torch.library.opcheck(torch.ops.fastvim.rms_norm, (x, weight, 1e-5))
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-5), (x, weight))


def test_other_backends_are_pytorchs():
    x, weight = torch.randn(2, 6), torch.randn(6)
    with use_backend("reference"):
        assert torch.equal(rms_norm(x, weight, 1e-5), _pytorch(x, weight, 1e-5))


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="weight has shape"):
        rms_norm(torch.randn(2, 6), torch.randn(5), 1e-5)
