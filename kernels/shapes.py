"""Whether the operators' arguments fit each other: kernels that are given addresses would read on
beside a tensor that is too small, and on another device they would find nothing.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from fastvim.kernels.reference import MixerWeights, ScanLayout

Expected = tuple[str, Tensor | None, tuple[tuple[int, ...], ...]]


def check_tensors(device: torch.device, expected: Iterable[Expected]) -> None:
    """ValueError unless each tensor has one of its shapes and is on the device; None passes."""
    # Two dozen blocks of a dozen tensors: a call for each would be seen in a model's time.
    for name, tensor, shapes in expected:
        if tensor is None:
            continue
        if tensor.size() not in shapes:
            allowed = " or ".join(map(str, shapes))
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be {allowed}")
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, but what it is applied to on {device}")


def check_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    """ValueError where the arguments of `selective_scan` do not fit."""
    if u.dim() != 3 or A.dim() != 2:
        raise ValueError(f"u is {tuple(u.shape)} and A {tuple(A.shape)}; they must be 3-d and 2-d")
    batch, channels, length = u.shape
    states = A.shape[1]
    if A.is_complex():
        raise ValueError("A is complex; only real state matrices are implemented")
    everywhere, each = ((batch, channels, length),), ((channels,),)
    expected = [("delta", delta, everywhere), ("A", A, ((channels, states),))]
    for name, matrix in (("B", B), ("C", C)):
        shapes = [(channels, states), (batch, states, length)]
        if matrix.dim() == 4 and matrix.shape[1] and channels % matrix.shape[1] == 0:
            shapes.append((batch, matrix.shape[1], states, length))
        expected.append((name, matrix, tuple(shapes)))
    expected += [("D", D, each), ("z", z, everywhere), ("delta_bias", delta_bias, each)]
    check_tensors(u.device, expected)


def check_mixer(tokens: Tensor, weights: MixerWeights, layout: ScanLayout) -> None:
    """ValueError where weights and tables do not fit each other or the tokens (B, L, any).

    Tables in int64 pass: they are converted. Those of fractions would be cut off.
    """
    for name in ("conv_weight", "dt_proj", "A"):
        shape = getattr(weights, name).shape
        if len(shape) != 3:
            raise ValueError(f"{name} has shape {tuple(shape)}; it must be 3-d")
    if weights.norm_weight is None and weights.norm_bias is not None:
        raise ValueError("norm_bias without norm_weight")
    if layout.steps is None and layout.reverse_steps is not None:
        raise ValueError("layout: reverse_steps without steps")
    for name in ("order", "steps", "reverse_steps"):
        table = getattr(layout, name)
        if table is not None and table.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"layout: {name} is {table.dtype}; it must be torch.int32")
    _, channels, states = weights.A.shape
    rank, both, each = weights.dt_proj.shape[2], (2, channels), ((channels,),)
    tables = ((tokens.shape[1],), tuple(tokens.shape[:2]))
    expected = (
        ("conv_weight", weights.conv_weight, ((*both, weights.conv_weight.shape[2]),)),
        ("conv_bias", weights.conv_bias, (both,)),
        ("x_proj", weights.x_proj, ((2, rank + 2 * states, channels),)),
        ("dt_proj", weights.dt_proj, ((*both, rank),)),
        ("dt_bias", weights.dt_bias, (both,)),
        ("A", weights.A, ((*both, states),)),
        ("D", weights.D, (both,)),
        ("norm_weight", weights.norm_weight, each),
        ("norm_bias", weights.norm_bias, each),
        ("layout: order", layout.order, tables),
        ("layout: steps", layout.steps, tables),
        ("layout: reverse_steps", layout.reverse_steps, tables),
    )
    check_tensors(tokens.device, expected)
