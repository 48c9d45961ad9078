"""`selective_scan` and its backward by Triton, with the layouts of `reference.py`."""

import torch
from torch import Tensor

from fastvim.kernels.triton.scan import Sequences, scan
from fastvim.kernels.triton.scan_backward import scan_backward


def _sequences(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Sequences:
    def grouped(matrix: Tensor) -> Tensor:
        return matrix[:, None] if matrix.dim() == 3 else matrix

    def whole(weight: Tensor | None) -> Tensor | None:
        return None if weight is None else weight.float().contiguous()

    bias = None if delta_bias is None else whole(delta_bias)[None]
    return Sequences(
        u, delta, whole(A)[None], grouped(B), grouped(C), whole(D), z, bias, delta_softplus
    )


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
    """`reference.selective_scan` by Triton; float32, bfloat16 or float16, float32 inside."""
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    if u.numel() == 0:
        state = u.new_zeros(u.shape[0], u.shape[1], A.shape[1], dtype=torch.float32)
        return y, state
    state = scan(_sequences(u, delta, A, B, C, D, z, delta_bias, delta_softplus), y)
    return y, state.transpose(1, 2).contiguous()


def selective_scan_backward(
    grad_y: Tensor, grad_state: Tensor, inputs: tuple[Tensor | None, ...], delta_softplus: bool
) -> list[Tensor]:
    """Gradients of `selective_scan` for each of its eight tensor inputs that is not None."""
    u, delta, _, B, C, _, z, _ = inputs
    if u.numel() == 0:
        return [torch.zeros_like(tensor) for tensor in inputs if tensor is not None]

    def like(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.new_empty(tensor.shape)

    found = scan_backward(
        _sequences(*inputs, delta_softplus),
        grad_y[None],
        grad_state.transpose(1, 2),
        like(u),
        like(delta),
        like(z),
    )

    def shaped(grad: Tensor, matrix: Tensor) -> Tensor:
        """Gradients (Q, L, G, N) or (1, D, N) in the shape that B or C was given in."""
        if matrix.dim() == 2:
            return grad[0]
        grad = grad.permute(0, 2, 3, 1)
        return grad[:, 0] if matrix.dim() == 3 else grad

    grads = [
        found.u,
        found.delta,
        found.A[0],
        shaped(found.B, B),
        shaped(found.C, C),
        found.skip,
        found.z,
        None if found.bias is None else found.bias[0],
    ]
    return [
        grad.to(tensor.dtype).contiguous()
        for grad, tensor in zip(grads, inputs, strict=True)
        if tensor is not None
    ]
