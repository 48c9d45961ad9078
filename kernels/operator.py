"""The operators as torch sees them: each is registered once, whatever backend runs inside.

`torch.library` gives each a fake kernel and a backward that is an operator too, so opcheck,
torch.compile and FLOP counters accept them. Axes are named in `reference.py`.
"""

import contextlib
import importlib
from collections.abc import Iterable
from types import ModuleType

import torch
from torch import Tensor

from fastvim.kernels import backends
from fastvim.kernels.direct import operator
from fastvim.kernels.mixer_schema import MIXER, TABLES, WEIGHTS, take_apart
from fastvim.kernels.reference import MixerWeights, ScanLayout
from fastvim.kernels.shapes import check_mixer, check_scan


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
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective scan with the signature and layouts of mamba_ssm's `selective_scan_fn`.

    `u`, `delta`, `z` are (B, D, L); A (D, N) real; B and C are (D, N), (B, N, L) or (B, G, N, L);
    D and `delta_bias` (D,). Returns y (B, D, L), and the last state (B, D, N) if asked.
    Raises ValueError for shapes and devices that do not fit. Source: arXiv 2312.00752, equation 2.
    """
    check_scan(u, delta, A, B, C, D, z, delta_bias)
    backend = backends.choose(u.device.type, u.dtype)
    y, state = _selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, backend)
    return (y, state) if return_last_state else y


def _implementation(backend: str) -> ModuleType:
    """The module that computes; imported when first needed, because Triton's needs Triton."""
    return importlib.import_module(f"fastvim.kernels.{backend}")


def no_autocast(tensor: Tensor) -> contextlib.AbstractContextManager:
    """The operators choose their own precision: autocast must not reach the products inside."""
    kind = tensor.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


@operator("fastvim::selective_scan")
def _selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    with no_autocast(u):
        return _implementation(backend).selective_scan(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus
        )


@_selective_scan.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, backend):
    state_dtype = torch.promote_types(u.dtype, torch.float32)
    state = u.new_empty(u.shape[0], u.shape[1], A.shape[1], dtype=state_dtype)
    return u.new_empty(u.shape), state


@operator(
    "fastvim::selective_scan_backward",
    # Spelt out: before torch 2.7 a list in the signature is not understood.
    schema="(Tensor grad_y, Tensor grad_state, Tensor u, Tensor delta, Tensor A, Tensor B, "
    "Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, bool delta_softplus, str backend) "
    "-> Tensor[]",
)
def _selective_scan_backward(
    grad_y: Tensor,
    grad_state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    backend: str,
) -> list[Tensor]:
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    with no_autocast(u):
        return _implementation(backend).selective_scan_backward(
            grad_y, grad_state, inputs, delta_softplus
        )


@_selective_scan_backward.register_fake
def _(grad_y, grad_state, u, delta, A, B, C, D, z, delta_bias, delta_softplus, backend):
    return like(u, delta, A, B, C, D, z, delta_bias)


def like(*tensors: Tensor | None) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in tensors if tensor is not None]


def scatter_back(present: Iterable[bool], tensors: Iterable[Tensor]) -> list[Tensor | None]:
    """The tensors with None put back where an optional one is not present.

    Of an iterator as many are taken as are present.
    """
    remaining = iter(tensors)
    return [next(remaining) if here else None for here in present]


def _save_scan(ctx, inputs, output) -> None:
    *tensors, ctx.delta_softplus, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_scan(ctx, grad_y, grad_state):
    tensors = ctx.saved_tensors
    grads = _selective_scan_backward(grad_y, grad_state, *tensors, ctx.delta_softplus, ctx.backend)
    present = [tensor is not None for tensor in tensors]
    return (*scatter_back(present, grads), None, None)


_selective_scan.register_autograd(_differentiate_scan, setup_context=_save_scan)


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
    """Everything of a mixer between `in_proj` and `out_proj`; see `reference.pooled_mixer`.

    xz (B, L, 2 D) to (B, L, D), and the pooled and scanned steps (2, B, S, D), which carry no
    gradient. `pooling` is mean, max or sum, `merge` mean or sum.
    Raises ValueError for another choice, and for shapes and devices that do not fit.
    """
    if pooling not in ("mean", "max", "sum"):
        raise ValueError(f"pooling is {pooling!r}; it must be mean, max or sum")
    if merge not in ("mean", "sum"):
        raise ValueError(f"merge is {merge!r}; it must be mean or sum")
    if xz.dim() != 3 or xz.shape[2] != 2 * weights.A.shape[1]:
        raise ValueError(
            f"xz has shape {tuple(xz.shape)}; it must be (B, L, {2 * weights.A.shape[1]})"
        )
    check_mixer(xz, weights, layout)
    backend = backends.choose(xz.device.type, xz.dtype)
    return _pooled_mixer(
        xz, *weights, *layout, pooling, float(scale), merge, gate, float(eps), backend
    )


@operator(
    "fastvim::pooled_mixer",
    schema=f"(Tensor xz, {MIXER}, str backend) -> (Tensor, Tensor, Tensor)",
)
def _pooled_mixer(xz: Tensor, *arguments) -> tuple[Tensor, Tensor, Tensor]:
    weights, layout, settings = take_apart(arguments)
    with no_autocast(xz):
        return _implementation(arguments[-1]).pooled_mixer(xz, weights, layout, **settings)


@_pooled_mixer.register_fake
def _(xz, *arguments):
    weights, layout, _ = take_apart(arguments)
    batch, length, width = xz.shape
    n_steps = length if layout.steps is None else layout.n_steps
    dtype = torch.promote_types(xz.dtype, torch.float32)
    steps = (2, batch, n_steps, weights.A.shape[1])
    out = xz.new_empty(batch, length, width // 2)
    return out, xz.new_empty(steps, dtype=dtype), xz.new_empty(steps, dtype=dtype)


@operator(
    "fastvim::pooled_mixer_backward",
    schema="(Tensor grad_out, Tensor pooled, Tensor scanned, Tensor xz, "
    f"{MIXER}, str backend) -> Tensor[]",
)
def _pooled_mixer_backward(
    grad_out: Tensor, pooled: Tensor, scanned: Tensor, xz: Tensor, *arguments
) -> list[Tensor]:
    weights, layout, settings = take_apart(arguments)
    with no_autocast(xz):
        return _implementation(arguments[-1]).pooled_mixer_backward(
            grad_out, xz, weights, layout, pooled, scanned, **settings
        )


@_pooled_mixer_backward.register_fake
def _(grad_out, pooled, scanned, *arguments):
    return like(*arguments[: 1 + WEIGHTS])


def _save_mixer(ctx, inputs, output) -> None:
    tensors, ctx.settings = inputs[: 1 + WEIGHTS + TABLES], inputs[1 + WEIGHTS + TABLES :]
    _, pooled, scanned = output
    ctx.mark_non_differentiable(pooled, scanned)
    ctx.set_materialize_grads(False)  # theirs would be zeros, filled and unused
    ctx.save_for_backward(pooled, scanned, *tensors)


def _differentiate_mixer(ctx, grad_out, _grad_pooled, _grad_scanned):
    pooled, scanned, *tensors = ctx.saved_tensors
    if grad_out is None:
        return (None,) * (len(tensors) + len(ctx.settings))
    grads = _pooled_mixer_backward(grad_out, pooled, scanned, *tensors, *ctx.settings)
    present = [tensor is not None for tensor in tensors[: 1 + WEIGHTS]]
    constants = TABLES + len(ctx.settings)
    return (*scatter_back(present, grads), *(None,) * constants)


_pooled_mixer.register_autograd(_differentiate_mixer, setup_context=_save_mixer)
