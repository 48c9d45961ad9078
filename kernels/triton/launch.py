"""How kernels are launched, and how launches are only listed when the tensors hold no data."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

_listing: "list[Launch] | None" = None


@dataclass(frozen=True)
class Launch:
    """One kernel launch: `arguments` by name (tensors, numbers and compile-time constants)."""

    kernel: object
    grid: tuple[int, int, int]
    arguments: dict
    num_warps: int
    max_registers: int | None


@contextlib.contextmanager
def list_launches() -> Iterator[list[Launch]]:
    """Collect launches instead of running them: for tensors on the meta device."""
    global _listing
    before, _listing = _listing, []
    try:
        yield _listing
    finally:
        _listing = before


def launch(
    kernel,
    grid: tuple[int, int, int],
    num_warps: int,
    max_registers: int | None = None,
    **arguments,
) -> None:
    """Run `kernel` over `grid` on the device of its tensors, on the current stream.

    A tensor that is None is passed as a null pointer. A thread has at most `max_registers`; left
    alone, the assembler spills a few bytes to get below a round number of its own choice.
    """
    if 0 in grid:
        return
    if _listing is not None:
        _listing.append(Launch(kernel, grid, arguments, num_warps, max_registers))
        return
    device = next(value for value in arguments.values() if isinstance(value, Tensor)).device
    # Triton launches on the current device, which need not be the tensors'.
    guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with guard:
        # Rounding must not hang on a default that differs between versions of Triton.
        options = {"num_warps": num_warps, "maxnreg": max_registers, "enable_fp_fusion": True}
        kernel[grid](**arguments, **options)


def blocks(size: int, block: int) -> int:
    """How many blocks cover `size`."""
    return triton.cdiv(size, block)


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least `size`."""
    return triton.next_power_of_2(size)
