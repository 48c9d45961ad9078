"""The `cpu` backend: C++ kernels around PyTorch's small matrix products.

The functions are those of `reference.py`, with its axes; float32 and float64 on the CPU.
"""

import torch
from torch import Tensor

from fastvim.kernels import calls
from fastvim.kernels.cpu_products import product, workspace
from fastvim.kernels.native import LIBRARY, MixerCall, ScanCall, StepsCall
from fastvim.kernels.reference import MixerWeights, ScanLayout


def contiguous(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()


def _as(tensors: tuple[Tensor | None, ...], dtype: torch.dtype) -> list[Tensor | None]:
    return [t if t is None or t.dtype == dtype else t.to(dtype) for t in tensors]


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """Selective scan; see `reference.selective_scan`. Strided inputs are read where they lie."""
    delta, A, B, C, D, z, bias = _as((delta, A, B, C, D, z, delta_bias), u.dtype)
    D, bias = contiguous(D), contiguous(bias)
    y = u.new_empty(u.shape)
    state = u.new_empty(u.shape[0], u.shape[1], A.shape[1])
    call = calls.channel_first_call(u, delta, A, B, C, D, z, bias, delta_softplus, y, state)
    calls.run("fastvim_scan_forward", call, u.dtype)
    return y, state


def selective_scan_backward(
    grad_y: Tensor, grad_state: Tensor, inputs: tuple[Tensor | None, ...], delta_softplus: bool
) -> list[Tensor]:
    """Gradients of `selective_scan` for each of its eight tensor inputs that is not None."""
    u, delta, A, B, C, D, z, bias = _as(inputs, inputs[0].dtype)
    D, bias = contiguous(D), contiguous(bias)
    grads = [None if t is None else t.new_empty(t.shape) for t in (u, delta, A, B, C, D, z, bias)]
    if u.numel() == 0:
        for grad in grads:
            if grad is not None:
                grad.zero_()
    else:
        grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias = grads
        arguments = calls.scan_gradients(
            calls.channel_first_call(u, delta, A, B, C, D, z, bias, delta_softplus),
            calls.view(grad_y),
            calls.view(grad_state),
            calls.view(grad_u),
            calls.view(grad_delta),
            calls.view(grad_z),
            grad_A,
            calls.matrix_view(grad_B, u.shape[1])[0],
            calls.matrix_view(grad_C, u.shape[1])[0],
            grad_D,
            grad_bias,
        )
        calls.run("fastvim_scan_backward", arguments, u.dtype)
    return [
        grad.to(given.dtype) for grad, given in zip(grads, inputs, strict=True) if grad is not None
    ]


def _prepare(
    xz: Tensor, weights: MixerWeights, layout: ScanLayout
) -> tuple[Tensor, MixerWeights, ScanLayout]:
    """The same values as the kernels want them: one dtype, channels contiguous."""
    weights = MixerWeights(*map(contiguous, _as(weights, xz.dtype)))
    if xz.stride(2) != 1:
        xz = xz.contiguous()
    return xz, weights, layout_tables(layout)


def layout_tables(layout: ScanLayout) -> ScanLayout:
    tables = [
        None if table is None else table.to(torch.int32).contiguous()
        for table in (layout.order, layout.steps, layout.reverse_steps)
    ]
    return ScanLayout(*tables, layout.n_steps)


def _mixer_call(xz: Tensor, *arguments) -> MixerCall:
    batch, length, width = xz.shape
    call = calls.mixer_call((batch, length, width // 2), *arguments)
    calls.read_from(call, xz)
    return call


def _project(pooled: Tensor, weights: MixerWeights) -> tuple[Tensor, Tensor]:
    """x_proj's output (2, B, S, R + 2 N) and delta (2, B, S, D) before bias and softplus."""
    directions, batch, steps, _ = pooled.shape
    rank = weights.dt_proj.shape[2]
    projected = pooled.new_empty(directions, batch, steps, weights.x_proj.shape[1])
    delta = torch.empty_like(pooled)
    for direction in range(directions):
        rows = projected[direction].flatten(0, 1)
        product(pooled[direction].flatten(0, 1), weights.x_proj[direction], out=rows)
        flat_delta = delta[direction].flatten(0, 1)
        product(rows[:, :rank], weights.dt_proj[direction], out=flat_delta)
    return projected, delta


def _direction_call(
    direction: int,
    pooled: Tensor,
    projected: Tensor,
    delta: Tensor,
    weights: MixerWeights,
    y: calls.View,
) -> ScanCall:
    """The scan of one direction over its channel-last steps."""
    batch, steps, channels = pooled.shape[1:]
    rank, states = weights.dt_proj.shape[2], weights.A.shape[2]
    matrices = projected[direction]
    return calls.scan_call(
        (batch, channels, steps, states),
        True,
        calls.steps_view(pooled[direction], direction),
        calls.steps_view(delta[direction], direction),
        calls.view(weights.A[direction]),
        calls.steps_matrix_view(matrices[..., rank : rank + states], direction),
        calls.steps_matrix_view(matrices[..., rank + states :], direction),
        (channels, channels),
        bias=weights.dt_bias[direction],
        y=y,
    )


def pooled_mixer(
    xz: Tensor,
    weights: MixerWeights,
    layout: ScanLayout,
    pooling: str = "mean",
    scale: float = 1.0,
    merge: str = "mean",
    gate: bool = True,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """A mixer between its projections; see `reference.pooled_mixer`."""
    xz, weights, layout = _prepare(xz, weights, layout)
    call = _mixer_call(xz, weights, layout, pooling, scale, merge, gate, eps)
    out = xz.new_empty(call.batch, call.length, call.channels)
    pooled = xz.new_empty(2, call.batch, call.steps, call.channels)
    scanned = torch.empty_like(pooled)
    call.out, call.pooled, call.scanned = out.data_ptr(), pooled.data_ptr(), scanned.data_ptr()
    calls.run("fastvim_mixer_convolve", call, xz.dtype)
    projected, delta = _project(pooled, weights)
    for direction in (0, 1):
        y = calls.steps_view(scanned[direction], direction)
        scan = _direction_call(direction, pooled, projected, delta, weights, y)
        calls.run("fastvim_scan_forward", scan, xz.dtype)
    calls.run("fastvim_mixer_finish", call, xz.dtype)
    return out, pooled, scanned


def pooled_mixer_backward(
    grad_out: Tensor,
    xz: Tensor,
    weights: MixerWeights,
    layout: ScanLayout,
    pooled: Tensor,
    scanned: Tensor,
    *,
    pooling: str,
    scale: float,
    merge: str,
    gate: bool,
    eps: float,
) -> list[Tensor]:
    """Gradients of `pooled_mixer` for xz and each weight that is not None, in that order."""
    given = (xz, *weights)
    xz, weights, layout = _prepare(xz, weights, layout)
    call = _mixer_call(xz, weights, layout, pooling, scale, merge, gate, eps)
    grad_out, pooled, scanned = grad_out.contiguous(), pooled.contiguous(), scanned.contiguous()
    grad_xz = xz.new_empty(xz.shape)
    grads = MixerWeights(*(None if w is None else torch.empty_like(w) for w in weights))
    if xz.numel() == 0:
        grads = MixerWeights(*(None if grad is None else grad.zero_() for grad in grads))
    else:
        # The skip, then the gradient of the merged directions, in one buffer.
        merged = xz.new_empty(call.batch, call.length, call.channels)
        grad_scanned = pooled.new_empty(1 if layout.reverse_steps is None else 2, *pooled.shape[1:])
        call.out, call.scanned = merged.data_ptr(), scanned.data_ptr()
        call.grad_out, call.grad_scanned = grad_out.data_ptr(), grad_scanned.data_ptr()
        call.grad_x = grad_xz.data_ptr()
        call.grad_z = grad_xz.data_ptr() + call.channels * xz.element_size()
        call.grad_conv_weight = grads.conv_weight.data_ptr()
        call.grad_conv_bias = calls.pointer(grads.conv_bias)
        call.grad_skip = grads.D.data_ptr()
        call.grad_norm_weight = calls.pointer(grads.norm_weight)
        call.grad_norm_bias = calls.pointer(grads.norm_bias)
        calls.run("fastvim_mixer_finish_backward", call, xz.dtype)
        grad_pooled = _steps_backward(pooled, weights, grad_scanned, grads)
        call.grad_pooled = grad_pooled.data_ptr()
        calls.run("fastvim_mixer_convolve_backward", call, xz.dtype)
    found = zip((grad_xz, *grads), given, strict=True)
    return [grad.to(value.dtype) for grad, value in found if grad is not None]


def _steps_backward(
    pooled: Tensor, weights: MixerWeights, grad_scanned: Tensor, grads: MixerWeights
) -> Tensor:
    """The gradient of `pooled` through projections and scans; fills those of their weights."""
    _, batch, steps, channels = pooled.shape
    grad_pooled = torch.empty_like(pooled)
    call = StepsCall(
        batch,
        steps,
        channels,
        weights.dt_proj.shape[2],
        weights.A.shape[2],
        torch.get_num_threads(),
        grad_scanned.shape[0] == 1,
        pooled.data_ptr(),
        grad_scanned.data_ptr(),
        weights.x_proj.data_ptr(),
        weights.dt_proj.data_ptr(),
        weights.dt_bias.data_ptr(),
        weights.A.data_ptr(),
        grad_pooled.data_ptr(),
        grads.x_proj.data_ptr(),
        grads.dt_proj.data_ptr(),
        grads.dt_bias.data_ptr(),
        grads.A.data_ptr(),
    )
    space = workspace(LIBRARY.fastvim_steps_space(call, pooled.dtype == torch.float64))
    call.space = space.data_ptr()
    calls.run("fastvim_steps_backward", call, pooled.dtype)
    return grad_pooled
