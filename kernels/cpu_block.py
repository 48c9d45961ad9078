"""Residual blocks on the `cpu` backend: one kernel a block forward, one backward.

The calls of all blocks are prepared before the first of them runs: between two kernels Python finds
its own code and data gone from the caches, and takes ten times as long.
"""

import ctypes
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from fastvim.kernels import calls
from fastvim.kernels.block_schema import DIFFERENTIATED, BlockArguments, Kept, Ran
from fastvim.kernels.cpu import contiguous, layout_tables
from fastvim.kernels.cpu_products import workspace
from fastvim.kernels.native import LIBRARY, BlockCall, BlockGradients
from fastvim.kernels.reference import MixerWeights


def forward(x: Tensor, blocks: Sequence[BlockArguments], first: int) -> tuple[Tensor, list[Ran]]:
    """x (B, L, d_model) through all blocks; what ran is kept from block `first` on."""
    # What is made contiguous must live until the kernels have run.
    given = x = x.contiguous()
    blocks = [_contiguous(block) for block in blocks]
    prepared, ran = [], []
    for index, block in enumerate(blocks):
        kept = None
        if index >= first:
            kept = Kept.allocate(x, block)
            ran.append(Ran(x, block, kept))
        # In place where neither the caller nor a backward wants to see the block's input again.
        y = torch.empty_like(given) if kept or index == 0 else x
        prepared.append(_block_call(x, block, kept, y))
        x = y
    _run("fastvim_block_forward", "fastvim_block_space", prepared, x.dtype)
    return x, ran


def backward(grad_y: Tensor, ran: Sequence[Ran]) -> tuple[Tensor, list[list[Tensor | None]]]:
    """The gradient of the first block's x, and those of each block's tensors but its tables."""
    ran = [Ran(x.contiguous(), _contiguous(block), kept) for x, block, kept in ran]
    prepared, found, given = [], [], grad_y.contiguous()
    grad_x = given
    for index, one in enumerate(reversed(ran)):
        incoming = grad_x
        # In place where it is not the caller's.
        grad_x = torch.empty_like(given) if index == 0 else grad_x
        weights = one.block.tensors()[:DIFFERENTIATED]
        grads = [None if weight is None else torch.empty_like(weight) for weight in weights]
        prepared.append(_block_gradients(one, incoming, grad_x, grads))
        found.insert(0, grads)
    if given.numel():
        space = "fastvim_block_backward_space"
        _run("fastvim_block_backward", space, prepared, given.dtype)
    else:
        for grad in filter(lambda grad: grad is not None, chain(*found)):
            grad.zero_()
    return grad_x, found


def _contiguous(block: BlockArguments) -> BlockArguments:
    """As the kernels want it, tables too."""
    weights, layout = MixerWeights(*map(contiguous, block.weights)), layout_tables(block.layout)
    projections = map(contiguous, block[:3])
    return BlockArguments(*projections, weights, layout, block.settings, block.norm_eps)


def _run(name: str, space_name: str, prepared: list[ctypes.Structure], dtype: torch.dtype) -> None:
    sizes = [getattr(LIBRARY, space_name)(call, dtype == torch.float64) for call in prepared]
    space = workspace(max(sizes, default=0)).data_ptr()
    for call in prepared:
        call.space = space
        calls.run(name, call, dtype)


def _block_call(
    x: Tensor, block: BlockArguments, kept: Kept | None, y: Tensor | None = None
) -> BlockCall:
    batch, length, width = x.shape
    channels, weights = block.out_proj.shape[1], block.weights
    shape = batch, length, channels
    return BlockCall(
        calls.mixer_call(shape, weights, block.layout, **block.settings),
        width,
        weights.dt_proj.shape[2],
        weights.A.shape[2],
        block.norm_eps,
        x.data_ptr(),
        block.norm_weight.data_ptr(),
        block.in_proj.data_ptr(),
        block.out_proj.data_ptr(),
        weights.x_proj.data_ptr(),
        weights.dt_proj.data_ptr(),
        weights.dt_bias.data_ptr(),
        weights.A.data_ptr(),
        calls.pointer(y),
        None,
        None,
        *((tensor.data_ptr() for tensor in kept) if kept else ()),
    )


def _block_gradients(
    ran: Ran, grad_y: Tensor, grad_x: Tensor, grads: list[Tensor | None]
) -> BlockGradients:
    block = _block_call(ran.x, ran.block, ran.kept)
    norm_weight, in_proj, out_proj, *of_weights = map(calls.pointer, grads)
    weights = MixerWeights(*of_weights)
    block.mixer.grad_conv_weight = weights.conv_weight
    block.mixer.grad_conv_bias = weights.conv_bias
    block.mixer.grad_skip = weights.D
    block.mixer.grad_norm_weight = weights.norm_weight
    block.mixer.grad_norm_bias = weights.norm_bias
    return BlockGradients(
        block,
        grad_y.data_ptr(),
        grad_x.data_ptr(),
        norm_weight,
        in_proj,
        out_proj,
        weights.x_proj,
        weights.dt_proj,
        weights.dt_bias,
        weights.A,
    )
