"""Residual blocks on the `cpu` backend: one kernel a block forward, one backward.

The calls of all blocks are prepared before the first of them runs: between two kernels Python finds
its own code and data gone from the caches, and takes several times as long.
"""

import ctypes
from collections.abc import Sequence

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
    space = _space("fastvim_block_space", prepared, x.dtype)
    for call in prepared:
        call.space = space.data_ptr()
        calls.run("fastvim_block_forward", call, x.dtype)
    return x, ran


def backward(grad_y: Tensor, ran: list[Ran]) -> tuple[Tensor, list[list[Tensor | None]]]:
    """The gradient of the first block's x, and those of each block's tensors but its tables.

    `ran` is emptied from its end: what a block kept goes before the next one's gradients come.
    """
    given = grad_y = grad_y.resolve_neg().contiguous()
    for place, (x, block, kept) in enumerate(ran):
        ran[place] = Ran(x.contiguous(), _contiguous(block), kept)
    prepared = [_block_gradients(one) for one in reversed(ran)]
    space = _space("fastvim_block_backward_space", prepared, given.dtype)
    found: list[list[Tensor | None]] = []
    for call in prepared:
        weights = ran[-1].block.tensors()[:DIFFERENTIATED]
        grads = [None if weight is None else torch.empty_like(weight) for weight in weights]
        # In place where it is not the caller's.
        grad_x = torch.empty_like(given) if grad_y is given else grad_y
        _give_places(call, grad_y, grad_x, grads)
        if given.numel():
            call.space = space.data_ptr()
            calls.run("fastvim_block_backward", call, given.dtype)
        else:
            for grad in filter(lambda grad: grad is not None, grads):
                grad.zero_()
        found.insert(0, grads)
        grad_y = grad_x
        ran.pop()
    return grad_y, found


def _contiguous(block: BlockArguments) -> BlockArguments:
    """As the kernels want it, tables too."""
    weights, layout = MixerWeights(*map(contiguous, block.weights)), layout_tables(block.layout)
    projections = map(contiguous, block[:3])
    return BlockArguments(*projections, weights, layout, block.settings, block.norm_eps)


def _space(name: str, prepared: list[ctypes.Structure], dtype: torch.dtype) -> Tensor:
    """Workspace for whichever call wants most."""
    size_of, is_double = getattr(LIBRARY, name), dtype == torch.float64
    return workspace(max((size_of(call, is_double) for call in prepared), default=0))


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


def _block_gradients(ran: Ran) -> BlockGradients:
    return BlockGradients(_block_call(ran.x, ran.block, ran.kept))


def _give_places(
    call: BlockGradients, grad_y: Tensor, grad_x: Tensor, grads: list[Tensor | None]
) -> None:
    call.grad_y, call.grad_x = grad_y.data_ptr(), grad_x.data_ptr()
    own, weights = map(calls.pointer, grads[:3]), MixerWeights(*map(calls.pointer, grads[3:]))
    call.grad_norm_weight, call.grad_in_proj, call.grad_out_proj = own
    call.grad_x_proj, call.grad_dt_proj = weights.x_proj, weights.dt_proj
    call.grad_dt_bias, call.grad_A_log = weights.dt_bias, weights.A
    mixer = call.forward.mixer
    mixer.grad_conv_weight, mixer.grad_conv_bias = weights.conv_weight, weights.conv_bias
    mixer.grad_skip = weights.D
    mixer.grad_norm_weight, mixer.grad_norm_bias = weights.norm_weight, weights.norm_bias
