"""The residual block as one operator: against its parts on the reference backend."""

import random

import pytest
import torch
import torch.nn.functional as F
from operator_cases import (
    LAYOUTS,
    layout,
    mixer_inputs,
    needs_cpu_backend,
    random_mixer_shape,
    relative_error,
)
from torch.utils.flop_counter import FlopCounterMode

from fastvim.kernels import ScanLayout, reference, residual_block

pytestmark = needs_cpu_backend
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def block_inputs(d_model: int, batch: int, length: int, channels: int, dtype, **shape):
    """x, norm weight, in_proj, out_proj, and the mixer's weights."""
    _, weights = mixer_inputs(batch, length, channels, dtype=dtype, **shape)
    generator = torch.Generator().manual_seed(d_model + length)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    projections = (
        draw(2 * channels, d_model) * d_model**-0.5,
        draw(d_model, channels) * channels**-0.5,
    )
    return draw(batch, length, d_model), draw(d_model), *projections, weights


def fused(x, norm_weight, in_proj, out_proj, weights, *rest, **settings):
    weights = weights._replace(A=torch.log(-weights.A))
    with torch.no_grad():
        return residual_block(x, norm_weight, 1e-3, in_proj, out_proj, weights, *rest, **settings)


def in_parts(x, norm_weight, in_proj, out_proj, weights, *rest, **settings):
    xz = F.linear(F.rms_norm(x, norm_weight.shape, norm_weight, 1e-3), in_proj)
    return x + F.linear(reference.pooled_mixer(xz, weights, *rest, **settings)[0], out_proj)


def error(inputs, scan_layout, **settings) -> float:
    settings = {"pooling": "mean", "scale": 1.0, "merge": "mean", "gate": True} | settings
    found = fused(*inputs, scan_layout, eps=1e-5, **settings)
    return relative_error(found, in_parts(*inputs, scan_layout, eps=1e-5, **settings))


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_random_shapes_and_options(kind, dtype):
    draw = random.Random(kind)
    for _ in range(7):
        grid, shape, settings = random_mixer_shape(draw)
        inputs = block_inputs(draw.choice([1, 6, 33, 64]), dtype=dtype, **shape)
        scan_layout = layout(kind, *grid, shape["batch"])
        assert error(inputs, scan_layout, **settings) < TOLERANCE[dtype], (grid, shape, settings)


def test_every_instruction_set(instruction_set):
    for dtype, tolerance in TOLERANCE.items():
        inputs = block_inputs(20, 2, 30, 37, dtype)
        assert error(inputs, layout("columns", 5, 6, 2)) < tolerance


def test_threads_give_the_same_bits():
    """Images one a thread, and images shared by threads, which cut the rows elsewhere."""
    inputs = block_inputs(40, 3, 63, 48, torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 4):
            torch.set_num_threads(count)
            results.append(fused(*inputs, layout("rows", 9, 7, 3), "mean", 1.0, "mean", True, 1e-5))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


def test_empty_batch_and_strides():
    inputs = block_inputs(8, 0, 12, 5, torch.float64)
    assert error(inputs, layout("rows", 3, 4, 0)) == 0
    x, *others = block_inputs(8, 3, 12, 5, torch.float64)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    others[1] = others[1].t().contiguous().t()
    assert error((strided, *others), layout("rows", 3, 4, 3)) < 1e-12


def test_tables_that_do_not_fit():
    inputs = block_inputs(8, 2, 12, 5, torch.float64)
    tokens = torch.arange(12, dtype=torch.int32)
    with pytest.raises(ValueError, match="permutation"):
        error(inputs, ScanLayout(tokens.clamp(max=10), tokens // 4, None, 3))


def test_opcheck_and_flops():
    x, norm_weight, in_proj, out_proj, weights = block_inputs(8, 2, 12, 5, torch.float64)
    settings = ("mean", 1.0, "mean", True, 1e-5)
    arguments = (*weights, *layout("rows", 3, 4, 2), *settings)
    operator = torch.ops.fastvim.residual_block
    torch.library.opcheck(operator, (x, norm_weight, 1e-3, in_proj, out_proj, *arguments))
    with FlopCounterMode(display=False) as counter:
        torch.ops.fastvim.pooled_mixer(F.linear(x, in_proj), *arguments, "cpu")
        F.linear(x[..., :5], out_proj)
    parts = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        operator(x, norm_weight, 1e-3, in_proj, out_proj, *arguments)
    assert counter.get_total_flops() == parts
