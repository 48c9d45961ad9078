"""mamba_ssm's own slow definition as a peer, where that package is installed."""

import sys
import types

import pytest
import torch
from operator_cases import needs_cpu_backend, relative_error, scan_inputs

from fastvim.kernels import selective_scan, use_backend


@pytest.fixture(scope="module")
def selective_scan_ref():
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


@pytest.mark.parametrize("kind", ["token", "fixed", 2])
@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_cpu_backend)])
def test_agrees(selective_scan_ref, kind, backend):
    inputs = scan_inputs(2, 6, 30, 4, B=kind, C=kind, dtype=torch.float32)
    expected, expected_state = selective_scan_ref(**inputs, return_last_state=True)
    with use_backend(backend):
        y, state = selective_scan(**inputs, return_last_state=True)
    assert relative_error(y, expected) < 1e-5
    assert relative_error(state, expected_state) < 1e-5
