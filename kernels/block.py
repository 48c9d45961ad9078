"""Residual blocks x + out_proj(mixer(in_proj(RMSNorm(x)))), one after the other, as one operator.

Of the cpu backend only: there an image goes through a whole block in one thread's cache, where
separate operators write every intermediate to memory and read it again.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastvim.kernels import backends, cpu_block
from fastvim.kernels.block_schema import (
    BLOCKS,
    DIFFERENTIATED,
    TENSORS,
    BlockArguments,
    Kept,
    Ran,
    as_arguments,
    as_blocks,
    as_ran,
    check_block,
)
from fastvim.kernels.direct import is_watched, refuse_tangents
from fastvim.kernels.operator import like, scatter_back


def can_fuse(x: Tensor, blocks: Sequence[BlockArguments]) -> bool:
    """Whether `residual_blocks` may replace the modules: one dtype, the cpu backend.

    Not while tracing, so that counters of operations see the parts, nor inside `torch.func`'s
    transforms, which map no operator that takes lists.
    """
    weights = [weight for block in blocks for weight in block.tensors()[:DIFFERENTIATED]]
    return (
        x.device.type == "cpu"
        and not torch.jit.is_tracing()
        and (torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active())
        and not torch.is_autocast_enabled("cpu")
        and all(w is None or w.dtype == x.dtype for w in weights)
        and backends.choose("cpu", x.dtype) == "cpu"
    )


def residual_blocks(
    x: Tensor,
    blocks: Sequence[BlockArguments],
    observer: Callable[[int, Kept, Tensor], None] | None = None,
) -> Tensor:
    """Tokens (B, L, d_model) after one block after the other.

    `observer` is called with each block's place, what it kept, and its output; what is kept
    carries no gradient. Raises ValueError for shapes, dtypes and devices that do not fit, and
    NotImplementedError in forward-mode differentiation.
    """
    for block in blocks:
        check_block(x, block)
    tensors = [tensor for block in blocks for tensor in block.tensors()]
    refuse_tangents((x, *tensors))
    learns = _first_that_learns(x, blocks)
    first = learns if observer is None else 0
    ran: list[Ran] = []
    if is_watched((x, *tensors)):
        y, ran = _by_operators(x, blocks, observer is not None)
    elif learns < len(blocks):
        y = _ResidualBlocks.apply(blocks, first, ran, x, *tensors)
    else:
        with torch.profiler.record_function("fastvim::residual_blocks"):
            y, ran = cpu_block.forward(x, blocks, first)
    if observer is not None:
        outputs = (*(one.x for one in ran[1:]), y)
        for place, (one, output) in enumerate(zip(ran, outputs, strict=True)):
            observer(place, one.kept, output)
    return y


def _by_operators(
    x: Tensor, blocks: Sequence[BlockArguments], keeps_all: bool
) -> tuple[Tensor, list[Ran]]:
    ran = []
    # A compiled model is to run at once what the direct call would. Otherwise one by one: whoever
    # counts memory is to see that a block's goes before the next one's gradients come.
    count = len(blocks) if torch.compiler.is_compiling() else 1
    for start in range(0, len(blocks), count):
        row = blocks[start : start + count]
        first = 0 if keeps_all else _first_that_learns(x, row)
        y, kept = _residual_blocks(x, *as_arguments(row), first)
        ran += as_ran(_with_input(x, first, kept), row[first:])
        x = y
    return x, ran


def _first_that_learns(x: Tensor, blocks: Sequence[BlockArguments]) -> int:
    """The place of the first block that a backward comes to; the number of blocks if to none."""
    if torch.is_grad_enabled():
        for place, block in enumerate(blocks):
            if any(t is not None and t.requires_grad for t in (x, *block.tensors())):
                return place
    return len(blocks)


class _ResidualBlocks(torch.autograd.Function):
    """The operator below without PyTorch's dispatcher; `ran` is filled with what ran."""

    @staticmethod
    def forward(ctx, blocks, first, ran, x, *tensors):
        y, found = cpu_block.forward(x, blocks, first)
        ran += found
        _save(ctx, first, blocks, _flat(found))
        return y

    @staticmethod
    def backward(ctx, grad_y):
        refuse_tangents((grad_y,))
        # With `create_graph` by the operator, which refuses second derivatives where this would
        # leave them out in silence.
        backward = _backward if torch.is_grad_enabled() else cpu_block.backward
        grad_x, grads = _differentiate(ctx, grad_y, backward)
        return None, None, None, grad_x, *grads


def _save(ctx, first: int, blocks: Sequence[BlockArguments], flat: Sequence[Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.first = first
    # Without their tensors, which autograd keeps.
    ctx.blocks = [block.with_tensors((None,) * TENSORS) for block in blocks]
    tensors = (tensor for block in blocks[first:] for tensor in block.tensors())
    ctx.save_for_backward(*flat, *tensors)


def _differentiate(
    ctx, grad_y: Tensor | None, backward: Callable
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The gradients of x and of all blocks' tensors."""
    grads: list[Tensor | None] = [None] * (len(ctx.blocks) * TENSORS)
    if grad_y is None:
        return None, grads
    blocks = ctx.blocks[ctx.first :]
    saved = ctx.saved_tensors  # once: a checkpoint refuses to be asked again
    tensors = saved[-len(blocks) * TENSORS :]
    own = (tensors[i : i + TENSORS] for i in range(0, len(tensors), TENSORS))
    blocks = [block.with_tensors(one) for block, one in zip(blocks, own, strict=True)]
    ran = as_ran(saved, blocks)
    # The backward lets go of what it has used, if nobody wants the graph again.
    del saved, tensors, own
    ctx.maybe_clear_saved_tensors()
    grad_x, found = backward(grad_y, ran)
    for place, gradients in enumerate(found, ctx.first):
        grads[place * TENSORS : place * TENSORS + DIFFERENTIATED] = gradients
    return None if ctx.first else grad_x, grads


def _flat(ran: Sequence[Ran]) -> list[Tensor]:
    """What `as_ran` takes."""
    return [tensor for one in ran for tensor in (one.x, *one.kept)]


def _with_input(x: Tensor, first: int, flat: list[Tensor]) -> list[Tensor]:
    """What the operator returned, with x for the first block's input, which it may not return."""
    return flat if first else [x, *flat[1:]]


@torch.library.custom_op(
    "fastvim::residual_blocks",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor x, {BLOCKS}, int first) -> (Tensor, Tensor[])",
)
def _residual_blocks(x, *arguments) -> tuple[Tensor, list[Tensor]]:
    *arguments, first = arguments
    y, ran = cpu_block.forward(x, as_blocks(*arguments), first)
    return y, _with_input(x.new_empty(0), first, _flat(ran))


@_residual_blocks.register_fake
def _(x, *arguments):
    *arguments, first = arguments
    ran = [
        Ran(x.new_empty(x.shape), block, Kept.allocate(x, block))
        for block in as_blocks(*arguments)[first:]
    ]
    return x.new_empty(x.shape), _with_input(x.new_empty(0), first, _flat(ran))


@torch.library.custom_op(
    "fastvim::residual_blocks_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor grad_y, Tensor[] ran, {BLOCKS}) -> Tensor[]",
)
def _residual_blocks_backward(grad_y, flat, *arguments) -> list[Tensor]:
    grad_x, found = cpu_block.backward(grad_y, as_ran(flat, as_blocks(*arguments)))
    return [grad_x, *(grad for grads in found for grad in grads if grad is not None)]


@_residual_blocks_backward.register_fake
def _(grad_y, flat, *arguments):
    tensors = [t for block in as_blocks(*arguments) for t in block.tensors()[:DIFFERENTIATED]]
    return like(grad_y, *tensors)


def _backward(grad_y: Tensor, ran: Sequence[Ran]) -> tuple[Tensor, list[list[Tensor | None]]]:
    """`cpu_block.backward` by the operator."""
    blocks = [one.block for one in ran]
    grad_x, *found = _residual_blocks_backward(grad_y, _flat(ran), *as_arguments(blocks))
    grads = iter(found)
    present = ([t is not None for t in b.tensors()[:DIFFERENTIATED]] for b in blocks)
    return grad_x, [scatter_back(own, grads) for own in present]


def _save_operator(ctx, inputs, output) -> None:
    (x, *arguments, first), (_, flat) = inputs, output
    ctx.mark_non_differentiable(*flat)
    ctx.present = arguments[1]
    _save(ctx, first, as_blocks(*arguments), _with_input(x, first, flat))


def _differentiate_operator(ctx, grad_y, _):
    grad_x, grads = _differentiate(ctx, grad_y, _backward)
    present = [grad for grad, there in zip(grads, ctx.present, strict=True) if there]
    return grad_x, present, *(None,) * BLOCKS.count("[] ")


_residual_blocks.register_autograd(_differentiate_operator, setup_context=_save_operator)
