"""A residual block, x + out_proj(mixer(in_proj(RMSNorm(x)))), as one operator.

Of the cpu backend only: there an image goes through the whole block in one thread's cache, where
separate operators write every intermediate to memory and read it again.
"""

import torch
from torch import Tensor

from fastvim.kernels import backends, cpu_block
from fastvim.kernels.cpu_block import Kept
from fastvim.kernels.mixer_schema import MIXER, TABLES, WEIGHTS, take_apart
from fastvim.kernels.operator import like, scatter_back
from fastvim.kernels.reference import MixerWeights, ScanLayout


def can_fuse(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether `residual_block` may replace the modules: one dtype, the cpu backend.

    Not while tracing, so that counters of operations see the parts.
    """
    return (
        x.device.type == "cpu"
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
        and all(w is None or w.dtype == x.dtype for w in weights)
        and backends.choose("cpu", x.dtype) == "cpu"
    )


def residual_block(
    x: Tensor,
    norm_weight: Tensor,
    in_proj: Tensor,
    out_proj: Tensor,
    weights: MixerWeights,
    layout: ScanLayout,
    *,
    norm_eps: float,
    pooling: str,
    scale: float,
    merge: str,
    gate: bool,
    eps: float,
    keep: bool = False,
) -> tuple[Tensor, Kept]:
    """Tokens (B, L, d_model) after a block; `in_proj` (2 D, d_model), `out_proj` (d_model, D).

    `weights` and what follows are `pooled_mixer`'s, but for `weights.A`: here it is log(-A).
    What is kept carries no gradient; it is empty unless gradients are enabled or `keep`.
    """
    settings = (pooling, float(scale), merge, gate, float(eps), float(norm_eps))
    y, *kept = _residual_block(
        x,
        norm_weight,
        in_proj,
        out_proj,
        *weights,
        *layout,
        *settings,
        keep or torch.is_grad_enabled(),
    )
    return y, Kept(*kept)


_OWN = "Tensor x, Tensor block_norm_weight, Tensor in_proj, Tensor out_proj"
# Of these and the mixer's arguments the first have gradients, then come tables, then settings.
_DIFFERENTIATED = 4 + WEIGHTS
_TENSORS = _DIFFERENTIATED + TABLES


@torch.library.custom_op(
    "fastvim::residual_block",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_OWN}, {MIXER}, float norm_eps, bool keep) "
    f"-> (Tensor{', Tensor' * len(Kept._fields)})",
)
def _residual_block(x, norm_weight, in_proj, out_proj, *arguments) -> tuple[Tensor, ...]:
    weights, layout, settings = take_apart(arguments)
    y, kept = cpu_block.block(
        x, norm_weight, in_proj, out_proj, weights, layout, *arguments[-2:], **settings
    )
    return y, *kept


@_residual_block.register_fake
def _(x, norm_weight, in_proj, out_proj, *arguments):
    _, layout, _ = take_apart(arguments)
    return x.new_empty(x.shape), *Kept.allocate(x, out_proj.shape[1], layout, arguments[-1])


@torch.library.custom_op(
    "fastvim::residual_block_backward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor grad_y, Tensor normal, Tensor block_norm_scale, Tensor xz, Tensor merged, "
    f"Tensor pooled, Tensor scanned, {_OWN}, {MIXER}) -> Tensor[]",
)
def _residual_block_backward(grad_y, *arguments) -> list[Tensor]:
    kept, inputs = arguments[: len(Kept._fields)], arguments[len(Kept._fields) :]
    weights, layout, settings = take_apart(inputs[4:])
    return cpu_block.block_backward(grad_y, Kept(*kept), *inputs[:4], weights, layout, **settings)


@_residual_block_backward.register_fake
def _(grad_y, *arguments):
    return like(*arguments[len(Kept._fields) :][:_DIFFERENTIATED])


def _save(ctx, inputs, output) -> None:
    tensors, ctx.settings = inputs[:_TENSORS], inputs[_TENSORS:]
    _, *kept = output
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)  # theirs would be zeros, filled and unused
    ctx.save_for_backward(*kept, *tensors)


def _differentiate(ctx, grad_y, *_):
    if grad_y is None:
        return (None,) * (_TENSORS + len(ctx.settings))
    saved = ctx.saved_tensors
    grads = _residual_block_backward(grad_y, *saved, *ctx.settings[:-2])
    present = [tensor is not None for tensor in saved[len(Kept._fields) :][:_DIFFERENTIATED]]
    return (*scatter_back(present, grads), *(None,) * (TABLES + len(ctx.settings)))


_residual_block.register_autograd(_differentiate, setup_context=_save)
