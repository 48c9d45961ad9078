"""Which implementation of the operators runs: chosen per call, or forced.

`FASTVIM_KERNELS=reference|cpu` in the environment (read at import), or
`with use_backend("reference"):`, forces one; otherwise the fastest that takes the tensors runs.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator

import torch

from fastvim.errors import UserError, nearest
from fastvim.kernels import native

NAMES = ("reference", "cpu")
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
    return {"reference": None, "cpu": native.REASON}


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
    """The backend for tensors of this kind; UserError if a forced one cannot take them."""
    fits = device_type == "cpu" and dtype in (torch.float32, torch.float64)
    if _forced is None:
        return "cpu" if fits and native.REASON is None else "reference"
    require(_forced)
    if _forced == "cpu" and not fits:
        raise UserError(
            "kernel backend 'cpu' takes float32 and float64 tensors on the CPU, "
            f"not {dtype} on {device_type}"
        )
    return _forced
