"""The arguments of the C++ kernels, built from tensors: addresses, strides, settings."""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from fastvim.kernels.native import LIBRARY, MixerCall, ScanCall, ScanGradients
from fastvim.kernels.reference import MixerWeights, ScanLayout

_POOLING = {"mean": 1, "sum": 2, "max": 3}


def run(
    name: str,
    call: ctypes.Structure,
    dtype: torch.dtype,
) -> None:
    status = getattr(LIBRARY, name)(call, dtype == torch.float64)
    if status == 1:
        raise MemoryError(f"{name}: no memory for the kernel's scratch space")
    if status == 2:
        raise ValueError(
            "layout: order must be a permutation of the tokens, and steps and reverse_steps "
            "numbers from 0 to n_steps - 1"
        )


def pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class View(NamedTuple):
    """Where the kernels find a tensor: address, and strides in the order they take them."""

    pointer: int | None
    strides: tuple[int, ...]


NOTHING = View(None, (0, 0, 0))


def view(tensor: Tensor | None) -> View:
    return NOTHING if tensor is None else View(tensor.data_ptr(), tensor.stride())


def matrix_view(matrix: Tensor, channels: int) -> tuple[View, int]:
    """B or C with strides (batch, group, state, time), and how many channels share a group.

    0 channels stand for a matrix (D, N) that is fixed in time.
    """
    stride = matrix.stride()
    if matrix.dim() == 2:
        return View(matrix.data_ptr(), (0, stride[0], stride[1], 0)), 0
    if matrix.dim() == 3:
        return View(matrix.data_ptr(), (stride[0], 0, stride[1], stride[2])), channels
    return View(matrix.data_ptr(), stride), channels // max(matrix.shape[1], 1)


def steps_view(steps: Tensor, direction: int) -> View:
    """Channel-last steps (B, S, D), strides (batch, channel, time), as a direction walks them."""
    batch, time, channel = steps.stride()
    if direction == 0:
        return View(steps.data_ptr(), (batch, channel, time))
    last = steps.data_ptr() + (steps.shape[1] - 1) * time * steps.element_size()
    return View(last, (batch, channel, -time))


def steps_matrix_view(steps: Tensor, direction: int) -> View:
    """The same for B or C (B, S, N), with strides (batch, group, state, time)."""
    pointer, (batch, state, time) = steps_view(steps, direction)
    return View(pointer, (batch, 0, state, time))


def scan_call(
    sizes: tuple[int, int, int, int],
    softplus: bool,
    u: View,
    delta: View,
    A: View,
    B: View,
    C: View,
    shared: tuple[int, int],
    D: Tensor | None = None,
    z: View = NOTHING,
    bias: Tensor | None = None,
    y: View = NOTHING,
    state: Tensor | None = None,
) -> ScanCall:
    """`sizes` are batch, channels, length, states; `shared` as `matrix_view` says for B and C."""
    return ScanCall(
        *sizes,
        torch.get_num_threads(),
        softplus,
        u.pointer,
        delta.pointer,
        z.pointer,
        u.strides,
        delta.strides,
        z.strides,
        A.pointer,
        A.strides,
        B.pointer,
        C.pointer,
        B.strides,
        C.strides,
        *shared,
        pointer(D),
        pointer(bias),
        y.pointer,
        y.strides,
        pointer(state),
    )


def channel_first_call(u, delta, A, B, C, D, z, bias, softplus, y=None, state=None) -> ScanCall:
    B_view, B_shared = matrix_view(B, u.shape[1])
    C_view, C_shared = matrix_view(C, u.shape[1])
    return scan_call(
        (*u.shape, A.shape[1]),
        softplus,
        view(u),
        view(delta),
        view(A),
        B_view,
        C_view,
        (B_shared, C_shared),
        D,
        view(z),
        bias,
        view(y),
        state,
    )


def scan_gradients(
    call: ScanCall,
    y: View,
    state: View,
    u: View,
    delta: View,
    z: View,
    A: Tensor,
    B: View,
    C: View,
    D: Tensor | None,
    bias: Tensor,
) -> ScanGradients:
    """`y` and `state` are the gradients that come in, the others those to fill."""
    return ScanGradients(
        call,
        y.pointer,
        state.pointer,
        y.strides,
        state.strides,
        u.pointer,
        delta.pointer,
        z.pointer,
        u.strides,
        delta.strides,
        z.strides,
        A.data_ptr(),
        B.pointer,
        C.pointer,
        B.strides,
        C.strides,
        pointer(D),
        pointer(bias),
    )


def mixer_call(
    shape: tuple[int, int, int],
    weights: MixerWeights,
    layout: ScanLayout,
    pooling: str,
    scale: float,
    merge: str,
    gate: bool,
    eps: float,
) -> MixerCall:
    """`shape` is batch, tokens, channels; what is read and written is for the caller to add."""
    batch, length, channels = shape
    tables = (layout.order, layout.steps, layout.reverse_steps)
    steps = length if layout.steps is None else layout.n_steps
    return MixerCall(
        batch,
        length,
        channels,
        steps,
        weights.conv_weight.shape[2],
        torch.get_num_threads(),
        _POOLING[pooling],
        gate,
        scale,
        0.5 if merge == "mean" else 1.0,
        eps,
        None,
        None,
        (0, 0),
        weights.conv_weight.data_ptr(),
        pointer(weights.conv_bias),
        weights.D.data_ptr(),
        pointer(weights.norm_weight),
        pointer(weights.norm_bias),
        *(pointer(table) for table in tables),
        *(length if table is not None and table.dim() == 2 else 0 for table in tables),
        batch * steps * channels,
    )


def read_from(call: MixerCall, xz: Tensor) -> None:
    call.x = xz.data_ptr()
    call.z = xz.data_ptr() + call.channels * xz.element_size()
    call.x_stride = xz.stride()[:2]
