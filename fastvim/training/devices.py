"""Where a run computes, in which precision, and what else decides its figures."""

import os
import platform
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import fastvim
from fastvim.errors import UserError
from fastvim.kernels import backends
from fastvim.training.recipe import Recipe

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "safetensors", "fvcore", "mamba-ssm")


def choose_device() -> torch.device:
    """The first CUDA device where there is one (CUDA_VISIBLE_DEVICES decides), else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def choose_precision(recipe: Recipe, device: torch.device) -> str:
    """`float32`, `bfloat16` or `float16`. Raises UserError for float16 on a CPU."""
    if recipe.precision == "auto":
        return "float32" if device.type == "cpu" else "bfloat16"
    if recipe.precision == "float16" and device.type == "cpu":
        raise UserError(
            "training.precision = 'float16' needs a GPU; on a CPU use float32, bfloat16 or auto"
        )
    return recipe.precision


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """A context in which matrix products run in `precision`."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[precision])


def kernel_backend(device: torch.device, precision: str, model: str) -> str:
    """The implementation of the suite's operators in `model`, or `pytorch` where it has none.

    Raises UserError where a forced implementation cannot run on this device in this precision.
    """
    if model.startswith("timm/"):
        return "pytorch"
    return backends.choose(device.type, _DTYPES.get(precision, torch.float32))


def describe_environment(device: torch.device, precision: str) -> dict:
    """Versions and hardware, as plain JSON."""
    packages = {}
    for package in _PACKAGES:
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = None
    on_gpu = device.type == "cuda"
    return {
        "fastvim": fastvim.__version__,
        "revision": _revision(),
        "python": platform.python_version(),
        "packages": packages,
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "cuda": torch.version.cuda if on_gpu else None,
        "precision": precision,
        "command": " ".join(sys.argv),
    }


def _revision() -> str | None:
    """The git revision of the source that runs, with `-dirty` if changed; None if installed."""
    git = ["git", "-C", str(Path(fastvim.__file__).parent)]
    try:
        # A package inside somebody else's repository is not tracked by it.
        subprocess.run(
            [*git, "ls-files", "--error-unmatch", "__init__.py"], check=True, capture_output=True
        )
        described = subprocess.run(
            [*git, "describe", "--always", "--dirty"], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass  # Not Linux; the portable name is vaguer.
    return platform.processor() or platform.machine()
