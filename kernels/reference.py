"""The plain definition of the operators in PyTorch: any device and dtype, the oracle of the tests.

Axes: B batch, L tokens, S steps of a scan, D channels (d_inner), N state size (d_state),
G groups of channels that share B and C, K width of the convolution, R rank of delta.
Half-precision inputs are computed in float32, and the result is rounded back.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class MixerWeights(NamedTuple):
    """Weights of a mixer between `in_proj` and `out_proj`; the leading 2 is (forward, reverse)."""

    conv_weight: Tensor  # (2, D, K)
    conv_bias: Tensor | None  # (2, D)
    x_proj: Tensor  # (2, R + 2 N, D)
    dt_proj: Tensor  # (2, D, R)
    dt_bias: Tensor  # (2, D), before the softplus
    A: Tensor  # (2, D, N), negative
    D: Tensor  # (2, D)
    norm_weight: Tensor | None  # (D,); None leaves the post-SSM norm out
    norm_bias: Tensor | None  # (D,)


class ScanLayout(NamedTuple):
    """Where the tokens lie and which step each belongs to.

    `order[t]` is the place in memory of the token that the scan visits at time t; `steps[t]` the
    pooled step that this token belongs to, None when every token is its own step.
    `reverse_steps[t]` is the same for the reverse direction, None when equal to `steps`. All are
    int32, (L,) for a full grid or (B, L) where each image keeps other tokens.
    A scan never moves memory: any axis order, missing tokens, or a pooled axis that is not
    innermost are other numbers in these tables.
    """

    order: Tensor | None = None
    steps: Tensor | None = None
    reverse_steps: Tensor | None = None
    n_steps: int = 0


def _compute_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _per_token(matrix: Tensor, batch: int, channels: int, length: int) -> Tensor:
    """B or C of `selective_scan` as (B, D, N, L), from (D, N), (B, N, L) or (B, G, N, L)."""
    if matrix.dim() == 2:
        return matrix[None, :, :, None].expand(batch, -1, -1, length)
    if matrix.dim() == 3:
        matrix = matrix[:, None]
    return matrix.repeat_interleave(channels // matrix.shape[1], dim=1)


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
    """Selective scan, step by step (Gu and Dao 2023, arXiv 2312.00752, equations 2 and 4).

    With h_0 = 0: h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t, y_t = C_t h_t + D u_t, times
    SiLU(z). `u`, `delta`, `z` are (B, D, L); A (D, N); B and C (D, N), (B, N, L) or
    (B, G, N, L); D and delta_bias (D,). Returns y (B, D, L) in u's dtype and the last state
    (B, D, N).
    """
    dtype = _compute_dtype(u)
    batch, channels, length = u.shape
    x, step = u.to(dtype), delta.to(dtype)
    if delta_bias is not None:
        step = step + delta_bias.to(dtype)[:, None]
    if delta_softplus:
        # torch's default is linear above 20, which is 2e-9 off: too much for float64.
        step = F.softplus(step, threshold=40.0)
    decay = A.to(dtype)
    inputs = _per_token(B.to(dtype), batch, channels, length)
    outputs = _per_token(C.to(dtype), batch, channels, length)

    state = x.new_zeros(batch, channels, A.shape[1])
    scanned = []
    for t in range(length):
        dt = step[:, :, t, None]
        state = torch.exp(dt * decay) * state + dt * inputs[..., t] * x[:, :, t, None]
        scanned.append((state * outputs[..., t]).sum(-1))
    y = torch.stack(scanned, dim=-1) if scanned else torch.zeros_like(x)
    if D is not None:
        y = y + x * D.to(dtype)[:, None]
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(u.dtype), state


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool) -> Tensor:
    """SiLU of the causal depthwise convolution of x (B, L, D) with weight (D, K).

    `reverse` convolves the flipped sequence and flips back, so it looks at later tokens.
    """
    width, length = weight.shape[1], x.shape[1]
    padded = F.pad(x, (0, 0, 0, width - 1) if reverse else (0, 0, width - 1, 0))
    taps = weight.flip(1) if reverse else weight
    out = sum(padded[:, k : k + length] * taps[:, k] for k in range(width))
    return F.silu(out if bias is None else out + bias)


def pool(u: Tensor, steps: Tensor | None, n_steps: int, pooling: str, scale: float) -> Tensor:
    """Tokens (B, L, D) to pooled steps (B, S, D): the mean, sum or maximum of each step's tokens.

    `steps` (L,) or (B, L) names each token's step; a step without tokens is 0. Tokens that tie
    for a maximum share its gradient. Everything is multiplied by `scale`.
    """
    if steps is None:
        return u * scale
    index = steps.long().expand(u.shape[0], -1)[..., None].expand_as(u)
    empty = u.new_zeros(u.shape[0], n_steps, u.shape[2])
    if pooling == "max":
        return empty.scatter_reduce(1, index, u, "amax", include_self=False) * scale
    total = empty.scatter_add(1, index, u)
    if pooling == "mean":
        counts = torch.zeros_like(empty).scatter_add(1, index, torch.ones_like(u))
        total = total / counts.clamp(min=1)
    return total * scale


def scan_steps(pooled: Tensor, weights: MixerWeights, direction: int) -> Tensor:
    """Project pooled steps (B, S, D) to delta, B and C and scan them; returns (B, S, D).

    Direction 1 runs from the last step to the first. No skip inside.
    """
    states = weights.A.shape[2]
    rank = weights.dt_proj.shape[2]
    projected = F.linear(pooled, weights.x_proj[direction])
    dt, B, C = projected.split([rank, states, states], dim=-1)
    delta = F.linear(dt, weights.dt_proj[direction])
    sequence = [pooled, delta, B, C]
    if direction == 1:
        sequence = [tensor.flip(1) for tensor in sequence]
    u, delta, B, C = (tensor.transpose(1, 2) for tensor in sequence)
    y, _ = selective_scan(
        u,
        delta,
        weights.A[direction],
        B,
        C,
        delta_bias=weights.dt_bias[direction],
        delta_softplus=True,
    )
    y = y.transpose(1, 2)
    return y.flip(1) if direction == 1 else y


def selective_scan_backward(
    grad_y: Tensor, grad_state: Tensor, inputs: tuple[Tensor | None, ...], delta_softplus: bool
) -> list[Tensor]:
    """Gradients of `selective_scan` for each of its eight tensor inputs that is not None."""

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        given = iter(tensors)
        restored = [None if tensor is None else next(given) for tensor in inputs]
        return selective_scan(*restored, delta_softplus=delta_softplus)

    present = [tensor for tensor in inputs if tensor is not None]
    return vector_jacobian_product(function, present, (grad_y, grad_state))


def vector_jacobian_product(
    function: Callable[..., tuple[Tensor, ...]], inputs: list[Tensor], grads: tuple[Tensor, ...]
) -> list[Tensor]:
    """Gradients by running `function` again under autograd.

    A registered operator runs below autograd; the guard lifts that for the recomputation, and no
    other exclusion: lifting autocast's too would switch it on, in bfloat16, asked for or not.
    """
    exclude = torch._C._dispatch_tls_local_exclude_set()
    for name in ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor"):
        exclude = exclude.remove(getattr(torch._C.DispatchKey, name))
    include = torch._C._dispatch_tls_local_include_set()
    with torch._C._ForceDispatchKeyGuard(include, exclude), torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        # Without tokens, the last state is a constant.
        pairs = zip(function(*leaves), grads, strict=True)
        outputs, grads = zip(*((o, g) for o, g in pairs if o.requires_grad), strict=True)
        found = torch.autograd.grad(outputs, leaves, grads, materialize_grads=True)
    return list(found)


def pooled_mixer(
    xz: Tensor,
    weights: MixerWeights,
    layout: ScanLayout,
    pooling: str | Callable[[Tensor, Tensor | None, int], Tensor] = "mean",
    scale: float = 1.0,
    merge: str = "mean",
    gate: bool = True,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """A FastVim mixer between `in_proj` and `out_proj` (arXiv 2502.00594, section 3).

    xz (B, L, 2 D) holds x and z side by side, tokens in memory order. Each direction convolves
    x over the scan order, pools it to the layout's steps, scans the steps, gives every token the
    output of its step and adds D u. The directions are averaged (`merge="mean"`) or added
    (`"sum"`), normalised over the channels (LayerNorm, if there are norm weights) and multiplied
    by SiLU(z) (if `gate`). A `pooling` of one's own is called with u (B, L, D), the step of each
    token and the direction, and gives (B, S, D). Returns the output (B, L, D) in memory order, in
    xz's dtype, and the pooled and the scanned steps (2, B, S, D) of both directions, for the
    backward and for whoever watches a training.
    """
    dtype = _compute_dtype(xz)
    weights = MixerWeights(*(w if w is None else w.to(dtype) for w in weights))
    x, z = xz.to(dtype).chunk(2, dim=-1)
    if layout.order is not None:
        order = layout.order.long().expand(x.shape[0], -1)[..., None].expand_as(x)
        x = x.gather(1, order)

    merged = torch.zeros_like(x)
    both_pooled, both_scanned = [], []
    for direction in (0, 1):
        bias = None if weights.conv_bias is None else weights.conv_bias[direction]
        u = convolve(x, weights.conv_weight[direction], bias, reverse=direction == 1)
        steps = layout.steps
        if direction == 1 and layout.reverse_steps is not None:
            steps = layout.reverse_steps
        if callable(pooling):
            pooled = pooling(u, steps, direction) * scale
        else:
            pooled = pool(u, steps, layout.n_steps, pooling, scale)
        y = scan_steps(pooled, weights, direction)
        both_pooled.append(pooled)
        both_scanned.append(y)
        if steps is not None:
            y = y.gather(1, steps.long().expand(u.shape[0], -1)[..., None].expand_as(u))
        merged = merged + y + u * weights.D[direction]
    if merge == "mean":
        merged = merged / 2

    if layout.order is not None:
        merged = torch.zeros_like(merged).scatter(1, order, merged)
    if weights.norm_weight is not None:
        merged = F.layer_norm(
            merged, merged.shape[-1:], weights.norm_weight, weights.norm_bias, eps
        )
    if gate:
        merged = merged * F.silu(z)
    return merged.to(xz.dtype), torch.stack(both_pooled), torch.stack(both_scanned)


def pooled_mixer_backward(
    grad_out: Tensor,
    xz: Tensor,
    weights: MixerWeights,
    layout: ScanLayout,
    pooled: Tensor,
    scanned: Tensor,
    **settings: object,
) -> list[Tensor]:
    """Gradients of `pooled_mixer` for xz and each weight that is not None, in that order.

    `pooled` and `scanned` are what the forward returned; the definition recomputes them.
    """

    def function(xz: Tensor, *tensors: Tensor) -> tuple[Tensor]:
        given = iter(tensors)
        restored = MixerWeights(*(None if w is None else next(given) for w in weights))
        return pooled_mixer(xz, restored, layout, **settings)[:1]

    present = [xz, *(w for w in weights if w is not None)]
    return vector_jacobian_product(function, present, (grad_out,))
