"""What the checks of the Triton kernels share. `test_triton.py` says how they are run."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run: the CPU by Triton's interpreter, else the GPU."""
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(scope="session", autouse=True)
def scan_rows_at_a_time():
    """Let the interpreter scan slices; gives its own way, which `check_scan.py` compares.

    Its own way calls the combining function for each element, which takes a minute a test.
    """
    if not INTERPRETED:
        yield None
        return
    from interpreted_scan import generic_scan
    from triton.runtime import interpreter

    original = interpreter.ScanOps.generic_scan
    interpreter.ScanOps.generic_scan = generic_scan
    yield original
    interpreter.ScanOps.generic_scan = original
