"""Extremes and norms of many tensors against PyTorch's, one tensor at a time."""

import math

import pytest
import torch
from operator_cases import needs_cpu_backend

from fastvim.kernels import use_backend
from fastvim.kernels.magnitudes import magnitudes

# Around a vector of any instruction set, and around a piece of the threads' work.
SIZES = (1, 3, 15, 16, 17, 64, 1000, 2**14 - 1, 2**14, 2**14 + 1, 3 * 2**14 + 5)


def draw(dtype):
    generator = torch.Generator().manual_seed(0)
    # All above zero, around it, and below: padding with zeros would show.
    return [
        (torch.randn(size, generator=generator, dtype=torch.float64).abs() + shift).to(dtype)
        for size in SIZES
        for shift in (1, -1, -9)
    ]


def expected(tensors):
    rows = [[t.min(), t.max(), t.double().square().sum().sqrt()] for t in tensors]
    return torch.tensor([[value.item() for value in row] for row in rows])


@needs_cpu_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_instruction_set_agrees(instruction_set, dtype):
    tensors = draw(dtype)
    found, right = magnitudes(tensors), expected(tensors)
    assert torch.equal(found[:, :2], right[:, :2])
    assert found[:, 2] == pytest.approx(right[:, 2], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pytorchs_operations_do_the_same(dtype):
    tensors = draw(dtype)
    with use_backend("reference"):
        found = magnitudes(tensors)
    right = expected(tensors)
    assert torch.equal(found[:, :2], right[:, :2])
    assert found[:, 2] == pytest.approx(right[:, 2], rel=1e-4)


@needs_cpu_backend
def test_threads_change_no_bit_and_strides_no_value():
    tensors, before = draw(torch.float32), torch.get_num_threads()
    try:
        found = [(torch.set_num_threads(n), magnitudes(tensors))[1] for n in (1, 2, 3)]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    matrix = torch.arange(12.0).view(3, 4)
    assert magnitudes([matrix[:, 1]]) == pytest.approx(expected([matrix[:, 1]]))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_what_is_not_finite_is_not_lost(backend):
    size = 2 * 2**14 + 7
    if backend == "cpu" and needs_cpu_backend.args[0]:
        pytest.skip(needs_cpu_backend.kwargs["reason"])
    for place in (0, 20, 2**14 + 3, size - 1):
        broken, infinite = torch.ones(size), torch.ones(size)
        broken[place], infinite[place] = torch.nan, -torch.inf
        with use_backend(backend):
            found = magnitudes([torch.ones(5), broken, infinite])
        assert found[1].isnan().all()
        assert found[[0, 2]].flatten().tolist() == pytest.approx(
            [1, 1, math.sqrt(5), -math.inf, 1, math.inf]
        )
