"""A residual block on the `cpu` backend: the forward is one kernel, the backward a few.

The peer to be faster than is `cpu.py` with PyTorch's linear layers and norm around it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastvim.kernels import calls, norm
from fastvim.kernels.cpu import contiguous, layout_tables, pooled_mixer_backward
from fastvim.kernels.cpu_products import product, rows_product, workspace
from fastvim.kernels.native import LIBRARY, BlockCall
from fastvim.kernels.reference import MixerWeights, ScanLayout


class Kept(NamedTuple):
    """What a block's backward takes from its forward; empty tensors where nothing is kept."""

    normal: Tensor  # (B, L, d_model): after the norm
    scale: Tensor  # (B, L): of the norm
    xz: Tensor  # (B, L, 2 D): after in_proj
    merged: Tensor  # (B, L, D): before out_proj
    pooled: Tensor  # (2, B, S, D)
    scanned: Tensor  # (2, B, S, D)

    @classmethod
    def allocate(cls, x: Tensor, channels: int, layout: ScanLayout, keep: bool) -> "Kept":
        batch, length, _ = x.shape
        steps = length if layout.steps is None else layout.n_steps
        shapes = (
            x.shape,
            (batch, length),
            (batch, length, 2 * channels),
            (batch, length, channels),
            (2, batch, steps, channels),
            (2, batch, steps, channels),
        )
        return cls(*(x.new_empty(shape if keep else 0) for shape in shapes))


def block(
    x: Tensor,
    norm_weight: Tensor,
    in_proj: Tensor,
    out_proj: Tensor,
    weights: MixerWeights,
    layout: ScanLayout,
    norm_eps: float,
    keep: bool,
    **settings,
) -> tuple[Tensor, Kept]:
    """A residual block; see `block.residual_block`."""
    x, layout = x.contiguous(), layout_tables(layout)
    norm_weight, in_proj, out_proj = map(contiguous, (norm_weight, in_proj, out_proj))
    weights = MixerWeights(*map(contiguous, weights))
    batch, length, width = x.shape
    channels = out_proj.shape[1]
    y, kept = torch.empty_like(x), Kept.allocate(x, channels, layout, keep)
    call = BlockCall(
        calls.mixer_call((batch, length, channels), weights, layout, **settings),
        width,
        weights.dt_proj.shape[2],
        weights.A.shape[2],
        norm_eps,
        x.data_ptr(),
        norm_weight.data_ptr(),
        in_proj.data_ptr(),
        out_proj.data_ptr(),
        weights.x_proj.data_ptr(),
        weights.dt_proj.data_ptr(),
        weights.dt_bias.data_ptr(),
        weights.A.data_ptr(),
        y.data_ptr(),
    )
    if keep:
        for name, tensor in kept._asdict().items():
            setattr(call, name, tensor.data_ptr())
    space = workspace(LIBRARY.fastvim_block_space(call, x.dtype == torch.float64))
    call.space = space.data_ptr()
    calls.run("fastvim_block_forward", call, x.dtype)
    return y, kept


def block_backward(
    grad_y: Tensor,
    kept: Kept,
    x: Tensor,
    norm_weight: Tensor,
    in_proj: Tensor,
    out_proj: Tensor,
    weights: MixerWeights,
    layout: ScanLayout,
    **settings,
) -> list[Tensor]:
    """Gradients of `block` for x, the norm's weight, both projections and the mixer's weights.

    `weights.A` is log(-A), as in the forward, and so is its gradient's place.
    """
    grad_y, x = grad_y.contiguous(), x.contiguous()
    grad_rows = grad_y.view(-1, x.shape[2])
    grad_out_proj = rows_product(grad_rows, kept.merged.view(-1, out_proj.shape[1]))
    grad_merged = product(grad_rows, out_proj.t()).view(kept.merged.shape)
    A = -torch.exp(weights.A)
    grad_xz, *grads = pooled_mixer_backward(
        grad_merged,
        kept.xz,
        weights._replace(A=A),
        layout,
        kept.pooled,
        kept.scanned,
        **settings,
    )
    place = sum(weight is not None for weight in weights[: weights._fields.index("A")])
    grads[place] *= A
    grad_rows = grad_xz.view(-1, in_proj.shape[0])
    grad_in_proj = rows_product(grad_rows, kept.normal.view(-1, x.shape[2]))
    grad_normal = product(grad_rows, in_proj.t())
    grad_x, grad_norm_weight = norm.backward(
        grad_normal, x, norm_weight.contiguous(), kept.scale, addend=grad_y
    )
    return [grad_x, grad_norm_weight, grad_in_proj, grad_out_proj, *grads]
