"""A residual block, x + out_proj(mixer(in_proj(RMSNorm(x)))), as one operator, and rows of blocks.

Of the cpu backend only: there an image goes through the whole block in one thread's cache, where
separate operators write every intermediate to memory and read it again.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastvim.kernels import backends, cpu_block
from fastvim.kernels.cpu_block import BlockArguments, Kept, Ran
from fastvim.kernels.mixer_schema import MIXER, SETTINGS, TABLES, WEIGHTS, take_apart
from fastvim.kernels.operator import like, scatter_back

# Of a block's tensors the first have gradients, then come tables.
_DIFFERENTIATED = 3 + WEIGHTS
_TENSORS = _DIFFERENTIATED + TABLES


def can_fuse(x: Tensor, block: BlockArguments) -> bool:
    """Whether `residual_blocks` may replace the modules: one dtype, the cpu backend.

    Not while tracing, so that counters of operations see the parts.
    """
    weights = (*block[:3], *block.weights)
    return (
        x.device.type == "cpu"
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
        and all(w is None or w.dtype == x.dtype for w in weights)
        and backends.choose("cpu", x.dtype) == "cpu"
    )


Observer = Callable[[int, Kept, Tensor], None]


def residual_blocks(
    x: Tensor, blocks: Sequence[BlockArguments], observer: Observer | None = None
) -> Tensor:
    """Tokens (B, L, d_model) after one block after the other.

    `observer` is called with each block's place, what it kept, and its output.
    """
    tensors = [tensor for block in blocks for tensor in block.tensors()]
    if _is_watched((x, *tensors)):
        for place, block in enumerate(blocks):
            x, kept = residual_block(x, block, keep=observer is not None)
            if observer is not None:
                observer(place, kept, x)
        return x
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *tensors)):
        return _ResidualBlocks.apply(blocks, observer, x, *tensors)
    return _forward(x, blocks, observer, len(blocks))[0]


def _forward(
    x: Tensor, blocks: Sequence[BlockArguments], observer: Observer | None, first: int
) -> tuple[Tensor, list[Ran]]:
    y, ran = cpu_block.forward(x, blocks, first if observer is None else 0)
    if observer is not None:
        outputs = [*(one.x for one in ran[1:]), y]
        for place, (one, output) in enumerate(zip(ran, outputs, strict=True)):
            observer(place, one.kept, output)
        ran = ran[first:]
    return y, ran


def residual_block(x: Tensor, block: BlockArguments, keep: bool = False) -> tuple[Tensor, Kept]:
    """Tokens (B, L, d_model) after a block, as an operator that PyTorch knows.

    What is kept carries no gradient; it is empty unless gradients are enabled or `keep`.
    """
    keep = keep or torch.is_grad_enabled()
    y, *kept = _residual_block(x, *block.tensors(), *block.settings_in_order(), keep)
    return y, Kept(*kept)


def _is_watched(tensors: Sequence[Tensor | None]) -> bool:
    """Whether anything wants to see operators: compilers, modes, transforms, profilers, subclasses.

    If not, PyTorch's dispatcher is left out: of a small model's training step it was half.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.profiler._is_profiler_enabled
        or any(type(t) not in (Tensor, torch.nn.Parameter, type(None)) for t in tensors)
    )


def _operators_backward(grad_y: Tensor, ran: Sequence[Ran]) -> tuple[Tensor, list[list[Tensor]]]:
    found = []
    for x, block, kept in reversed(ran):
        arguments = (*block.tensors(), *block.settings_in_order())
        grad_y, *own = _residual_block_backward(grad_y, *kept, x, *arguments)
        found.insert(0, own)
    return grad_y, found


class _ResidualBlocks(torch.autograd.Function):
    """All blocks as one node, so that nothing of PyTorch runs between their kernels."""

    @staticmethod
    def forward(ctx, blocks, observer, x, *tensors):
        needs_x, *needs = ctx.needs_input_grad[2:]
        # Blocks before the first that learns need no backward: a fine-tuned model's frozen ones.
        ctx.first = 0 if needs_x else needs.index(True) // _TENSORS
        y, ran = _forward(x, blocks, observer, ctx.first)
        ctx.blocks = blocks[ctx.first :]
        inputs, kept = [one.x for one in ran], [tensor for one in ran for tensor in one.kept]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, *kept, *tensors[ctx.first * _TENSORS :])
        return y

    @staticmethod
    def backward(ctx, grad_y):
        if grad_y is None:
            return (None,) * len(ctx.needs_input_grad)
        count, saved = len(ctx.blocks), iter(ctx.saved_tensors)
        inputs = [next(saved) for _ in range(count)]
        kept = [Kept(*(next(saved) for _ in Kept._fields)) for _ in range(count)]
        blocks = [b.with_tensors([next(saved) for _ in range(_TENSORS)]) for b in ctx.blocks]
        ran = list(map(Ran, inputs, blocks, kept))
        # With `create_graph` as operators, so that second derivatives are refused, not left out.
        backward = _operators_backward if torch.is_grad_enabled() else cpu_block.backward
        grad_x, found = backward(grad_y, ran)
        grads = [None] * (ctx.first * _TENSORS)
        for block, own in zip(blocks, found, strict=True):
            grads += _of_all_tensors(block.tensors(), own)
        return None, None, grad_x if ctx.first == 0 else None, *grads


def _scatter_weights(tensors: Sequence[Tensor | None], grads: list[Tensor]) -> list[Tensor | None]:
    return scatter_back([tensor is not None for tensor in tensors[:_DIFFERENTIATED]], grads)


def _of_all_tensors(tensors: Sequence[Tensor | None], grads: list[Tensor]) -> list[Tensor | None]:
    """Gradients of the weights that are there, with None for what has no gradient."""
    present = [tensor is not None for tensor in tensors[:_DIFFERENTIATED]]
    return [*scatter_back(present, grads), *(None,) * TABLES]


_BLOCK = (
    f"Tensor x, Tensor block_norm_weight, Tensor in_proj, Tensor out_proj, {MIXER}, float norm_eps"
)


def _as_block(arguments: Sequence) -> BlockArguments:
    """Of the operator's arguments behind x, from which `keep` may be missing."""
    norm_eps = arguments[_TENSORS + 1 + len(SETTINGS)]
    return BlockArguments(*arguments[:3], *take_apart(arguments[3:]), norm_eps)


@torch.library.custom_op(
    "fastvim::residual_block",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_BLOCK}, bool keep) -> (Tensor{', Tensor' * len(Kept._fields)})",
)
def _residual_block(x, *arguments) -> tuple[Tensor, ...]:
    keep = arguments[-1]
    y, ran = cpu_block.forward(x, [_as_block(arguments)], 0 if keep else 1)
    return y, *(ran[0].kept if keep else (x.new_empty(0) for _ in Kept._fields))


@_residual_block.register_fake
def _(x, *arguments):
    block, keep = _as_block(arguments), arguments[-1]
    return x.new_empty(x.shape), *Kept.allocate(x, block.out_proj.shape[1], block.layout, keep)


@torch.library.custom_op(
    "fastvim::residual_block_backward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor grad_y, Tensor normal, Tensor block_norm_scale, Tensor xz, Tensor merged, "
    f"Tensor pooled, Tensor scanned, {_BLOCK}) -> Tensor[]",
)
def _residual_block_backward(grad_y, *arguments) -> list[Tensor]:
    kept, (x, *block) = arguments[: len(Kept._fields)], arguments[len(Kept._fields) :]
    grad_x, (grads,) = cpu_block.backward(grad_y, [Ran(x, _as_block(block), Kept(*kept))])
    return [grad_x, *grads]


@_residual_block_backward.register_fake
def _(grad_y, *arguments):
    return like(*arguments[len(Kept._fields) :][: 1 + _DIFFERENTIATED])


def _save(ctx, inputs, output) -> None:
    tensors, ctx.settings = inputs[: 1 + _TENSORS], inputs[1 + _TENSORS :]
    _, *kept = output
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)  # theirs would be zeros, filled and unused
    ctx.save_for_backward(*kept, *tensors)


def _differentiate(ctx, grad_y, *_):
    if grad_y is None:
        return (None,) * (1 + _TENSORS + len(ctx.settings))
    saved = ctx.saved_tensors
    grad_x, *grads = _residual_block_backward(grad_y, *saved, *ctx.settings[:-1])
    grads = _of_all_tensors(saved[len(Kept._fields) + 1 :], grads)
    return (grad_x, *grads, *(None,) * len(ctx.settings))


_residual_block.register_autograd(_differentiate, setup_context=_save)
