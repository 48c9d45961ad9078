"""Residual blocks on the `cpu` backend: one kernel a block forward, one backward.

The calls of all blocks are prepared before the first of them runs: between two kernels Python finds
its own code and data gone from the caches, and takes ten times as long.
"""

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastvim.kernels import calls
from fastvim.kernels.cpu import contiguous, layout_tables
from fastvim.kernels.cpu_products import workspace
from fastvim.kernels.mixer_schema import SETTINGS, TABLES, WEIGHTS
from fastvim.kernels.native import LIBRARY, BlockCall, BlockGradients
from fastvim.kernels.reference import MixerWeights, ScanLayout


class BlockArguments(NamedTuple):
    """All of a residual block but the tokens."""

    norm_weight: Tensor  # (d_model,)
    in_proj: Tensor  # (2 D, d_model)
    out_proj: Tensor  # (d_model, D)
    weights: MixerWeights  # but for A, which is log(-A) here
    layout: ScanLayout
    settings: dict[str, Any]  # of the mixer: pooling, scale, merge, gate, eps
    norm_eps: float

    def tensors(self) -> tuple[Tensor | None, ...]:
        """In the order of the operator's schema; the first have gradients, then come tables."""
        return (*self[:3], *self.weights, *self.layout[:TABLES])

    def settings_in_order(self) -> tuple[Any, ...]:
        """What follows the tensors in the operator's schema, up to the norm's eps."""
        return (self.layout.n_steps, *(self.settings[name] for name in SETTINGS), self.norm_eps)

    def with_tensors(self, tensors: Sequence[Tensor | None]) -> "BlockArguments":
        """The same block with tensors as `tensors` orders them."""
        weights, tables = MixerWeights(*tensors[3:][:WEIGHTS]), tensors[3 + WEIGHTS :]
        layout = ScanLayout(*tables, self.layout.n_steps)
        return BlockArguments(*tensors[:3], weights, layout, *self[5:])

    def contiguous(self) -> "BlockArguments":
        """As the kernels want them."""
        weights, layout = MixerWeights(*map(contiguous, self.weights)), layout_tables(self.layout)
        return BlockArguments(*map(contiguous, self[:3]), weights, layout, *self[5:])


class Kept(NamedTuple):
    """What a block's backward takes from its forward; empty tensors where nothing is kept."""

    normal: Tensor  # (B, L, d_model): after the norm
    scale: Tensor  # (B, L): of the norm
    xz: Tensor  # (B, L, 2 D): after in_proj
    merged: Tensor  # (B, L, D): before out_proj
    pooled: Tensor  # (2, B, S, D)
    scanned: Tensor  # (2, B, S, D)

    @classmethod
    def allocate(cls, x: Tensor, channels: int, layout: ScanLayout, keep: bool = True) -> "Kept":
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


class Ran(NamedTuple):
    """A block that ran, for its backward."""

    x: Tensor
    block: BlockArguments
    kept: Kept


def forward(x: Tensor, blocks: Sequence[BlockArguments], first: int) -> tuple[Tensor, list[Ran]]:
    """x (B, L, d_model) through all blocks; what ran is kept from block `first` on."""
    # What is made contiguous must live until the kernels have run.
    given = x = x.contiguous()
    blocks = [block.contiguous() for block in blocks]
    prepared, ran = [], []
    for index, block in enumerate(blocks):
        kept = None
        if index >= first:
            kept = Kept.allocate(x, block.out_proj.shape[1], block.layout)
            ran.append(Ran(x, block, kept))
        # In place where neither the caller nor a backward wants to see the block's input again.
        y = torch.empty_like(given) if kept or index == 0 else x
        prepared.append(_block_call(x, block, kept, y))
        x = y
    _run("fastvim_block_forward", "fastvim_block_space", prepared, x.dtype)
    return x, ran


def backward(grad_y: Tensor, ran: Sequence[Ran]) -> tuple[Tensor, list[list[Tensor]]]:
    """The gradient of the first block's x, and of each block's weights but those that are None.

    A block's weights are ordered as in `BlockArguments.tensors`; A's gradient is that of log(-A).
    """
    ran = [Ran(x.contiguous(), block.contiguous(), kept) for x, block, kept in ran]
    prepared, found, given = [], [], grad_y.contiguous()
    grad_x = given
    for index, one in enumerate(reversed(ran)):
        incoming = grad_x
        # In place where it is not the caller's.
        grad_x = torch.empty_like(given) if index == 0 else grad_x
        weights = one.block.tensors()[: 3 + WEIGHTS]
        grads = [None if weight is None else torch.empty_like(weight) for weight in weights]
        prepared.append(_block_gradients(one, incoming, grad_x, grads))
        found.insert(0, [grad for grad in grads if grad is not None])
    if given.numel():
        space = "fastvim_block_backward_space"
        _run("fastvim_block_backward", space, prepared, given.dtype)
    else:
        for grads in found:
            for grad in grads:
                grad.zero_()
    return grad_x, found


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
