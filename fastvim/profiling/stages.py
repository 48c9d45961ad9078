"""A cycle of blocks taken apart as published, each part a call that can be timed alone.

The chain is that of the published models (arXiv 2502.00594, section 3): channel-first, every step
stores what it makes, the reverse direction flips the whole sequence and flips back, and the scanned
steps are repeated in memory. The fused operator and the block as the models run it are timed
beside. Axes: B images, L tokens, S steps of P tokens, D channels, N states. Forward only.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvim import kernels
from fastvim.errors import UserError
from fastvim.models.backbone import Block, VisionMamba

UNFUSED_STAGES = ("transpose", "flip", "convolution", "pooling", "projections", "scan")
UNFUSED_STAGES += ("broadcast", "merge", "norm", "gate")
# The norm before a mixer and the sum after it.
BLOCK_STAGES = ("in_proj", "out_proj", *UNFUSED_STAGES, "residual")

Values = dict[str, Tensor]
Part = tuple[str, Callable[[Values], Values]]


def cycle(model: VisionMamba) -> int:
    """Blocks until the schedule of pooled axes begins anew."""
    return min(model.config.depth, len(model.config.schedule) or 1)


def block_stages(model: VisionMamba, batch: int) -> dict[str, Callable[[], object]]:
    """Calls for one cycle of blocks at `batch` images: name to what computes that part of all.

    Those of `BLOCK_STAGES` that the model has, `unfused`, which is all of them one after another,
    `fused`, the operator between the projections, and `block`, the blocks as the model runs them.
    Raises UserError for a model whose blocks are not this chain.
    """
    config = model.config
    if config.pooling == "attention":
        raise UserError("parts of a block: the chain pools by mean or max, not by attention")
    if config.class_token != "none" and tuple(config.scan_order) != model.grid.axes:
        raise UserError("parts of a block: the chain cannot transpose a grid with a class token")
    device = model.pos_embed.device
    tokens = torch.randn(batch, len(model.grid), config.d_model, device=device)
    parts: dict[str, list] = {}
    chains, fused, whole = [], [], []
    with torch.no_grad():
        for block, axis in list(zip(model.blocks, model.schedule, strict=True))[: cycle(model)]:
            layout = model.layouts[axis]()
            chain = _chain(model, block, layout)
            chains.append(chain)
            values = run_chain(chain, tokens)
            for name, function in chain:
                parts.setdefault(name, []).append((function, values))
            fused.append(_fused(block, layout, tokens))
            whole.append((block, layout))

    def unfused() -> None:
        for chain in chains:
            run_chain(chain, tokens)

    calls: dict[str, Callable] = {
        name: lambda name=name: [function(values) for function, values in parts[name]]
        for name in BLOCK_STAGES
        if name in parts
    }
    calls["unfused"] = unfused
    calls["fused"] = lambda: [call() for call in fused]
    calls["block"] = lambda: [block(tokens, layout) for block, layout in whole]
    return {name: torch.no_grad()(call) for name, call in calls.items()}


def run_chain(chain: list[Part], tokens: Tensor) -> Values:
    """All that a block's chain makes of its tokens (B, L, d_model); `y` is its output."""
    values = {"tokens": tokens}
    for _, function in chain:
        values |= function(values)
    return values


def _fused(block: Block, layout, tokens: Tensor) -> Callable[[], object]:
    mixer = block.mixer
    weights, xz = mixer.weights(), mixer.in_proj(block.norm(tokens))
    return lambda: kernels.pooled_mixer(xz, weights, layout, **mixer.settings(layout))


def _chain(model: VisionMamba, block: Block, layout) -> list[Part]:
    """The parts of one block in their order: each takes the values so far and adds its own."""
    mixer, config = block.mixer, model.config
    weights = mixer.weights()
    pools, turned = layout.steps is not None, layout.order is not None
    rows, cols = config.grid_size
    per_step = len(model.grid) // layout.n_steps
    states, rank, inner = config.d_state, config.delta_rank, config.d_inner
    scale = config.pooling_scale

    def turn(x: Tensor, sizes: tuple[int, int]) -> Tensor:
        """The other order of the grid, in memory."""
        return x.unflatten(1, sizes).transpose(1, 2).reshape(x.shape)

    def enter(v: Values) -> Values:
        return {"normed": block.norm(v["tokens"])}

    def to_scan_order(v: Values) -> Values:
        return {"ordered": turn(v["normed"], (rows, cols))}

    def in_proj(v: Values) -> Values:
        x = v["ordered" if turned else "normed"]
        return {"xz": torch.matmul(mixer.in_proj.weight, x.transpose(1, 2))}

    def flip(v: Values) -> Values:
        return {"x1": v["xz"][:, :inner].flip(-1)}

    def convolve(v: Values) -> Values:
        found = {}
        for i, x in enumerate((v["xz"][:, :inner], v["x1"])):
            out = F.conv1d(
                x, weights.conv_weight[i][:, None], weights.conv_bias[i],
                padding=config.d_conv - 1, groups=inner,
            )  # fmt: skip
            found[f"u{i}"] = F.silu(out[..., : x.shape[-1]])
        return found

    def pool(v: Values) -> Values:
        found = {}
        for i in (0, 1):
            grouped = v[f"u{i}"].unflatten(-1, (layout.n_steps, per_step))
            pooled = grouped.amax(-1) if config.pooling == "max" else grouped.mean(-1)
            found[f"pooled{i}"] = pooled if scale == 1 else pooled * scale
        return found

    def steps(v: Values, i: int) -> Tensor:
        return v[f"pooled{i}" if pools else f"u{i}"]

    def project(v: Values) -> Values:
        found = {}
        for i in (0, 1):
            projected = F.linear(steps(v, i).transpose(1, 2), weights.x_proj[i])
            dt, B, C = projected.split([rank, states, states], dim=-1)
            found[f"delta{i}"] = torch.matmul(weights.dt_proj[i], dt.transpose(1, 2))
            found[f"B{i}"] = B.transpose(1, 2).contiguous()
            found[f"C{i}"] = C.transpose(1, 2).contiguous()
        return found

    def scan(v: Values) -> Values:
        return {
            f"scanned{i}": kernels.selective_scan(
                steps(v, i), v[f"delta{i}"], weights.A[i], v[f"B{i}"], v[f"C{i}"],
                delta_bias=weights.dt_bias[i], delta_softplus=True,
            )
            for i in (0, 1)
        }  # fmt: skip

    def broadcast(v: Values) -> Values:
        return {f"wide{i}": v[f"scanned{i}"].repeat_interleave(per_step, dim=-1) for i in (0, 1)}

    def skip(v: Values) -> Values:
        wide = "wide" if pools else "scanned"
        return {f"y{i}": v[f"{wide}{i}"] + weights.D[i][:, None] * v[f"u{i}"] for i in (0, 1)}

    def flip_back(v: Values) -> Values:
        return {"back": v["y1"].flip(-1)}

    def merge(v: Values) -> Values:
        total = v["y0"] + v["back"]
        merged = total / 2 if config.direction_merge == "mean" else total
        return {"merged": merged.transpose(1, 2)}

    def norm(v: Values) -> Values:
        return {"normalised": mixer.norm(v["merged"])}

    def gate(v: Values) -> Values:
        y = v["merged" if mixer.norm is None else "normalised"]
        return {"gated": y * F.silu(v["xz"][:, inner:]).transpose(1, 2)}

    def out_proj(v: Values) -> Values:
        return {"out": mixer.out_proj(v["gated" if config.gates else "merged"])}

    def to_memory_order(v: Values) -> Values:
        return {"restored": turn(v["out"], (cols, rows))}

    def leave(v: Values) -> Values:
        return {"y": v["tokens"] + v["restored" if turned else "out"]}

    return [
        ("residual", enter),
        *([("transpose", to_scan_order)] if turned else []),
        ("in_proj", in_proj),
        ("flip", flip),
        ("convolution", convolve),
        *([("pooling", pool)] if pools else []),
        ("projections", project),
        ("scan", scan),
        *([("broadcast", broadcast)] if pools else []),
        ("merge", skip),
        ("flip", flip_back),
        ("merge", merge),
        *([("norm", norm)] if mixer.norm is not None else []),
        *([("gate", gate)] if config.gates else []),
        ("out_proj", out_proj),
        *([("transpose", to_memory_order)] if turned else []),
        ("residual", leave),
    ]
