"""The FastVim mixer: input projection, the fused pooled operator, output projection."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvim import kernels
from fastvim.kernels import MixerWeights, ScanLayout, reference
from fastvim.kernels.operator import no_autocast
from fastvim.models.config import ModelConfig


class RMSNorm(nn.RMSNorm):
    """RMSNorm of tokens (B, L, d_model) by `kernels.rms_norm`."""

    def __init__(self, width: int, eps: float):
        super().__init__(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return kernels.rms_norm(x, self.weight, self.eps)


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody looks at a module's inputs, outputs or their gradients."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def is_untouched(module: nn.Module) -> bool:
    """Whether calling a module is its class's `forward` and nothing else."""
    return "forward" not in module.__dict__ and not has_hooks(module)


class Mixer(nn.Module):
    """Mixes tokens (B, L, d_model) by a pooled selective scan in two directions.

    Parameters of the two directions are stacked: index 0 is forward, 1 reverse.
    Source: arXiv 2502.00594, section 3; arXiv 2401.09417 for the bidirectional mixer.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        width, inner = config.d_model, config.d_inner
        states, rank = config.d_state, config.delta_rank
        self.config = config
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(2, inner, config.d_conv))
        self.conv_bias = nn.Parameter(torch.empty(2, inner))
        self.x_proj = nn.Parameter(torch.empty(2, rank + 2 * states, inner))
        self.dt_proj = nn.Parameter(torch.empty(2, inner, rank))
        self.dt_bias = nn.Parameter(torch.empty(2, inner))
        self.A_log = nn.Parameter(torch.empty(2, inner, states))
        self.D = nn.Parameter(torch.empty(2, inner))
        # Zero weights every token alike, so that attention starts as the mean.
        attends = config.pooling == "attention" and config.schedule
        self.pool_query = nn.Parameter(torch.zeros(2, inner)) if attends else None
        self.norm = nn.LayerNorm(inner, eps=config.norm_eps) if config.post_ssm_norm else None
        self.out_proj = nn.Linear(inner, width, bias=False)
        # Called with the mixer, the pooled and the scanned steps (2, B, S, D), and the output
        # before `out_proj` (B, L, D) of every pass.
        self.observer: Callable[[Mixer, Tensor, Tensor, Tensor], None] | None = None

    def weights(self, A: Tensor | None = None) -> MixerWeights:
        """The operator's weights, with `A` if given, else what the parameter A_log stands for."""
        norm = self.norm
        return MixerWeights(
            self.conv_weight,
            self.conv_bias,
            self.x_proj,
            self.dt_proj,
            self.dt_bias,
            -torch.exp(self.A_log) if A is None else A,
            self.D,
            getattr(norm, "weight", None),
            getattr(norm, "bias", None),
        )

    def settings(self, layout: ScanLayout, divisor: int | None = None) -> dict[str, Any]:
        """The operator's settings: pooling, scale, merge, gate, eps."""
        config = self.config
        pooling = "max" if config.pooling == "max" else "mean"
        # Where nothing is pooled, nothing is scaled: Vim, and a masked autoencoder's decoder.
        scale = 1.0 if layout.steps is None else config.pooling_scale
        if divisor is not None and pooling == "mean" and not self._attends(layout):
            pooling, scale = "sum", config.pooling_scale / divisor
        return {
            "pooling": pooling,
            "scale": scale,
            "merge": config.direction_merge,
            "gate": config.gates,
            "eps": getattr(self.norm, "eps", config.norm_eps),
        }

    def _attends(self, layout: ScanLayout) -> bool:
        return self.pool_query is not None and layout.steps is not None

    def _norm_to_call(self) -> nn.Module | None:
        """The norm if it is not what the operator computes; else None, also if there is none."""
        norm = self.norm
        if norm is None or type(norm) is not nn.LayerNorm or norm.weight is None:
            return norm
        # Hooks that are there while tracing are the tracer's, which takes the operator as it is.
        return None if is_untouched(norm) or torch.jit.is_tracing() else norm

    def replaceable(self, layout: ScanLayout) -> bool:
        """Whether nothing but its weights and settings would tell it from the operator."""
        if type(self) is not Mixer or not is_untouched(self) or self._attends(layout):
            return False
        projections = (self.in_proj, self.out_proj)
        return (
            all(type(p) is nn.Linear and p.bias is None for p in projections)
            and all(map(is_untouched, projections))
            and self._norm_to_call() is None
        )

    def forward(self, x: Tensor, layout: ScanLayout, divisor: int | None = None) -> Tensor:
        """(B, L, d_model) to (B, L, d_model); `layout` says in what order and what is pooled.

        Where tokens are missing, `divisor` makes the mean the sum over a constant.
        """
        weights, settings = self.weights(), self.settings(layout, divisor)
        norm = self._norm_to_call()
        if norm is not None:
            weights = weights._replace(norm_weight=None, norm_bias=None)
            settings["gate"] = False
        xz = self.in_proj(x)
        if self._attends(layout):
            settings["pooling"] = self._attention_pool(layout.n_steps)
            with no_autocast(xz):
                y, pooled, scanned = reference.pooled_mixer(xz, weights, layout, **settings)
        else:
            y, pooled, scanned = kernels.pooled_mixer(xz, weights, layout, **settings)
        if norm is not None:
            y = norm(y)
            if self.config.gates:
                y = y * F.silu(xz.chunk(2, dim=-1)[1])
        if self.observer is not None:
            self.observer(self, pooled, scanned, y)
        return self.out_proj(y)

    def _attention_pool(self, n_steps: int):
        """Pooling by attention, one learned query q of each direction over the pooled axis.

        pooled_s = sum over the tokens t of step s of softmax_t(<q, u_t> / sqrt(d_inner)) u_t.
        """

        def pool(u: Tensor, steps: Tensor, direction: int) -> Tensor:
            query = self.pool_query[direction].to(u.dtype)
            # A row of a matrix: FLOP counters do not take a product with a vector.
            scores = F.linear(u, query[None])[..., 0] / u.shape[2] ** 0.5
            index = steps.long().expand_as(scores)
            zeros = scores.new_zeros(u.shape[0], n_steps)
            highest = zeros.scatter_reduce(1, index, scores, "amax", include_self=False).detach()
            powers = torch.exp(scores - highest.gather(1, index))
            shares = powers / zeros.scatter_add(1, index, powers).gather(1, index)
            return reference.pool(u * shares[..., None], steps, n_steps, "sum", 1.0)

        return pool
