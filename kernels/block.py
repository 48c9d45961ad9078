"""A residual block, x + out_proj(mixer(in_proj(RMSNorm(x)))), as one operator.

Of the cpu backend only: there an image goes through the whole block in one thread's cache, where
separate operators write every intermediate to memory and read it again.
"""

import torch
from torch import Tensor

from fastvim.kernels import backends, cpu_block
from fastvim.kernels.cpu_block import Kept
from fastvim.kernels.reference import MixerWeights, ScanLayout

# Of the operators' inputs the first have gradients, then come a layout's tables, then settings.
_DIFFERENTIATED = 4 + len(MixerWeights._fields)
_TENSORS = _DIFFERENTIATED + 3


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


@torch.library.custom_op("fastvim::residual_block", mutates_args=(), device_types="cpu")
def _residual_block(
    x: Tensor,
    norm_weight: Tensor,
    in_proj: Tensor,
    out_proj: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    mixer_norm_weight: Tensor | None,
    mixer_norm_bias: Tensor | None,
    order: Tensor | None,
    steps: Tensor | None,
    reverse_steps: Tensor | None,
    n_steps: int,
    pooling: str,
    scale: float,
    merge: str,
    gate: bool,
    eps: float,
    norm_eps: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    weights = MixerWeights(
        conv_weight,
        conv_bias,
        x_proj,
        dt_proj,
        dt_bias,
        A_log,
        D,
        mixer_norm_weight,
        mixer_norm_bias,
    )
    layout = ScanLayout(order, steps, reverse_steps, n_steps)
    settings = {"pooling": pooling, "scale": scale, "merge": merge, "gate": gate, "eps": eps}
    y, kept = cpu_block.block(
        x, norm_weight, in_proj, out_proj, weights, layout, norm_eps, keep, **settings
    )
    return y, *kept


@_residual_block.register_fake
def _(x, norm_weight, in_proj, out_proj, *arguments):
    layout = ScanLayout(*arguments[len(MixerWeights._fields) :][:4])
    return x.new_empty(x.shape), *Kept.allocate(x, out_proj.shape[1], layout, arguments[-1])


@torch.library.custom_op("fastvim::residual_block_backward", mutates_args=(), device_types="cpu")
def _residual_block_backward(
    grad_y: Tensor,
    normal: Tensor,
    norm_scale: Tensor,
    xz: Tensor,
    merged: Tensor,
    pooled: Tensor,
    scanned: Tensor,
    x: Tensor,
    norm_weight: Tensor,
    in_proj: Tensor,
    out_proj: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    mixer_norm_weight: Tensor | None,
    mixer_norm_bias: Tensor | None,
    order: Tensor | None,
    steps: Tensor | None,
    reverse_steps: Tensor | None,
    n_steps: int,
    pooling: str,
    scale: float,
    merge: str,
    gate: bool,
    eps: float,
) -> list[Tensor]:
    weights = MixerWeights(
        conv_weight,
        conv_bias,
        x_proj,
        dt_proj,
        dt_bias,
        A_log,
        D,
        mixer_norm_weight,
        mixer_norm_bias,
    )
    layout = ScanLayout(order, steps, reverse_steps, n_steps)
    kept = Kept(normal, norm_scale, xz, merged, pooled, scanned)
    settings = {"pooling": pooling, "scale": scale, "merge": merge, "gate": gate, "eps": eps}
    return cpu_block.block_backward(
        grad_y, kept, x, norm_weight, in_proj, out_proj, weights, layout, **settings
    )


@_residual_block_backward.register_fake
def _(grad_y, normal, norm_scale, xz, merged, pooled, scanned, *arguments):
    return [t.new_empty(t.shape) for t in arguments[:_DIFFERENTIATED] if t is not None]


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
    grads = iter(_residual_block_backward(grad_y, *saved, *ctx.settings[:-2]))
    inputs = saved[len(Kept._fields) :]
    found = [None if t is None else next(grads) for t in inputs[:_DIFFERENTIATED]]
    return *found, *(None for _ in range(_TENSORS - _DIFFERENTIATED + len(ctx.settings)))


_residual_block.register_autograd(_differentiate, setup_context=_save)
