"""Residual blocks in a row, as one node of autograd: against their parts, and against operators."""

import pytest
import torch
from operator_cases import layout, needs_cpu_backend, relative_error
from test_block import DEFAULTS, TOLERANCE, block_inputs, in_parts
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from fastvim.kernels import BlockArguments, cpu_products, residual_blocks

pytestmark = needs_cpu_backend
BATCH, ROWS, COLUMNS, WIDTH = 3, 5, 6, 10
KINDS = ("rows", "columns", "unpooled", "missing tokens")


@pytest.fixture(params=TOLERANCE, ids=str)
def dtype(request):
    return request.param


def row(dtype=torch.float64) -> tuple[torch.Tensor, list[BlockArguments]]:
    """Tokens, and blocks that differ in width, layout, settings and what they lack."""
    blocks = []
    for place, kind in enumerate(KINDS):
        x, *projections, weights = block_inputs(WIDTH, BATCH, ROWS * COLUMNS, 8 + place, dtype)
        if place == 1:
            weights = weights._replace(conv_bias=None, norm_weight=None, norm_bias=None)
        settings = DEFAULTS | {"pooling": ("mean", "max", "mean", "sum")[place]}
        weights = weights._replace(A=torch.log(-weights.A))
        scan_layout = layout(kind, ROWS, COLUMNS, BATCH)
        blocks.append(BlockArguments(*projections, weights, scan_layout, settings, 1e-3))
    return x, blocks


def learning(x, blocks, frozen: int = 0):
    """The same as leaves, but for the first `frozen` blocks, and all leaves."""
    leaves, found = [x.clone().requires_grad_(not frozen)], []
    for place, block in enumerate(blocks):
        differentiated = len(block.tensors()) - 3
        tensors = list(block.tensors())
        for i in range(differentiated):
            if tensors[i] is not None:
                tensors[i] = tensors[i].clone().requires_grad_(place >= frozen)
                leaves.append(tensors[i])
        found.append(block.with_tensors(tensors))
    return leaves[0], found, [leaf for leaf in leaves if leaf.requires_grad]


def blocks_in_parts(x, blocks):
    for block in blocks:
        weights = block.weights._replace(A=-torch.exp(block.weights.A))
        x = in_parts(x, *block[:3], weights, block.layout, **block.settings)
    return x


def results(run, frozen: int = 0, dtype=torch.float64) -> list[torch.Tensor]:
    """The output, and the gradients of a weighted sum of it."""
    x, blocks, leaves = learning(*row(dtype), frozen)
    y = run(x, blocks)
    grad = torch.linspace(-1, 1, y.numel(), dtype=dtype).reshape(y.shape)
    given = grad.clone()
    found = [y.detach(), *torch.autograd.grad(y, leaves, given)]
    assert torch.equal(grad, given)
    return found


def test_as_their_parts(dtype):
    pairs = zip(
        results(residual_blocks, dtype=dtype), results(blocks_in_parts, dtype=dtype), strict=True
    )
    assert max(relative_error(*pair) for pair in pairs) < TOLERANCE[dtype]


def test_nothing_of_the_callers_is_written_to():
    x, blocks = row()
    tensors = [t for block in blocks for t in block.tensors() if t is not None]
    before = [t.clone() for t in (x, *tensors)]
    with torch.no_grad():
        y = residual_blocks(x, blocks)
    assert all(map(torch.equal, before, (x, *tensors)))
    assert torch.equal(y, results(residual_blocks)[0])


def test_operators_give_the_same_bits():
    """Where a mode watches, each block is an operator that PyTorch knows."""
    direct = results(residual_blocks)
    with FlopCounterMode(display=False) as counter:
        watched = results(residual_blocks)
    assert all(map(torch.equal, direct, watched))
    assert counter.get_total_flops() > 0


def test_another_default_device_changes_nothing():
    x, blocks = row()
    cpu_products.release_workspace()
    with torch.device("meta"), torch.no_grad():
        y = residual_blocks(x, blocks)
    assert torch.equal(y, results(residual_blocks)[0])


def test_a_profiler_sees_blocks():
    names = []
    for x, blocks in (row(), learning(*row())[:2]):
        with torch.profiler.profile() as profiler:
            y = residual_blocks(x, blocks)
            if y.requires_grad:
                y.sum().backward()
        names += [event.name for event in profiler.events()]
    assert {"fastvim::residual_blocks", "_ResidualBlocks", "_ResidualBlocksBackward"} <= set(names)


def test_blocks_before_the_first_that_learns_keep_nothing():
    whole, last = results(residual_blocks), results(residual_blocks, frozen=3)
    assert all(map(torch.equal, last[1:], whole[-len(last) + 1 :]))

    def kept(frozen):
        y = residual_blocks(*learning(*row(), frozen=frozen)[:2])
        return sum(t.numel() for t in y.grad_fn.saved_tensors if t is not None)

    assert kept(frozen=3) < 0.4 * kept(frozen=0)


def test_a_graph_that_is_kept_gives_the_same_again():
    x, blocks, leaves = learning(*row())
    y = residual_blocks(x, blocks).sum()
    first, again = (torch.autograd.grad(y, leaves, retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, again))


def test_recomputed_by_a_checkpoint():
    def run(x, blocks):
        return checkpoint(residual_blocks, x, blocks, use_reentrant=False)

    assert all(map(torch.equal, results(run), results(residual_blocks)))


def test_weights_changed_before_the_backward_are_refused():
    x, blocks, leaves = learning(*row())
    y = residual_blocks(x, blocks).sum()
    with torch.no_grad():
        blocks[1].in_proj.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y, leaves)


def test_second_derivatives_are_refused():
    x, blocks, leaves = learning(*row())
    gradient, *_ = torch.autograd.grad(residual_blocks(x, blocks).sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        torch.autograd.grad(gradient.sum(), leaves)


@pytest.mark.parametrize("learns", [False, True])
def test_observers_see_the_same_of_every_block(learns):
    def observed():
        seen = []

        def observe(place, kept, output):
            seen.append((torch.tensor(place), *(t.clone() for t in kept), output.detach().clone()))

        x, blocks = learning(*row())[:2] if learns else row()
        return residual_blocks(x, blocks, observe).detach(), seen

    y, direct = observed()
    with FlopCounterMode(display=False):
        same, operators = observed()
    assert len(direct) == len(KINDS) and torch.equal(y, same)
    assert torch.equal(direct[-1][-1], y)
    for found, expected in zip(direct, operators, strict=True):
        assert all(map(torch.equal, found, expected))
