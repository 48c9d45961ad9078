"""The parts of one block, each as a call that can be timed alone.

The unfused chain does what the published one does: it stores what every step makes, and repeats
the scanned steps in memory. The fused operator is timed beside it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvim import kernels
from fastvim.kernels import reference
from fastvim.models.backbone import VisionMamba

MATRIX_STAGES = ("in_proj", "out_proj")
UNFUSED_STAGES = ("convolution", "pooling", "projections", "scan", "broadcast", "norm", "gate")


def block_stages(model: VisionMamba, batch: int) -> dict[str, Callable[[], Tensor]]:
    """Calls for the first block of `model` at `batch` images: name to what computes that part.

    `in_proj` and `out_proj` are matrix products; `convolution` to `gate` are the unfused chain,
    both directions; `fused` is all of that chain in one operator. Forward only.
    """
    block, axis = model.blocks[0], model.schedule[0]
    mixer, layout = block.mixer, model.layouts[axis]()
    device = model.pos_embed.device
    x = torch.randn(batch, len(model.grid), model.config.d_model, device=device)
    with torch.no_grad():
        weights = mixer.weights()
        xz = mixer.in_proj(x)
        inner, z = xz.chunk(2, dim=-1)
        convolved = [
            reference.convolve(inner, weights.conv_weight[i], weights.conv_bias[i], i == 1)
            for i in (0, 1)
        ]
        pooled = [reference.pool(u, layout.steps, layout.n_steps, "mean", 1.0) for u in convolved]
        projected = [_project(weights, pooled[i], i) for i in (0, 1)]
        scanned = [_scan(weights, pooled[i], projected[i], i) for i in (0, 1)]
        merged = sum(_broadcast(y, layout.steps) for y in scanned) / 2

    def both(function: Callable[[int], object]) -> Callable[[], object]:
        return lambda: [function(i) for i in (0, 1)]

    stages: dict[str, Callable] = {
        "in_proj": lambda: mixer.in_proj(x),
        "convolution": both(
            lambda i: reference.convolve(
                inner, weights.conv_weight[i], weights.conv_bias[i], i == 1
            )
        ),
        "pooling": both(
            lambda i: reference.pool(convolved[i], layout.steps, layout.n_steps, "mean", 1.0)
        ),
        "projections": both(lambda i: _project(weights, pooled[i], i)),
        "scan": both(lambda i: _scan(weights, pooled[i], projected[i], i)),
        "broadcast": lambda: _merge(weights, scanned, convolved, layout.steps),
        "gate": lambda: merged * F.silu(z),
        "fused": lambda: kernels.pooled_mixer(xz, weights, layout),
        "out_proj": lambda: mixer.out_proj(merged),
    }
    if mixer.norm is not None:
        stages["norm"] = lambda: mixer.norm(merged)
    return {name: _without_gradients(stage) for name, stage in stages.items()}


def _without_gradients(stage: Callable) -> Callable:
    def run():
        with torch.no_grad():
            return stage()

    return run


def _project(weights, pooled: Tensor, direction: int) -> tuple[Tensor, ...]:
    """delta (B, S, D), B and C (B, S, N)."""
    states, rank = weights.A.shape[2], weights.dt_proj.shape[2]
    dt, B, C = F.linear(pooled, weights.x_proj[direction]).split([rank, states, states], dim=-1)
    return F.linear(dt, weights.dt_proj[direction]), B, C


def _scan(weights, pooled: Tensor, projected: tuple[Tensor, ...], direction: int) -> Tensor:
    sequence = (pooled, *projected)
    if direction == 1:
        sequence = tuple(tensor.flip(1) for tensor in sequence)
    u, delta, B, C = (tensor.transpose(1, 2) for tensor in sequence)
    y = kernels.selective_scan(
        u,
        delta,
        weights.A[direction],
        B,
        C,
        delta_bias=weights.dt_bias[direction],
        delta_softplus=True,
    )
    y = y.transpose(1, 2)
    return y.flip(1) if direction == 1 else y


def _broadcast(y: Tensor, steps: Tensor | None) -> Tensor:
    return y if steps is None else y.index_select(1, steps)


def _merge(weights, scanned, convolved, steps) -> Tensor:
    """Repeat the steps over their tokens, add D u, average the directions."""
    parts = [_broadcast(scanned[i], steps) + convolved[i] * weights.D[i] for i in (0, 1)]
    return (parts[0] + parts[1]) / 2
