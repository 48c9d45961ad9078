"""RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467): fused on the CPU, PyTorch's elsewhere.

PyTorch's runs as six operators on the CPU and keeps two tensors for its backward; this one reads
the rows once and keeps its input and a number a row.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvim.kernels import backends, calls
from fastvim.kernels.direct import operator
from fastvim.kernels.native import NormCall
from fastvim.kernels.shapes import check_tensors


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., D) over the root of the mean of its squares over D plus eps, times weight (D,).

    Raises ValueError where the weight does not fit.
    """
    check_tensors(x.device, [("weight", weight, (tuple(x.shape[-1:]),))])
    if weight.dtype != x.dtype or backends.choose(x.device.type, x.dtype) != "cpu":
        return F.rms_norm(x, weight.shape, weight, eps)
    return _rms_norm(x, weight, eps)[0]


@operator("fastvim::rms_norm", device_types="cpu")
def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x, weight = x.contiguous(), weight.contiguous()
    y, scale = torch.empty_like(x), x.new_empty(x.shape[:-1])
    call = _call(x, weight, scale, eps)
    call.y = y.data_ptr()
    calls.run("fastvim_norm_forward", call, x.dtype)
    return y, scale


@_rms_norm.register_fake
def _(x, weight, eps):
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1])


@operator("fastvim::rms_norm_backward", device_types="cpu")
def _rms_norm_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    grad_y, x, weight = grad_y.contiguous(), x.contiguous(), weight.contiguous()
    grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
    call = _call(x, weight, scale)
    call.grad_y, call.grad_x = grad_y.data_ptr(), grad_x.data_ptr()
    call.grad_weight = grad_weight.data_ptr()
    calls.run("fastvim_norm_backward", call, x.dtype)
    return grad_x, grad_weight


@_rms_norm_backward.register_fake
def _(grad_y, x, weight, scale):
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _call(x: Tensor, weight: Tensor, scale: Tensor, eps: float = 0.0) -> NormCall:
    return NormCall(
        scale.numel(),
        weight.shape[0],
        torch.get_num_threads(),
        eps,
        x.data_ptr(),
        weight.data_ptr(),
        scale=scale.data_ptr(),
    )


def _save(ctx, inputs, output) -> None:
    x, weight, _ = inputs
    _, scale = output
    ctx.mark_non_differentiable(scale)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, scale)


def _differentiate(ctx, grad_y, _grad_scale):
    if grad_y is None:
        return None, None, None
    return *_rms_norm_backward(grad_y, *ctx.saved_tensors), None


_rms_norm.register_autograd(_differentiate, setup_context=_save)
