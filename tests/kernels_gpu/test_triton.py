"""Runs the checks of the Triton kernels: here by Triton's interpreter, on a GPU if there is one.

In a process of their own, because Triton reads TRITON_INTERPRET when a kernel is defined, its own
library's included, and a process has it one way or the other. `pytest -m gpu` runs the
same checks on a GPU, and `check_gpu.py`, which needs one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastvim.kernels import backends

HERE = Path(__file__).parent
FILES = ("check_scan.py", "check_mixer.py", "check_library.py")

needs_triton = pytest.mark.skipif(
    backends.unfit_triton() is not None, reason=backends.unfit_triton() or ""
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def run(*files: str, **environment: str) -> None:
    """Run the checks of the files in a process; its report is the failure's."""
    without = {"TRITON_INTERPRET", "FASTVIM_KERNELS", "PYTEST_ADDOPTS"}
    # Neither xdist, as there is one process, nor what else is installed.
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-o", "python_files=check_*.py", "-o", "python_functions=check_*", *files],
        cwd=HERE,
        env={k: v for k, v in os.environ.items() if k not in without} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    print(done.stdout.splitlines()[-1])


@needs_triton
def test_by_the_interpreter():
    run(*FILES, "check_bytes.py", TRITON_INTERPRET="1", OMP_NUM_THREADS="1")


@pytest.mark.gpu
@needs_gpu
def test_on_the_gpu():
    run(*FILES, "check_gpu.py")
