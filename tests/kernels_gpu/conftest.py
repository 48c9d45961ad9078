"""What the checks of the Triton kernels share. `test_triton.py` says how they are run."""

import sys
from pathlib import Path

import pytest
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "kernels")]

from interpreted_scan import device_of_this_process, slices_at_a_time  # noqa: E402


@pytest.fixture(scope="session")
def device() -> torch.device:
    return device_of_this_process()


@pytest.fixture(scope="session", autouse=True)
def scan_rows_at_a_time():
    """The interpreter's own way of scanning, which `check_scan.py` compares."""
    with slices_at_a_time() as original:
        yield original
