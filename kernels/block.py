"""A residual block without gradients, x + out_proj(mixer(in_proj(RMSNorm(x)))), as one operator.

Of the cpu backend only: there an image goes through the whole block in one thread's cache, where
separate operators write every intermediate to memory and read it again.
"""

import torch
from torch import Tensor

from fastvim.kernels import backends, cpu
from fastvim.kernels.reference import MixerWeights, ScanLayout


def can_fuse(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether `residual_block` may replace the modules: no gradients, one dtype, the cpu backend.

    Not while tracing, so that counters of operations see the parts.
    """
    return (
        x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
        and all(w is None or w.dtype == x.dtype for w in weights)
        and backends.choose("cpu", x.dtype) == "cpu"
    )


def residual_block(
    x: Tensor,
    norm_weight: Tensor,
    norm_eps: float,
    in_proj: Tensor,
    out_proj: Tensor,
    weights: MixerWeights,
    layout: ScanLayout,
    pooling: str,
    scale: float,
    merge: str,
    gate: bool,
    eps: float,
) -> Tensor:
    """Tokens (B, L, d_model) after a block; `in_proj` (2 D, d_model), `out_proj` (d_model, D).

    `weights` and what follows are `pooled_mixer`'s, but for `weights.A`: here it is log(-A).
    """
    settings = (pooling, float(scale), merge, gate, float(eps))
    return _residual_block(
        x, norm_weight, float(norm_eps), in_proj, out_proj, *weights, *layout, *settings
    )


@torch.library.custom_op("fastvim::residual_block", mutates_args=(), device_types="cpu")
def _residual_block(
    x: Tensor,
    norm_weight: Tensor,
    norm_eps: float,
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
) -> Tensor:
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
    return cpu.block(x, norm_weight, norm_eps, in_proj, out_proj, weights, layout, **settings)


@_residual_block.register_fake
def _(x, *arguments):
    return x.new_empty(x.shape)
