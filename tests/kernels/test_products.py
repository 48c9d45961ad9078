"""The cpu backend's matrix products against PyTorch's."""

import pytest
import torch
from operator_cases import needs_cpu_backend, relative_error

from fastvim.kernels.cpu_products import product, rows_product

pytestmark = needs_cpu_backend
TOLERANCE = {torch.float32: 2e-6, torch.float64: 4e-15}
# Rows, inner size, outputs: less than a tile, whole tiles, and what is left of one; several runs
# of rows.
SIZES = [(1, 1, 1), (5, 3, 17), (14, 8, 32), (29, 40, 33), (600, 12, 70)]


def draw(*shape, dtype):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_as_pytorch(size, dtype, instruction_set):
    rows, inner, outputs = size
    # Columns of larger matrices.
    a = draw(rows, inner + 3, dtype=dtype)[:, 2 : 2 + inner]
    b = draw(rows, outputs + 2, dtype=dtype)[:, 1 : 1 + outputs]
    for weight in (draw(outputs, inner, dtype=dtype), draw(inner, outputs, dtype=dtype).t()):
        expected = a @ weight.t()
        assert relative_error(product(a, weight), expected) < TOLERANCE[dtype]
        around = torch.zeros(rows, outputs + 2, dtype=dtype)
        around[:, 1:-1] = b
        product(a, weight, out=around[:, 1:-1], adds=True)
        assert relative_error(around[:, 1:-1], b + expected) < TOLERANCE[dtype]
        assert not around[:, [0, -1]].any()
    assert relative_error(rows_product(a, b), a.t() @ b) < TOLERANCE[dtype]


def test_threads_give_the_same_bits():
    a, weight = draw(600, 40, dtype=torch.float32), draw(33, 40, dtype=torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 4):
            torch.set_num_threads(count)
            y = product(a, weight)
            results.append(torch.cat([y.flatten(), rows_product(a, y).flatten()]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


def test_no_rows():
    a, b = draw(0, 4, dtype=torch.float64), draw(0, 7, dtype=torch.float64)
    assert product(a, draw(7, 4, dtype=torch.float64)).shape == (0, 7)
    assert torch.equal(rows_product(a, b), torch.zeros(4, 7, dtype=torch.float64))
