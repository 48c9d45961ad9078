"""The selective scan on a GPU: shapes to launches.

Axes as in `scan_kernels.py`. A scan is split in chunks along time where there are too few
channels and sequences to fill a GPU; the number depends on the shape alone, so that a result does
not depend on the device.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastvim.kernels.triton import scan_kernels
from fastvim.kernels.triton.launch import blocks, launch, power_of_two

_WARPS = 1024  # enough to hide memory latency on the largest GPU (148 multiprocessors)
_SHORTEST_CHUNK = 64  # steps; a shorter one costs more to carry than it gains
REGISTERS = 224  # of a thread, at most


@dataclass(frozen=True)
class ScanPlan:
    """Tiles (steps, channels) of the forward and the backward kernels; chunks of time.

    The backward's has fewer steps, for it has twice as much to keep in registers, and more
    channels, a warp for 32 of them: what they give to B and C is added up in the program.
    """

    forward: tuple[int, int]
    backward: tuple[int, int]
    chunk: int
    chunks: int
    backward_warps: int


def plan_scan(
    sequences: int, channels: int, length: int, shared: int, gated: bool = False
) -> ScanPlan:
    """Split (sequences, channels, length), where `shared` channels have one B and C.

    A scan that is `gated` by z needs more registers in its backward.
    """

    def tile(steps: int, block: int) -> tuple[int, int]:
        # A block lies within a group, because its sums over channels are the group's.
        within = block if shared == channels else shared & -shared
        return min(steps, max(2, power_of_two(length))), min(block, within)

    warps = sequences * blocks(channels, 32)
    wanted = min(blocks(_WARPS, warps), length // _SHORTEST_CHUNK)
    if wanted < 3:
        wanted = 1  # A chunk is read twice: two of them take as long as the whole.
    chunk = blocks(blocks(length, wanted), 16) * 16
    backward = tile(4 if gated else 8, min(128, max(32, power_of_two(channels))))
    return ScanPlan(
        forward=tile(16, 32),
        backward=backward,
        chunk=chunk,
        chunks=blocks(length, chunk),
        backward_warps=blocks(backward[1], 32),
    )


class Sequences(NamedTuple):
    """What is scanned: sequences (Q, D, L), the second half of them backwards if two directions.

    B and C are (Q, G, N, L), or (D, N) if fixed in time; A (directions, D, N), skip (D,), bias
    (directions, D), float32. Any strides but A's.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    skip: Tensor | None
    z: Tensor | None
    bias: Tensor | None
    softplus: bool


def strides(axes: str, **tensors: Tensor | None) -> dict[str, int]:
    """`u_q=..., u_d=..., u_t=...` for tensors whose axes are `axes`; zeros for None."""
    return {
        f"{name}_{axis}": 0 if tensor is None else tensor.stride(i)
        for name, tensor in tensors.items()
        for i, axis in enumerate(axes)
    }


def _per_state(name: str, matrix: Tensor, channels: int) -> dict:
    """Arguments for B or C."""
    fixed = matrix.dim() == 2
    strides = (0, *matrix.stride(), 0) if fixed else matrix.stride()
    return {
        name: matrix,
        **{f"{name}_{axis}": stride for axis, stride in zip("qgnt", strides, strict=True)},
        f"shared_{name}": 1 if fixed else channels // matrix.shape[1],
        f"FIXED_{name}": fixed,
    }


class ScanLaunches:
    """The launches over one set of sequences."""

    def __init__(self, given: Sequences):
        count, channels, length = given.u.shape
        self.given = given
        self.directions, _, self.n_states = given.A.shape
        # A block of channels lies within a group of B and within one of C.
        groups = math.lcm(*(m.shape[1] for m in (given.B, given.C) if m.dim() == 4))
        self.plan = plan_scan(
            count, channels, length, channels // groups, gated=given.z is not None
        )
        self.common = {
            "A": given.A,
            "sequences": count // self.directions,
            "channels": channels,
            "n_states": self.n_states,
        }
        # What every kernel that walks along time takes.
        self.timed = self.common | {
            **strides("qdt", delta=given.delta, z=given.z),
            **_per_state("C", given.C, channels),
            "delta": given.delta,
            "z": given.z,
            "bias": given.bias,
            "length": length,
            "chunk": self.plan.chunk,
            "SOFTPLUS": given.softplus,
            "HAS_Z": given.z is not None,
            "HAS_BIAS": given.bias is not None,
        }
        # What those take that need the inputs too.
        self.inputs = self.timed | {
            **strides("qdt", u=given.u),
            **_per_state("B", given.B, channels),
            "u": given.u,
            "skip": given.skip,
            "HAS_SKIP": given.skip is not None,
        }

    def grid(self, block: int) -> tuple[int, int, int]:
        count, channels, _ = self.given.u.shape
        return blocks(channels, block), count, self.plan.chunks

    def empty(self, *middle: int) -> Tensor:
        """Float32 (Q, *middle, D)."""
        count, channels, _ = self.given.u.shape
        return self.given.u.new_empty(count, *middle, channels, dtype=torch.float32)

    def forward(self, y, initial, states, decays, shift=0) -> None:
        tile, block = self.plan.forward
        launch(
            scan_kernels.scan_forward,
            self.grid(block),
            num_warps=1,
            max_registers=REGISTERS,
            **self.inputs,
            **strides("qdt", y=y),
            y=y,
            initial=initial,
            states=states,
            decays=decays,
            slots=states.shape[1],
            shift=shift,
            OUTPUT=y is not None,
            ENDS=decays is not None,
            CARRIED=initial is not None,
            TILE=tile,
            BLOCK=block,
        )

    def carry(self, states: Tensor, decays: Tensor, backward: bool) -> None:
        chunks = self.plan.chunks
        launch(
            scan_kernels.scan_carry,
            (*self.grid(32)[:2], self.n_states),
            num_warps=1,
            max_registers=REGISTERS,
            **self.common,
            states=states,
            decays=decays,
            chunks=chunks,
            BACKWARD=backward,
            TILE=min(16, power_of_two(chunks)),
            BLOCK=32,
        )

    def initial_states(self) -> tuple[Tensor | None, Tensor | None]:
        """The state that enters each chunk (Q, C + 1, N, D), and each chunk's sum of delta.

        None where a single chunk starts from 0.
        """
        if self.plan.chunks == 1:
            return None, None
        states, decays = (
            self.empty(self.plan.chunks + 1, self.n_states),
            self.empty(self.plan.chunks),
        )
        states[:, 0].zero_()
        self.forward(None, None, states, decays, shift=1)
        self.carry(states, decays, backward=False)
        return states, decays


def scan(given: Sequences, y: Tensor) -> Tensor:
    """Write the scan into y (Q, D, L); returns the last states (Q, N, D), float32."""
    run = ScanLaunches(given)
    initial, _ = run.initial_states()
    states = run.empty(run.plan.chunks, run.n_states)
    run.forward(y, initial, states, None)
    return states[:, -1]
