"""The backward of the fused mixer on a GPU. Axes as in `mixer.py`."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastvim.kernels.reference import MixerWeights, ScanLayout
from fastvim.kernels.triton import mixer_backward_kernels as kernels
from fastvim.kernels.triton.launch import blocks, launch
from fastvim.kernels.triton.mixer import MixerLaunches
from fastvim.kernels.triton.scan_backward import ScanGradients, scan_backward


class MixerBackward(MixerLaunches):
    """The launches of one mixer's backward."""

    def finish_backward(
        self, grad_out: Tensor, scanned: Tensor, grad_xz: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """Pass two backwards: writes z's half of grad_xz.

        Returns the gradient of one direction's output in scan order (B, L, D), that of the scanned
        steps (1 or 2, B, S, D), the directions sharing it or not, and those of the norm's weight
        and bias (D,).
        """
        plan = self.plan
        units = self.n_steps if self.pooled else self.length
        grid = (blocks(units, plan.group), plan.parts, self.batch)
        grad_merged = self.xz.new_empty(self.batch, self.length, self.channels)
        sums = None
        if self.pooled:
            sums = self.empty(plan.parts, self.batch, self.n_steps, self.channels)
        norm = None
        if self.weights.norm_weight is not None:
            norm = self.empty(grid[0] * grid[1] * grid[2], 2, self.channels)
        launch(
            kernels.finish_backward,
            grid,
            num_warps=plan.warps,
            # Rows of five blocks in float32 spill with fewer on sm_90.
            max_registers=160 if plan.segments > 3 and self.xz.dtype == torch.float32 else 128,
            **self.finishing(scanned),
            **self.tables.arguments("members", "offsets"),
            grad_out=grad_out,
            grad_x=grad_xz,
            grad_merged=grad_merged,
            grad_scanned=sums,
            grad_norm=norm,
            share=plan.group,
            parts=plan.parts,
        )
        if norm is not None:
            # Two sums, not one of both: outputs of an operator must not share memory.
            norm = norm[:, 0].sum(0), norm[:, 1].sum(0)
        if not self.pooled:
            return grad_merged, grad_merged[None], norm
        forward = sums if plan.parts == 1 else sums.sum(0, keepdim=True)
        if not self.two_tables:
            return grad_merged, forward, norm
        return grad_merged, torch.cat([forward, self.sum_reverse_steps(grad_merged)]), norm

    def sum_reverse_steps(self, grad_merged: Tensor) -> Tensor:
        """The sums of the reverse direction's steps (1, B, S, D), where they are other tokens."""
        sums = self.empty(1, self.batch, self.n_steps, self.channels)
        tile, block = self.plan.pool
        launch(
            kernels.sum_steps,
            (self.n_steps, blocks(self.channels, block), self.batch),
            num_warps=1,
            grad_merged=grad_merged,
            members=self.tables.reverse_members,
            offsets=self.tables.reverse_offsets,
            grad_scanned=sums,
            members_b=self.tables.arguments("reverse_members")["reverse_members_b"],
            offsets_b=self.tables.arguments("reverse_offsets")["reverse_offsets_b"],
            length=self.length,
            channels=self.channels,
            n_steps=self.n_steps,
            TILE=tile,
            BLOCK=block,
        )
        return sums

    def pool_backward(
        self, grad_merged: Tensor, grad_pooled: Tensor, pooled: Tensor, grad_xz: Tensor
    ) -> Tensor:
        """Pass one backwards: writes x's half of grad_xz.

        Returns the gradients of the taps, the bias and the skip, (2, K + 2, D).
        """
        ties = None
        if self.pooling == "max":
            ties = self.steps()
            self.pool(ties, extremes=pooled)
        plan, K = self.plan, self.convolution["K"]
        runs = blocks(self.length, plan.run)
        programs = blocks(self.batch * runs, plan.walkers)
        rows = self.empty(programs, 2, K + 2, self.channels)
        tables = self.tables.arguments("steps", "reverse_steps", "offsets", "reverse_offsets")
        launch(
            kernels.convolve_backward,
            (blocks(self.channels, plan.run_block), programs, 1),
            num_warps=plan.walkers,
            **self.convolution,
            **self.sizes,
            **tables,
            skip=self.weights.D,
            grad_merged=grad_merged,
            grad_pooled=grad_pooled,
            pooled=pooled if self.pooling == "max" else None,
            ties=ties,
            grad_x=grad_xz,
            grad_rows=rows,
            run=plan.run,
            runs=runs,
            scale=self.scale,
            POOLING=self.pooling,
            W=plan.walkers,
            BLOCK=plan.run_block,
        )
        return rows.sum(0)

    def scan_backward(
        self, pooled: Tensor, grad_scanned: Tensor, differentiate: Callable
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Through the scan and the projections: gradients of pooled (2, B, S, D) and of weights."""
        weights = self.weights
        projected, delta = self.project(pooled)
        given = self.sequences(pooled, projected, delta)
        grad_u, grad_delta = torch.empty_like(pooled), torch.empty_like(delta)
        grad_projected = torch.empty_like(projected)
        # Written where they are needed side by side: torch's copies would move them twice more.
        rows = grad_projected.view(2 * self.batch, self.n_steps, 1, -1)
        _, grad_B, grad_C = rows.split([self.rank, self.states, self.states], dim=-1)
        flat = 2 * self.batch, self.n_steps, self.channels
        found = differentiate(
            given,
            grad_scanned.expand(2, -1, -1, -1).transpose(2, 3),
            None,
            grad_u.view(flat).transpose(1, 2),
            grad_delta.view(flat).transpose(1, 2),
            None,
            grad_B,
            grad_C,
        )
        torch.bmm(grad_delta, weights.dt_proj, out=grad_projected[..., : self.rank])
        by_step = pooled.flatten(1, 2)
        grads = {
            "A": found.A,
            "dt_bias": found.bias,
            "dt_proj": torch.bmm(grad_delta.transpose(1, 2), projected[..., : self.rank]),
            "x_proj": torch.bmm(grad_projected.transpose(1, 2), by_step),
        }
        grad_pooled = torch.baddbmm(grad_u.flatten(1, 2), grad_projected, weights.x_proj)
        return grad_pooled.view_as(pooled), grads


def pooled_mixer_backward(
    grad_out: Tensor,
    xz: Tensor,
    weights: MixerWeights,
    layout: ScanLayout,
    pooled: Tensor,
    scanned: Tensor,
    differentiate: Callable[..., ScanGradients] = scan_backward,
    **settings: object,
) -> list[Tensor]:
    """Gradients of `pooled_mixer` for xz and each weight that is not None, in that order.

    `pooled` and `scanned` are what the forward returned; the convolutions are recomputed.
    `differentiate` runs the backward of the scan.
    """
    # The kernels address the gradient by xz's strides.
    xz = xz.contiguous()
    mixer = MixerBackward(xz, weights, layout, **settings)
    grad_xz = torch.empty(xz.shape, dtype=xz.dtype, device=xz.device)
    if not mixer.gate:
        grad_xz[..., mixer.channels :].zero_()
    grad_merged, grad_scanned, norm = mixer.finish_backward(grad_out.contiguous(), scanned, grad_xz)
    grad_pooled, grads = mixer.scan_backward(pooled, grad_scanned, differentiate)
    rows = mixer.pool_backward(grad_merged, grad_pooled, pooled, grad_xz)
    width = weights.conv_weight.shape[2]
    grads |= {
        "conv_weight": rows[:, :width].transpose(1, 2),
        "conv_bias": rows[:, width],
        "D": rows[:, width + 1],
    }
    if norm is not None:
        grads |= {"norm_weight": norm[0], "norm_bias": norm[1]}
    return [grad_xz] + [
        # Copies of what shares memory, laid out as the weights.
        grads[name].to(weight.dtype).contiguous()
        for name, weight in weights._asdict().items()
        if weight is not None
    ]
