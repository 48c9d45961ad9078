"""Where a run computes, in which precision, and what else decides its figures."""

import os
import platform
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

import fastvim
from fastvim.kernels import backends
from fastvim.models.config import TIMM_PREFIX
from fastvim.training.recipe import Recipe

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "safetensors", "fvcore", "mamba-ssm")
# What allocators say: PyTorch's on CPUs, its CUDA one, C++'s, operators of oneDNN. (The last is its
# word for a kernel that finds no memory for its code.)
_PHRASES = (
    *("out of memory", "allocate memory", "enough memory", "bad_alloc", "out_of_memory"),
    "could not create a primitive",
)


class RoundedToFloat16(TorchFunctionMode):
    """Autocast to float16 emulated by rounding: CPUs multiply float16 some 70 times slower.

    Inputs, weights and outputs of linear layers, convolutions and products are rounded to
    float16, beyond whose range they are infinite, and so are the gradients on their way back;
    sums inside a product are float32, as on a GPU.
    """

    _PRODUCTS = (F.linear, F.conv1d, F.conv2d, torch.matmul, Tensor.matmul, Tensor.__matmul__)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Called in place of every function of torch."""
        kwargs = kwargs or {}
        if func not in self._PRODUCTS:
            return func(*args, **kwargs)
        return _rounded(
            func(*map(_rounded, args), **{key: _rounded(value) for key, value in kwargs.items()})
        )


def _rounded(value: object) -> object:
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        return value.to(torch.float16).to(torch.float32)
    return value


def choose_device() -> torch.device:
    """The first CUDA device where there is one (CUDA_VISIBLE_DEVICES decides), else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def choose_precision(recipe: Recipe, device: torch.device) -> str:
    """`float32`, `bfloat16` or `float16`."""
    if recipe.precision == "auto":
        return "float32" if device.type == "cpu" else "bfloat16"
    return recipe.precision


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """A context in which matrix products run in `precision`; float16 on a CPU is emulated."""
    if precision == "float32":
        return nullcontext()
    if precision == "float16" and device.type == "cpu":
        return RoundedToFloat16()
    return torch.autocast(device.type, dtype=_DTYPES[precision])


def kernel_backend(device: torch.device, precision: str, model: str) -> str:
    """The implementation of the suite's operators in `model`, or `pytorch` where it has none.

    Raises UserError where a forced implementation cannot run on this device in this precision.
    """
    if model.startswith(TIMM_PREFIX):
        return "pytorch"
    emulated = precision == "float16" and device.type == "cpu"
    dtype = torch.float32 if emulated else _DTYPES.get(precision, torch.float32)
    return backends.choose(device.type, dtype)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this exception says that memory could not be had, whoever raised it."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(phrase in text for phrase in _PHRASES)


def describe_environment(device: torch.device, precision: str) -> dict:
    """Versions and hardware, as plain JSON."""
    on_gpu = device.type == "cuda"
    return {
        "fastvim": fastvim.__version__,
        "revision": _revision(),
        "python": platform.python_version(),
        "packages": {name: backends.installed_version(name) for name in _PACKAGES},
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
