"""The fused mixer on a GPU: two passes over the tokens, the scan of the pooled steps between them.

Axes as in `reference.py` and `mixer_kernels.py`. The small projections are matrix products of
torch, in float32 whatever the inputs, as the definition has them.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastvim.kernels.reference import MixerWeights, ScanLayout
from fastvim.kernels.triton import mixer_kernels, scan
from fastvim.kernels.triton.launch import blocks, launch, power_of_two
from fastvim.kernels.triton.mixer_plan import plan_mixer


class _Tables(NamedTuple):
    """A layout's tables; `members` and `offsets` list the times of each step, both directions'."""

    layout: ScanLayout
    members: Tensor | None
    offsets: Tensor | None
    reverse_members: Tensor | None
    reverse_offsets: Tensor | None

    def arguments(self, *names: str) -> dict:
        """Tables with the strides of their batch axis, 0 where images share one."""
        found = {**self.layout._asdict(), **self._asdict()}
        if found["reverse_steps"] is None:
            found["reverse_steps"] = self.layout.steps
        arguments = {}
        for name in names:
            table = found[name]
            shared = table is None or table.dim() == 1 or table.shape[0] == 1
            arguments |= {name: table, f"{name}_b": 0 if shared else table.stride(0)}
        return arguments


def _list_members(steps: Tensor, n_steps: int) -> tuple[Tensor, Tensor]:
    table = steps.reshape(-1, steps.shape[-1]).contiguous()
    count, length = table.shape
    members, offsets = torch.empty_like(table), table.new_empty(count, n_steps + 1)
    launch(
        mixer_kernels.list_members,
        (n_steps, count, 1),
        num_warps=4,
        steps=table,
        members=members,
        offsets=offsets,
        length=length,
        n_steps=n_steps,
        BLOCK=min(1024, power_of_two(length)),
    )
    return members, offsets


class MixerLaunches:
    """The launches of one mixer's forward, and what its backward shares with them."""

    def __init__(
        self,
        xz: Tensor,
        weights: MixerWeights,
        layout: ScanLayout,
        pooling: str,
        scale: float,
        merge: str,
        gate: bool,
        eps: float,
    ):
        self.xz = xz if xz.stride(2) == 1 else xz.contiguous()
        self.batch, self.length, width = xz.shape
        self.channels = width // 2
        self.weights = MixerWeights(
            *(None if w is None else w.float().contiguous() for w in weights)
        )
        self.states, self.rank = weights.A.shape[2], weights.dt_proj.shape[2]
        self.pooling = pooling if layout.steps is not None else "none"
        self.n_steps = layout.n_steps if self.pooled else self.length
        self.scale, self.gate, self.eps = scale, gate, eps
        self.factor = 0.5 if merge == "mean" else 1.0
        self.plan = plan_mixer(self.batch, self.length, self.channels, self.n_steps, self.pooled)

        layout = ScanLayout(*(t.contiguous() if isinstance(t, Tensor) else t for t in layout))
        members = offsets = None
        if self.pooled:
            members, offsets = _list_members(layout.steps, self.n_steps)
        self.two_tables = layout.reverse_steps is not None
        reverse = members, offsets
        if self.two_tables:
            reverse = _list_members(layout.reverse_steps, self.n_steps)
        self.tables = _Tables(layout, members, offsets, *reverse)
        self.sizes = {
            "batch": self.batch,
            "length": self.length,
            "channels": self.channels,
            "n_steps": self.n_steps,
        }
        self.convolution = {
            "x": self.xz,
            "x_b": self.xz.stride(0),
            "x_t": self.xz.stride(1),
            "taps": self.weights.conv_weight.transpose(1, 2).contiguous(),
            "conv_bias": self.weights.conv_bias,
            "HAS_BIAS": self.weights.conv_bias is not None,
            "K": self.weights.conv_weight.shape[2],
            "ORDERED": layout.order is not None,
            **self.tables.arguments("order"),
        }

    @property
    def pooled(self) -> bool:
        return self.pooling != "none"

    def empty(self, *shape: int) -> Tensor:
        return self.xz.new_empty(shape, dtype=torch.float32)

    def steps(self) -> Tensor:
        """Float32 (2, B, S, D)."""
        return self.empty(2, self.batch, self.n_steps, self.channels)

    def pool(self, into: Tensor, extremes: Tensor | None = None) -> None:
        """Pass one, into (2, B, S, D); with `extremes`, how many tokens attain them instead."""
        tile, block = self.plan.pool
        units = self.n_steps if self.pooled else blocks(self.length, tile)
        # Both directions at once, so that x is read once, unless they pool different tokens.
        for first, last in ((0, 1), (1, 2)) if self.two_tables else ((0, 2),):
            tables = self.tables.arguments("members", "offsets")
            if first == 1:
                reverse = self.tables.arguments("reverse_members", "reverse_offsets")
                tables = {name.removeprefix("reverse_"): value for name, value in reverse.items()}
            launch(
                mixer_kernels.pool_tokens,
                (units, blocks(self.channels, block), self.batch),
                num_warps=1,
                **self.convolution,
                **self.sizes,
                **tables,
                pooled=into,
                extremes=extremes,
                scale=self.scale,
                FIRST=first,
                LAST=last,
                POOLING=self.pooling,
                TIES=extremes is not None,
                TILE=tile,
                BLOCK=block,
            )

    def project(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """(dt, B, C) side by side (2, B S, R + 2 N), and delta before its bias (2, B S, D)."""
        projected = torch.bmm(pooled.flatten(1, 2), self.weights.x_proj.transpose(1, 2))
        dt = projected[..., : self.rank]
        return projected, torch.bmm(dt, self.weights.dt_proj.transpose(1, 2))

    def sequences(self, pooled: Tensor, projected: Tensor, delta: Tensor) -> scan.Sequences:
        shape = 2 * self.batch, self.n_steps, -1
        _, B, C = projected.view(shape).split([self.rank, self.states, self.states], dim=-1)
        return scan.Sequences(
            u=pooled.view(shape).transpose(1, 2),
            delta=delta.view(shape).transpose(1, 2),
            A=self.weights.A,
            B=B.transpose(1, 2)[:, None],
            C=C.transpose(1, 2)[:, None],
            skip=None,
            z=None,
            bias=self.weights.dt_bias,
            softplus=True,
        )

    def finishing(self, scanned: Tensor) -> dict:
        """Arguments of pass two and of its backward."""
        weights = self.weights
        return {
            **self.convolution,
            **self.sizes,
            **self.tables.arguments("steps", "reverse_steps"),
            "scanned": scanned,
            "skip": weights.D,
            "norm_weight": weights.norm_weight,
            "norm_bias": weights.norm_bias,
            "factor": self.factor,
            "eps": self.eps,
            "POOLED": self.pooled,
            "HAS_NORM": weights.norm_weight is not None,
            "HAS_NORM_BIAS": weights.norm_weight is not None and weights.norm_bias is not None,
            "GATE": self.gate,
            "TILE": self.plan.tokens,
            "G": self.plan.segments,
            "BLOCK": self.plan.block,
        }

    def finish(self, scanned: Tensor) -> Tensor:
        """Pass two: (B, L, D) in memory order."""
        out = self.xz.new_empty(self.batch, self.length, self.channels)
        whole = self.xz.dtype == torch.float32
        launch(
            mixer_kernels.finish_tokens,
            (blocks(self.length, self.plan.share), self.batch, 1),
            num_warps=self.plan.warps,
            # Rows of five blocks in float32 spill with fewer on sm_90.
            max_registers=64 if self.plan.segments <= 3 else 144 if whole else 128,
            **self.finishing(scanned),
            out=out,
            share=self.plan.share,
        )
        return out


def pooled_mixer(
    xz: Tensor,
    weights: MixerWeights,
    layout: ScanLayout,
    pooling: str = "mean",
    scale: float = 1.0,
    merge: str = "mean",
    gate: bool = True,
    eps: float = 1e-5,
    scanner: Callable[[scan.Sequences, Tensor], object] = scan.scan,
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.pooled_mixer` by Triton; float32, bfloat16 or float16, float32 inside.

    `scanner` runs the scan of the pooled steps.
    """
    mixer = MixerLaunches(xz, weights, layout, pooling, scale, merge, gate, eps)
    pooled, scanned = mixer.steps(), mixer.steps()
    mixer.pool(pooled)
    given = mixer.sequences(pooled, *mixer.project(pooled))
    scanner(given, scanned.flatten(0, 1).transpose(1, 2))
    return mixer.finish(scanned), pooled, scanned
