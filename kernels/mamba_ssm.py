"""The CUDA scan of an installed mamba-ssm inside the fused mixer; its passes are Triton's.

Axes as in `reference.py`. Only `selective_scan_fn` of the package is used, not causal-conv1d.
It ignores the gradient of the last state, so the backward lets the state out as outputs: N more
steps with a step size of 0, at which h stays, and with the rows of the identity as C.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvim.kernels import reference
from fastvim.kernels.reference import MixerWeights, ScanLayout


def _published_scan() -> Callable:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn


def _common_dtype(*tensors: Tensor) -> list[Tensor]:
    """The published scan takes one dtype for everything that has a time axis."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype).contiguous() for tensor in tensors]


def _over_time(matrix: Tensor, batch: int, length: int) -> Tensor:
    """B or C as (B, G, N, L); one that is fixed in time has a group a channel."""
    if matrix.dim() == 2:
        return matrix[None, :, :, None].expand(batch, -1, -1, length)
    return matrix[:, None] if matrix.dim() == 3 else matrix


def _float(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.float().contiguous()


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
    """`reference.selective_scan` by mamba-ssm's CUDA kernel."""
    batch, _, length = u.shape
    B, C = (_over_time(matrix, batch, length) for matrix in (B, C))
    shared = _common_dtype(u, delta, B, C, *(() if z is None else (z,)))
    y, state = _published_scan()(
        shared[0],
        shared[1],
        _float(A),
        shared[2],
        shared[3],
        _float(D),
        None if z is None else shared[4],
        _float(delta_bias),
        delta_softplus,
        return_last_state=True,
    )
    return y.to(u.dtype), state.float().contiguous()


def _scan_and_state(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """The scan with a last state that has a gradient: see the head of this file."""
    batch, _, length = u.shape
    states = A.shape[1]
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    B, C = (_over_time(matrix, batch, length) for matrix in (B, C))
    identity = torch.eye(states, dtype=C.dtype, device=C.device)
    rows = identity.expand(batch, C.shape[1], states, states)
    shared = _common_dtype(
        F.pad(u, (0, states)),
        F.pad(delta, (0, states), value=-1e4 if delta_softplus else 0.0),
        F.pad(B, (0, states)),
        torch.cat([C, rows], dim=-1),
    )
    longer = _published_scan()(
        shared[0], shared[1], A.float().contiguous(), *shared[2:], delta_softplus=delta_softplus
    )
    y, state = longer.float().split([length, states], dim=-1)
    if D is not None:
        y = y + u.float() * D.float()[:, None]
    if z is not None:
        y = y * F.silu(z.float())
    return y.to(u.dtype), state


def selective_scan_backward(
    grad_y: Tensor, grad_state: Tensor, inputs: tuple[Tensor | None, ...], delta_softplus: bool
) -> list[Tensor]:
    """Gradients of `selective_scan` for each of its eight tensor inputs that is not None."""
    present = [tensor for tensor in inputs if tensor is not None]

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        given = iter(tensors)
        restored = [None if tensor is None else next(given) for tensor in inputs]
        return _scan_and_state(*restored, delta_softplus)

    return reference.vector_jacobian_product(function, present, (grad_y, grad_state))


def _directions(given, *tensors: Tensor):
    """Each direction's tensors (Q, ..., L), those of the reverse flipped, with its A and bias."""
    count = given.u.shape[0] // given.A.shape[0]
    for direction in range(given.A.shape[0]):
        mine = slice(direction * count, (direction + 1) * count)
        turned = [tensor[mine].flip(-1) if direction else tensor[mine] for tensor in tensors]
        yield mine, direction, turned


def _scan(given, y: Tensor) -> None:
    """`triton.scan.scan` by the published scan, a direction a call."""
    for mine, direction, (u, delta, B, C) in _directions(
        given, given.u, given.delta, given.B, given.C
    ):
        found, _ = selective_scan(
            u, delta, given.A[direction], B, C, None, None, given.bias[direction], given.softplus
        )
        y[mine] = found.flip(-1) if direction else found


def _scan_backward(given, grad_y, _grad_state, grad_u, grad_delta, _grad_z, grad_B, grad_C):
    """`triton.scan_backward.scan_backward` by the published scan, a direction a call."""
    from fastvim.kernels.triton.scan_backward import ScanGradients

    by_direction = []
    tensors = given.u, given.delta, given.B, given.C
    for mine, direction, turned in _directions(given, *tensors):
        grad = grad_y[direction].flip(-1) if direction else grad_y[direction]

        def function(u, delta, A, B, C, bias):
            return (
                _published_scan()(
                    *_common_dtype(u, delta), A, *_common_dtype(B, C), None, None, bias, True
                ),
            )

        u, delta, B, C = turned
        inputs = [u, delta, given.A[direction], B, C, given.bias[direction]]
        found = reference.vector_jacobian_product(
            function, [tensor.contiguous() for tensor in inputs], (grad.contiguous(),)
        )
        turn = (lambda tensor: tensor.flip(-1)) if direction else (lambda tensor: tensor)
        grad_u[mine], grad_delta[mine] = turn(found[0]), turn(found[1])
        grad_B[mine] = turn(found[3]).permute(0, 3, 1, 2)
        grad_C[mine] = turn(found[4]).permute(0, 3, 1, 2)
        by_direction.append([found[2], found[5]])
    A, bias = (torch.stack(parts) for parts in zip(*by_direction, strict=True))
    return ScanGradients(grad_u, grad_delta, A, grad_B, grad_C, None, None, bias)


def pooled_mixer(
    xz: Tensor, weights: MixerWeights, layout: ScanLayout, *settings, **more
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.pooled_mixer` by Triton's two passes around mamba-ssm's scan."""
    from fastvim.kernels import triton

    return triton.pooled_mixer(xz, weights, layout, *settings, **more, scanner=_scan)


def pooled_mixer_backward(
    grad_out: Tensor,
    xz: Tensor,
    weights: MixerWeights,
    layout: ScanLayout,
    pooled: Tensor,
    scanned: Tensor,
    **settings: object,
) -> list[Tensor]:
    """Gradients of `pooled_mixer` for xz and each weight that is not None, in that order."""
    from fastvim.kernels import triton

    return triton.pooled_mixer_backward(
        grad_out, xz, weights, layout, pooled, scanned, differentiate=_scan_backward, **settings
    )
