"""The residual block as one operator: against its parts on the reference backend.

The peer's gradients are autograd's.
"""

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

from fastvim.kernels import BlockArguments, ScanLayout, pooled_mixer, reference, residual_blocks
from fastvim.kernels.block_schema import as_arguments

pytestmark = needs_cpu_backend
TOLERANCE = {torch.float32: 5e-5, torch.float64: 1e-12}


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


DEFAULTS = {"pooling": "mean", "scale": 1.0, "merge": "mean", "gate": True, "eps": 1e-5}


def fused(x, norm_weight, in_proj, out_proj, weights, scan_layout, **settings):
    weights = weights._replace(A=torch.log(-weights.A))
    projections = norm_weight, in_proj, out_proj
    block = BlockArguments(*projections, weights, scan_layout, DEFAULTS | settings, 1e-3)
    return residual_blocks(x, [block])


def in_parts(x, norm_weight, in_proj, out_proj, weights, scan_layout, **settings):
    xz = F.linear(F.rms_norm(x, norm_weight.shape, norm_weight, 1e-3), in_proj)
    y = reference.pooled_mixer(xz, weights, scan_layout, **DEFAULTS | settings)[0]
    return x + F.linear(y, out_proj)


def error(inputs, scan_layout, **settings) -> float:
    """The largest of the output's, without and with gradients enabled, and of each gradient's."""
    x, norm_weight, in_proj, out_proj, weights = inputs
    tensors = [x, norm_weight, in_proj, out_proj, *(w for w in weights if w is not None)]
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]

    def with_gradients(block):
        given = iter(leaves)
        four = [next(given) for _ in range(4)]
        weight_leaves = type(weights)(*(None if w is None else next(given) for w in weights))
        y = block(*four, weight_leaves, scan_layout, **settings)
        grad = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
        return [y.detach(), *torch.autograd.grad(y, leaves, grad)]

    with torch.no_grad():
        without = fused(*inputs, scan_layout, **settings)
    found, expected = [without, *with_gradients(fused)], with_gradients(in_parts)
    pairs = zip(found, [expected[0], *expected], strict=True)
    return max(relative_error(value, peer) for value, peer in pairs)


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_random_shapes_and_options(kind, dtype):
    draw = random.Random(kind)
    for _ in range(7):
        grid, shape, settings = random_mixer_shape(draw)
        inputs = block_inputs(draw.choice([3, 6, 33, 64]), dtype=dtype, **shape)
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
            with torch.no_grad():
                results.append(fused(*inputs, layout("rows", 9, 7, 3)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_gradients_with_images_left_over(threads):
    """Whole images a thread, then those left over, which threads share; or all of them shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for kind in ("rows", "missing tokens"):
            inputs = block_inputs(20, 3, 63, 37, torch.float64)
            assert error(inputs, layout(kind, 9, 7, 3)) < TOLERANCE[torch.float64]
    finally:
        torch.set_num_threads(before)


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
    x, *projections, weights = block_inputs(8, 2, 12, 5, torch.float64)
    block = BlockArguments(*projections, weights, layout("rows", 3, 4, 2), DEFAULTS, 1e-3)
    learning = block._replace(out_proj=projections[2].clone().requires_grad_())
    # Blocks that keep nothing, all of them, and the last alone.
    for blocks, first in (([block] * 2, 2), ([learning] * 2, 0), ([block, learning], 1)):
        arguments = (x, *as_arguments(blocks), first)
        torch.library.opcheck(torch.ops.fastvim.residual_blocks, arguments)

    def count(run) -> int:
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    def parts():
        xz = F.linear(x, projections[1])
        y, *_ = pooled_mixer(xz, weights, block.layout, **DEFAULTS)
        F.linear(y, projections[2]).sum().backward()

    for tensor in (x, *projections):
        tensor.requires_grad_()
    assert count(lambda: residual_blocks(x, [block]).sum().backward()) == count(parts)
    assert count(lambda: residual_blocks(x, [block] * 3).sum().backward()) == 3 * count(parts)
