"""The backward of the selective scan on a GPU: shapes to launches. Axes as in `scan.py`."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastvim.kernels.triton import scan_backward_kernels as kernels
from fastvim.kernels.triton.launch import blocks, launch
from fastvim.kernels.triton.scan import REGISTERS, ScanLaunches, Sequences, strides


class ScanGradients(NamedTuple):
    """Gradients of `Sequences`; B and C (Q, L, G, N), or (directions, D, N) where fixed in time."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    skip: Tensor | None
    z: Tensor | None
    bias: Tensor | None


def scan_backward(
    given: Sequences,
    grad_y: Tensor,
    grad_state: Tensor | None,
    grad_u: Tensor,
    grad_delta: Tensor,
    grad_z: Tensor | None,
    grad_B: Tensor | None = None,
    grad_C: Tensor | None = None,
) -> ScanGradients:
    """Write the gradients of u, delta and z (Q, D, L) into the tensors given, return all.

    Those of B and C go to new tensors, or to `grad_B` and `grad_C` (Q, L, G, N) of any strides;
    `grad_y` is (directions, Q / directions, D, L), of any strides; `grad_state` (Q, N, D).
    """
    run = ScanLaunches(given)
    directions, n_states, chunks = run.directions, run.n_states, run.plan.chunks
    count, _, length = given.u.shape
    tile, block = run.plan.backward
    grid = run.grid(block)

    initial, decays = run.initial_states()
    slots = max(1, blocks(length, tile) - 1)
    carries = None
    if chunks > 1 or grad_state is not None:
        carries = run.empty(chunks + 1, n_states)
        if grad_state is None:
            carries[:, -1].zero_()
        else:
            carries[:, -1].copy_(grad_state)
    incoming = {
        "gy": grad_y,
        "gy_r": grad_y.stride(0),
        "gy_q": grad_y.stride(1),
        "gy_d": grad_y.stride(2),
        "gy_t": grad_y.stride(3),
    }
    if chunks > 1:
        launch(
            kernels.scan_adjoint_ends,
            grid,
            num_warps=run.plan.backward_warps,
            max_registers=REGISTERS,
            **run.timed,
            **incoming,
            carries=carries,
            TILE=tile,
            BLOCK=block,
        )
        run.carry(carries, decays, backward=True)

    def parts_of(matrix: Tensor) -> Tensor:
        if matrix.dim() == 2:
            return run.empty(chunks, n_states)
        return given.u.new_empty(grid[0], count, length, n_states, dtype=torch.float32)

    to_A, to_B, to_C = run.empty(chunks, n_states), parts_of(given.B), parts_of(given.C)
    to_skip = None if given.skip is None else run.empty(chunks)
    to_bias = None if given.bias is None else run.empty(chunks)
    launch(
        kernels.scan_backward,
        grid,
        num_warps=run.plan.backward_warps,
        max_registers=REGISTERS,
        **run.inputs,
        **incoming,
        **strides("qdt", gu=grad_u, gdelta=grad_delta, gz=grad_z),
        initial=initial,
        states=run.empty(slots, n_states),
        carries=carries,
        work=run.empty(chunks, n_states),
        gu=grad_u,
        gdelta=grad_delta,
        gz=grad_z,
        gA=to_A,
        gB=to_B,
        gC=to_C,
        gskip=to_skip,
        gbias=to_bias,
        slots=slots,
        CARRIED=initial is not None,
        ENTERED=carries is not None,
        TILE=tile,
        BLOCK=block,
    )

    def per_direction(parts: Tensor) -> Tensor:
        """(Q, C, ..., D) to (directions, ..., D)."""
        return parts.unflatten(0, (directions, -1)).sum((1, 2))

    def per_token(parts: Tensor, matrix: Tensor, into: Tensor | None) -> Tensor:
        if matrix.dim() == 2:
            return per_direction(parts).transpose(1, 2)
        if into is None:
            into = parts.new_empty(count, length, matrix.shape[1], n_states)
        torch.sum(parts.unflatten(0, (matrix.shape[1], -1)), 1, out=into.permute(2, 0, 1, 3))
        return into

    return ScanGradients(
        u=grad_u,
        delta=grad_delta,
        A=per_direction(to_A).transpose(1, 2),
        B=per_token(to_B, given.B, grad_B),
        C=per_token(to_C, given.C, grad_C),
        skip=None if to_skip is None else to_skip.sum((0, 1)),
        z=grad_z,
        bias=None if to_bias is None else per_direction(to_bias),
    )
