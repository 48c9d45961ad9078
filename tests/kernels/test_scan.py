"""The scan: the reference against finite differences, the cpu backend against the reference."""

import itertools
import random

import pytest
import torch
from operator_cases import (
    needs_cpu_backend,
    random_scan_shape,
    relative_error,
    scan_inputs,
    with_gradients,
)

from fastvim.kernels import reference, selective_scan, use_backend

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def scan_errors(inputs: dict) -> float:
    """Largest relative error of cpu against reference over outputs and all gradients."""

    def run(*tensors):
        named = dict(zip(NAMES, tensors, strict=True))
        softplus = inputs["delta_softplus"]
        return selective_scan(**named, delta_softplus=softplus, return_last_state=True)

    tensors = [inputs[name] for name in NAMES]
    expected = with_gradients("reference", run, tensors)
    found = with_gradients("cpu", run, tensors)
    return max(relative_error(f, e) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("kinds", [*itertools.product(("token", "fixed", 2), repeat=2)])
@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_cpu_backend)])
def test_gradcheck(kinds, backend):
    inputs = scan_inputs(1, 4, 3, 2, *kinds)
    tensors = [inputs[name].requires_grad_() for name in NAMES]
    with use_backend(backend):
        assert torch.autograd.gradcheck(
            lambda *t: selective_scan(*t, delta_softplus=True, return_last_state=True),
            tensors,
            fast_mode=True,
        )


def test_gradcheck_of_the_definition():
    inputs = scan_inputs(1, 2, 3, 2)
    tensors = [inputs[name].requires_grad_() for name in NAMES]
    assert torch.autograd.gradcheck(lambda *t: reference.selective_scan(*t, True), tensors)


@needs_cpu_backend
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_random_shapes(dtype):
    draw = random.Random(0)
    for _ in range(30):
        inputs = scan_inputs(**random_scan_shape(draw), dtype=dtype)
        shapes = {name: tuple(t.shape) for name, t in inputs.items() if hasattr(t, "shape")}
        assert scan_errors(inputs) < TOLERANCE[dtype], shapes


@needs_cpu_backend
def test_every_instruction_set(instruction_set):
    for dtype, tolerance in TOLERANCE.items():
        for channels in (1, 9, 37):
            assert scan_errors(scan_inputs(2, channels, 37, 5, dtype=dtype)) < tolerance


@needs_cpu_backend
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_strided_inputs(dtype):
    inputs = scan_inputs(2, 18, 21, 4, B=3, C="token", dtype=dtype)
    for name in ("u", "delta", "z", "B", "C"):
        inputs[name] = inputs[name].transpose(-1, -2).contiguous().transpose(-1, -2)
    inputs["A"] = inputs["A"].t().contiguous().t()
    inputs["u"] = torch.stack([inputs["u"]] * 2, -1)[..., 1]
    inputs["D"] = torch.stack([inputs["D"]] * 3, -1)[..., 1]
    assert not inputs["u"].is_contiguous()
    assert scan_errors(inputs) < TOLERANCE[dtype]
    inputs["z"] = inputs["z"][:1].expand(2, -1, -1)
    assert scan_errors(inputs) < TOLERANCE[dtype]


@needs_cpu_backend
@pytest.mark.parametrize("shape", [(0, 4, 5, 3), (2, 4, 0, 3)])
def test_empty(shape):
    assert scan_errors(scan_inputs(*shape)) == 0


@needs_cpu_backend
@pytest.mark.parametrize("size", [30.0, 300.0, 1e4, 1e30])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_large_decay(size, dtype):
    inputs = scan_inputs(2, 9, 40, 4, dtype=dtype)
    inputs["A"] = inputs["A"] * size
    assert scan_errors(inputs) < TOLERANCE[dtype]


@needs_cpu_backend
def test_overflow_is_the_reference_s():
    inputs = scan_inputs(1, 3, 4, 2, dtype=torch.float32)
    inputs["A"] = torch.full((3, 2), 500.0)
    results = []
    for backend in ("reference", "cpu"):
        with use_backend(backend):
            results.append(selective_scan(**inputs))
    assert torch.equal(torch.isfinite(results[0]), torch.isfinite(results[1]))
    assert not torch.isfinite(results[1]).all()


@needs_cpu_backend
@pytest.mark.parametrize("name", NAMES)
def test_nan_stays(name):
    inputs = scan_inputs(2, 20, 9, 3, dtype=torch.float32)
    inputs[name].view(-1)[4] = float("nan")
    results = []
    for backend in ("reference", "cpu"):
        with use_backend(backend):
            results.append(selective_scan(**inputs, return_last_state=True))
    for expected, found in zip(*results, strict=True):
        assert torch.equal(torch.isnan(expected), torch.isnan(found))
    assert torch.isnan(results[0][0]).any()


@needs_cpu_backend
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 3e-7), (torch.float64, 1e-14)])
def test_elementary_functions(dtype, bound, instruction_set):
    """exp, softplus and SiLU alone, by scans of one or two steps, against float64's and exact."""
    x = torch.linspace(-80, 80, 40001, dtype=dtype)
    one, nothing = torch.ones(1, x.numel(), 1, dtype=dtype), torch.zeros(1, 1, 1, dtype=dtype)
    matrix = nothing + 1

    def relative(found, expected):
        return ((found.double() - expected).abs() / expected.abs()).max().item()

    with use_backend("cpu"):
        A = torch.zeros(x.numel(), 1, dtype=dtype)
        delta = x.view(1, -1, 1)
        softplus = selective_scan(one, delta, A, matrix, matrix, delta_softplus=True).flatten()
        silu = selective_scan(one, one, A, matrix, matrix, z=delta).flatten()
        # The second input is 0: the state is exp(A) alone.
        u = torch.cat([one, one * 0], 2)
        matrices = matrix.expand(1, 1, 2)
        decayed = selective_scan(u, u * 0 + 1, x[:, None], matrices, matrices)[0, :, 1]
    exact = x.double()
    assert relative(softplus, torch.logaddexp(exact, exact * 0)) < bound
    nonzero = x != 0
    assert relative(silu[nonzero], torch.nn.functional.silu(exact[nonzero])) < bound
    # The exponent delta A log2(e) is rounded too, in proportion to its size.
    error = (decayed.double() - exact.exp()).abs() / exact.exp()
    assert (error < bound + torch.finfo(dtype).eps * exact.abs()).all()


@needs_cpu_backend
def test_mixed_precision_weights():
    inputs = scan_inputs(2, 6, 9, 3, dtype=torch.float64)
    inputs["A"], inputs["D"] = inputs["A"].float(), inputs["D"].float()
    assert scan_errors(inputs) < 1e-6


def test_half_precision_runs_on_the_reference():
    inputs = scan_inputs(2, 6, 9, 3, dtype=torch.float32)
    exact = selective_scan(**inputs)
    halves = {k: v.bfloat16() if hasattr(v, "shape") else v for k, v in inputs.items()}
    y, state = selective_scan(**halves, return_last_state=True)
    assert y.dtype == torch.bfloat16 and state.dtype == torch.float32
    assert relative_error(y.float(), exact) < 0.05


@pytest.mark.parametrize(
    "name, shape", [("delta", (2, 5, 6)), ("B", (2, 2, 3, 7)), ("D", (4,)), ("A", (4, 3))]
)
def test_shapes_that_do_not_fit(name, shape):
    inputs = scan_inputs()
    inputs[name] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"shape|3-d"):
        selective_scan(**inputs)
