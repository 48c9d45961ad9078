"""Runs the checks of the Triton kernels: here by Triton's interpreter, on a GPU if there is one.

A process of its own for each file, because Triton reads TRITON_INTERPRET when a kernel is defined,
its own library's included, and a process has it one way or the other. `pytest -m gpu` runs the
same checks on a GPU, and `check_gpu.py`, which needs one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
FILES = ("check_scan.py", "check_mixer.py", "check_library.py")
INTERPRETED_ONLY = ("check_bytes.py",)

needs_triton = pytest.mark.skipif(
    not __import__("importlib.util").util.find_spec("triton"), reason="Triton is not installed"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def run(file: str, **environment: str) -> None:
    """Run the checks of a file in a process of its own; its report is the failure's."""
    without = {"TRITON_INTERPRET", "FASTVIM_KERNELS", "PYTEST_ADDOPTS"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, "-o", "python_files=check_*.py", "-o", "python_functions=check_*", file],
        cwd=HERE,
        env={k: v for k, v in os.environ.items() if k not in without} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    print(done.stdout.splitlines()[-1])


@needs_triton
@pytest.mark.parametrize("file", [*FILES, *INTERPRETED_ONLY])
def test_by_the_interpreter(file):
    run(file, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("file", [*FILES, "check_gpu.py"])
def test_on_the_gpu(file):
    run(file)
