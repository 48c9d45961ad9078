"""Which implementation of the operators runs: chosen per call, or forced.

`FASTVIM_KERNELS=reference|cpu|triton|mamba_ssm` in the environment (read at import), or
`with use_backend("reference"):`, forces one; otherwise the fastest that takes the tensors runs.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import warnings
from collections.abc import Iterator

import torch

from fastvim.errors import UserError, nearest
from fastvim.kernels import native

NAMES = ("reference", "cpu", "triton", "mamba_ssm")
# `choose`, in words; `fastvim doctor` says it.
RULE = (
    "Chosen by device and dtype alone: float32 and float64 on a CPU run on cpu; float32, bfloat16 "
    "and float16 on CUDA run on triton; all else, and where these cannot run, on reference. "
    "mamba_ssm runs only if forced. Tiles and chunks follow from the shape, nothing is tuned by "
    "trying: the same shape gives the same bits on every run."
)
ENVIRONMENT_VARIABLE = "FASTVIM_KERNELS"

# A plain global, so that torch.compile can guard on it.
_forced: str | None = os.environ.get(ENVIRONMENT_VARIABLE) or None

if native.REASON is not None and _forced is None:
    warnings.warn(
        f"fastvim: scans and mixers on the CPU run in plain PyTorch, many times slower than the "
        f"'cpu' backend, because {native.REASON}",
        RuntimeWarning,
        stacklevel=1,
    )


def available() -> dict[str, str | None]:
    """Every backend, with None if it works here, or the reason why it does not."""
    return {
        "reference": None,
        "cpu": native.REASON,
        "triton": _reason("triton"),
        "mamba_ssm": _reason("mamba_ssm"),
    }


def _interpreted() -> bool:
    """Whether Triton's kernels run on CPU tensors, one numpy call at a time, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def installed_version(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def unfit_triton() -> str | None:
    """Why the Triton found cannot compile the kernels; None if it can. Imports nothing of it."""
    # Nightly builds name it otherwise.
    version = installed_version("triton") or installed_version("pytorch-triton")
    if version is None:
        return "Triton is not installed; it comes with torch for CUDA on Linux"
    if tuple(int(part) for part in version.split(".")[:2]) < (3, 3):
        return f"Triton {version} is too old, 3.3 is needed; install torch 2.7 or newer"
    return None


@functools.cache
def _triton_reason() -> str | None:
    """Why the Triton kernels cannot run here; None if they can. Imports nothing of Triton."""
    unfit = unfit_triton()
    if unfit is not None or _interpreted():
        return unfit
    if not torch.cuda.is_available():
        return (
            "no CUDA device; it needs an NVIDIA GPU of compute capability 8.0 or more "
            "and a torch built for CUDA"
        )
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        return (
            f"the GPU has compute capability {capability[0]}.{capability[1]}, 8.0 is needed "
            "(A100 or newer)"
        )
    return None


@functools.cache
def _mamba_ssm_reason() -> str | None:
    if importlib.util.find_spec("selective_scan_cuda") is None:
        return (
            "mamba-ssm with its CUDA extension is not installed; "
            "on a machine with nvcc run pip install 'fastvim[mamba]'"
        )
    if _interpreted():
        return "it needs a CUDA device, which TRITON_INTERPRET=1 does without"
    return _triton_reason()


def _reason(name: str) -> str | None:
    """Why a backend for CUDA devices cannot run here; None if it can."""
    return _triton_reason() if name == "triton" else _mamba_ssm_reason()


# torch.compile takes the answer as it is when it traces: of a cache it would warn, and trace what
# lies behind it. torch.compiler.assume_constant_result sets this too, but first imports the whole
# compiler, for as long as torch itself.
_reason._dynamo_marked_constant = True  # type: ignore[attr-defined]


def require(name: str, origin: str = ENVIRONMENT_VARIABLE) -> None:
    """UserError, naming `origin`, unless backend `name` exists and works here."""
    if name not in NAMES:
        raise UserError(
            f"{origin}: no kernel backend {name!r}{nearest(name, NAMES)}; "
            f"there are {', '.join(NAMES)}"
        )
    reason = available()[name]
    if reason is not None:
        raise UserError(f"{origin}: kernel backend {name!r} cannot run here: {reason}")


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force backend `name` inside the `with` block; UserError if it cannot run here."""
    global _forced
    require(name, "use_backend")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def choose(device_type: str, dtype: torch.dtype) -> str:
    """The backend for tensors of this kind; UserError if a forced one cannot take them.

    On a CUDA device that is `triton`: `mamba_ssm` is for comparisons, and runs only if forced.
    """
    if _forced is None:
        if takes("cpu", device_type, dtype) and native.REASON is None:
            return "cpu"
        if device_type == "cuda" and takes("triton", device_type, dtype):
            return "triton" if _reason("triton") is None else "reference"
        return "reference"
    require(_forced)
    if not takes(_forced, device_type, dtype):
        wanted = {
            "cpu": "float32 and float64 tensors on the CPU",
            "triton": "float32, bfloat16 and float16 tensors on a CUDA device",
            "mamba_ssm": "float32, bfloat16 and float16 tensors on a CUDA device",
        }
        raise UserError(
            f"kernel backend {_forced!r} takes {wanted[_forced]}, not {dtype} on {device_type}"
        )
    return _forced


def takes(name: str, device_type: str, dtype: torch.dtype) -> bool:
    """Whether backend `name` computes tensors of this kind."""
    if name == "reference":
        return True
    if name == "cpu":
        return device_type == "cpu" and dtype in (torch.float32, torch.float64)
    device_fits = device_type == "cuda" or (_interpreted() and device_type == "cpu")
    return device_fits and dtype in (torch.float32, torch.bfloat16, torch.float16)
