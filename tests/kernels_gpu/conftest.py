"""What the checks of the Triton kernels share. `test_triton.py` says how they are run."""

import sys
from pathlib import Path

import pytest
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "kernels")]

from interpreting import device_of_this_process, quick_interpreter  # noqa: E402


@pytest.fixture(scope="session")
def device() -> torch.device:
    return device_of_this_process()


@pytest.fixture(scope="session", autouse=True)
def own_ways():
    """The interpreter's own ways, which `check_scan.py` compares."""
    with quick_interpreter() as own:
        yield own
