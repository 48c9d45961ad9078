"""The real work of the operators, for PyTorch's and fvcore's FLOP counters.

Counted by the definition, whatever the backend recomputes. fvcore counts a multiply-add as one,
PyTorch as two; every other operation (an exponential too) counts as one in both.
Letters are those of `reference.py`.
"""

import logging
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch

from fastvim.kernels import block, operator  # noqa: F401  (they define the operators)
from fastvim.kernels.block_schema import as_blocks
from fastvim.kernels.mixer_schema import take_apart

# PyTorch's counter warns at import where there is no triton, which concerns no operator here.
_logger = logging.getLogger("torch.utils.flop_counter")
_logger.addFilter(_mute := lambda record: "triton" not in record.getMessage())
from torch.utils.flop_counter import register_flop_formula  # noqa: E402

_logger.removeFilter(_mute)


class Work(NamedTuple):
    multiply_adds: int
    others: int

    def __add__(self, more: "Work") -> "Work":
        return Work(self.multiply_adds + more.multiply_adds, self.others + more.others)

    def times(self, count: int) -> "Work":
        return Work(self.multiply_adds * count, self.others * count)

    @property
    def fvcore(self) -> int:
        return self.multiply_adds + self.others

    @property
    def torch(self) -> int:
        return 2 * self.multiply_adds + self.others


# Of a scan's step, channel and state: delta A, its exponential and B times the input; multiply-adds
# for the state and for the output.
SCAN_STEP = Work(2, 3)


def scan_work(
    elements: int, states: int, skip: bool, gate: bool, bias: bool, softplus: bool
) -> Work:
    """A selective scan with `elements` = B D L.

    Per element and state `SCAN_STEP`. Per element: delta u, and what the options add (SiLU(z) is
    two).
    """
    per_element = SCAN_STEP.times(states) + Work(int(skip), 1 + 2 * gate + bias + softplus)
    return per_element.times(elements)


def scan_backward_work(
    elements: int, states: int, skip: bool, gate: bool, bias: bool, softplus: bool
) -> Work:
    """Its backward: states once more, then per element and state two products and six sums."""
    per_element = Work(6, 2).times(states) + Work(2 * skip + 2, 4 * gate + bias + 2 * softplus)
    forward = scan_work(elements, states, skip, gate, bias, softplus)
    return forward + per_element.times(elements)


def _mixer_sizes(xz: Any, conv_weight: Any, dt_proj: Any, A: Any, n_steps: int | None):
    """B L D, B S D, K, R, N of a mixer."""
    batch, length, width = xz
    channels = width // 2
    steps = length if n_steps is None else n_steps
    return (
        batch * length * channels,
        batch * steps * channels,
        conv_weight[2],
        dt_proj[2],
        A[2],
    )


def mixer_work(
    tokens: int,
    steps: int,
    width: int,
    rank: int,
    states: int,
    pools: bool,
    norm: bool,
    gate: bool,
    mean: bool,
) -> Work:
    """A mixer between its projections, with `tokens` = B L D and `steps` = B S D.

    Both directions: convolution (K multiply-adds), SiLU, pooling (an addition), skip (a
    multiply-add), the addition of the scanned steps. Then their mean, the norm (5, as fvcore counts
    a norm) and the gate (2). The steps: both projections and the scan.
    """
    per_token = Work(2 * (width + 1), 2 + 2 * pools + 2 + mean + 5 * norm + 2 * gate)
    projections = Work(2 * (2 * rank + 2 * states), 0)
    scans = scan_work(steps, states, skip=False, gate=False, bias=True, softplus=True).times(2)
    return per_token.times(tokens) + projections.times(steps) + scans


def mixer_backward_work(
    tokens: int,
    steps: int,
    width: int,
    rank: int,
    states: int,
    pools: bool,
    norm: bool,
    gate: bool,
    mean: bool,
) -> Work:
    """Its backward: convolutions and projections once more, each product's two gradients."""
    per_token = Work(2 * (3 * width + 2), 2 * 5 + 2 * pools + 2 + mean + 10 * norm + 6 * gate)
    projections = Work(3 * 2 * (2 * rank + 2 * states), 0)
    scans = scan_backward_work(steps, states, False, False, True, True).times(2)
    return per_token.times(tokens) + projections.times(steps) + scans


@register_flop_formula(torch.ops.fastvim.selective_scan)
def _(u, delta, A, B, C, D, z, bias, softplus, *_, out_shape=None, **__) -> int:
    options = (D is not None, z is not None, bias is not None, bool(softplus))
    return scan_work(prod(u), A[1], *options).torch


@register_flop_formula(torch.ops.fastvim.selective_scan_backward)
def _(grad_y, grad_state, u, delta, A, B, C, D, z, bias, softplus, *_, out_shape=None, **__) -> int:
    options = (D is not None, z is not None, bias is not None, bool(softplus))
    return scan_backward_work(prod(u), A[1], *options).torch


def _mixer_arguments(xz: Any, arguments: Sequence) -> tuple:
    weights, layout, settings = take_apart(arguments)
    pools = layout.steps is not None
    sizes = _mixer_sizes(
        xz, weights.conv_weight, weights.dt_proj, weights.A, layout.n_steps if pools else None
    )
    norm, mean = weights.norm_weight is not None, settings["merge"] == "mean"
    return (*sizes, pools, norm, bool(settings["gate"]), mean)


@register_flop_formula(torch.ops.fastvim.pooled_mixer)
def _(xz, *arguments, out_shape=None, **__) -> int:
    return mixer_work(*_mixer_arguments(xz, arguments)).torch


@register_flop_formula(torch.ops.fastvim.pooled_mixer_backward)
def _(grad_out, pooled, scanned, xz, *arguments, out_shape=None, **__) -> int:
    return mixer_backward_work(*_mixer_arguments(xz, arguments)).torch


@register_flop_formula(torch.ops.fastvim.residual_blocks)
def _(x, *arguments, out_shape=None, **__) -> int:
    return _work_of_blocks(x, as_blocks(*arguments[:-1]), mixer_work, 2)


@register_flop_formula(torch.ops.fastvim.residual_blocks_backward)
def _(grad_y, ran, *arguments, out_shape=None, **__) -> int:
    return _work_of_blocks(grad_y, as_blocks(*arguments), mixer_backward_work, 4)


def _work_of_blocks(x: Any, blocks: list, work: Callable, of_projections: int) -> int:
    """Of the blocks' shapes; `of_projections` for each of a projection's weights and tokens."""
    total = 0
    for one in blocks:
        sizes = (*one.weights, *one.layout, *one.settings.values())
        mixer = work(*_mixer_arguments((*x[:2], one.in_proj[0]), sizes))
        projections = prod(x[:2]) * (prod(one.in_proj) + prod(one.out_proj))
        total += mixer.torch + of_projections * projections
    return total


def _plain(value: Any) -> Any:
    """A traced argument as its shape if it is a tensor, else as the constant that it is."""
    if isinstance(value.type(), torch._C.TensorType):
        return value.type().sizes()
    return value.toIValue()


def fvcore_handles() -> dict[str, Callable[[list, list], int]]:
    """Handles by operator name for `fvcore.nn.FlopCountAnalysis.set_op_handle(**handles)`.

    Of the operators here, and of PyTorch's attention, whose products fvcore leaves out.
    """

    def scan(inputs: list, outputs: list) -> int:
        u, _, A, _, _, D, z, bias, softplus, *_ = map(_plain, inputs)
        options = (D is not None, z is not None, bias is not None, bool(softplus))
        return scan_work(prod(u), A[1], *options).fvcore

    def mixer(inputs: list, outputs: list) -> int:
        xz, *arguments = map(_plain, inputs)
        return mixer_work(*_mixer_arguments(xz, arguments)).fvcore

    def attention(inputs: list, outputs: list) -> int:
        query, key, value = (_plain(tensor) for tensor in inputs[:3])
        return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])

    return {
        "fastvim::selective_scan": scan,
        "fastvim::pooled_mixer": mixer,
        "aten::scaled_dot_product_attention": attention,
    }
