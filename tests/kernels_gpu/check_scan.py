"""`selective_scan` by Triton against the definition, forward and all gradients."""

import random
import sys
import types

import pytest
import torch
import triton.language as tl
from comparisons import WHOLE, scan_errors
from interpreting import INTERPRETED
from operator_cases import scan_inputs
from random_errors import random_scan_errors
from triton import jit

from fastvim.kernels import mamba_ssm, triton
from fastvim.kernels.triton import scan
from fastvim.kernels.triton.scan_kernels import chain

SHAPES = {
    "one of everything": {"batch": 1, "channels": 1, "length": 1, "states": 1},
    "two tiles": {"batch": 2, "channels": 3, "length": 19, "states": 2},
    "two blocks of channels": {"batch": 1, "channels": 130, "length": 5, "states": 2},
    "many states": {"batch": 1, "channels": 2, "length": 3, "states": 64},
    "B fixed": {"batch": 2, "channels": 5, "length": 9, "states": 3, "B": "fixed"},
    "C fixed": {"batch": 1, "channels": 4, "length": 9, "states": 2, "C": "fixed"},
    "groups": {"batch": 1, "channels": 4, "length": 6, "states": 2, "B": 2, "C": 2},
    "groups that cross": {"batch": 1, "channels": 12, "length": 3, "states": 2, "B": 2, "C": 3},
    "groups of B alone": {"batch": 1, "channels": 4, "length": 6, "states": 2, "B": 4},
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("options", [True, False], ids=["all options", "no options"])
def check_shapes(device, name, options):
    errors = scan_errors(device, options=options, **SHAPES[name])
    assert max(errors.values()) < WHOLE[torch.float32], errors


def check_random_shapes(device):
    """Those of the cpu backend; by the interpreter the small ones among them."""
    draw, cases, steps = random.Random(1), *((2, 200) if INTERPRETED else (30, None))
    for _ in range(cases):
        errors = random_scan_errors(device, torch.float32, draw, steps)
        assert max(errors.values()) < WHOLE[torch.float32], errors


@pytest.mark.parametrize("kind", ["token", "fixed"])
def check_chunks(device, monkeypatch, kind):
    """A sequence cut in chunks, the last of them incomplete, is the sequence."""
    monkeypatch.setattr(scan, "_SHORTEST_CHUNK", 16)
    assert scan.plan_scan(1, 2, 71, 2).chunks == 3
    errors = scan_errors(device, batch=1, channels=2, length=71, states=2, B=kind)
    assert max(errors.values()) < WHOLE[torch.float32], errors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def check_half_precision(device, dtype):
    """Rounded inputs and outputs, a float32 state."""
    errors = scan_errors(device, dtype, batch=1, channels=3, length=9, states=2)
    assert max(errors.values()) < WHOLE[dtype], errors
    assert errors["last state"] < WHOLE[torch.float32], errors


def check_empty(device):
    inputs = scan_inputs(0, 3, 4, 2, dtype=torch.float32)
    given = [t.to(device) if isinstance(t, torch.Tensor) else t for t in inputs.values()]
    y, state = triton.selective_scan(*given)
    assert y.shape == (0, 3, 4) and state.shape == (0, 3, 2)
    grads = triton.selective_scan_backward(y, state, tuple(given[:-1]), True)
    assert all(not grad.abs().sum() for grad in grads)


def check_strides_do_not_matter(device):
    inputs = scan_inputs(2, 4, 6, 3, dtype=torch.float32)
    given = [t.to(device) if isinstance(t, torch.Tensor) else t for t in inputs.values()]
    expected = triton.selective_scan(*given)
    turned = [
        t.transpose(-1, -2).contiguous().transpose(-1, -2)
        if isinstance(t, torch.Tensor) and t.dim() > 1
        else t
        for t in given
    ]
    for found, right in zip(triton.selective_scan(*turned), expected, strict=True):
        assert torch.equal(found, right)


@pytest.fixture
def published_definition():
    # Its import wants the CUDA extension, which the slow definition doesn't use.
    absent = "selective_scan_cuda" not in sys.modules
    if absent:
        sys.modules["selective_scan_cuda"] = types.ModuleType("selective_scan_cuda")
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_ref
    except ImportError as error:
        pytest.skip(f"mamba_ssm cannot be imported: {error}")
    finally:
        if absent:
            del sys.modules["selective_scan_cuda"]
    return selective_scan_ref


def check_against_mamba_ssm(device, published_definition):
    inputs = scan_inputs(2, 4, 19, 3, dtype=torch.float32)
    inputs = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    y, state = triton.selective_scan(**inputs)
    expected, expected_state = published_definition(**inputs, return_last_state=True)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, expected_state, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["token", "fixed", 2])
def check_the_mamba_ssm_backend(device, monkeypatch, published_definition, kind):
    """With that package's slow scan in the place of its CUDA scan: the state's gradient too."""
    monkeypatch.setattr(mamba_ssm, "_published_scan", lambda: published_definition)
    errors = scan_errors(
        device, module=mamba_ssm, batch=2, channels=4, length=5, states=3, B=kind, C=kind
    )
    assert max(errors.values()) < WHOLE[torch.float32], errors


@jit
def scan_rows(a, b, out, REVERSE: tl.constexpr):
    places = tl.arange(0, 8)[:, None] * 2 + tl.arange(0, 2)[None, :]
    pair = tl.load(a + places), tl.load(b + places)
    tl.store(out + places, tl.associative_scan(pair, 0, chain, reverse=REVERSE)[1])


@pytest.mark.parametrize("reverse", [False, True])
def check_scans_of_the_compiler(device, monkeypatch, own_ways, reverse):
    """The scan of a tile by a loop; by the interpreter its own slow way too, with the same bits."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(8, 2, generator=generator) for _ in range(2))
    expected, h = torch.empty_like(b), torch.zeros(2)
    for t in reversed(range(8)) if reverse else range(8):
        h = a[t] * h + b[t]
        expected[t] = h
    found = []
    for ways in ({}, own_ways):
        for (owner, name), way in ways.items():
            monkeypatch.setattr(owner, name, way)
        found.append(torch.zeros(8, 2, device=device))
        scan_rows[(1,)](a.to(device), b.to(device), found[-1], reverse)
        torch.testing.assert_close(found[-1].cpu(), expected)
    assert torch.equal(*found)
