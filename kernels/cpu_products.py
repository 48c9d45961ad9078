"""The matrix products of the `cpu` backend.

PyTorch's lose to these where matrices are as small as a mixer's: a third of their time and more.
"""

import threading

import torch
from torch import Tensor

from fastvim.kernels import calls
from fastvim.kernels.native import LIBRARY, ProductCall, RowsProductCall

_workspaces = threading.local()
# Bytes of workspace that a thread keeps from call to call, at most: enough for a block of Vim-T at
# 2,048 pixels, which took 1.8 times as long with fresh ones.
_KEPT = 1 << 30


def release_workspace() -> None:
    """Give back what this thread keeps: whoever measures memory wants it in the measurement."""
    _workspaces.bytes = None


def workspace(size: int) -> Tensor:
    """At least `size` bytes, kept: fresh ones cost a page fault each 4 KiB, more than kernels."""
    kept = getattr(_workspaces, "bytes", None)
    if kept is None or kept.numel() < size:
        kept = torch.empty(size, dtype=torch.uint8, device="cpu")
        if size <= _KEPT:
            _workspaces.bytes = kept
    return kept


def product(rows: Tensor, weight: Tensor, out: Tensor | None = None, adds: bool = False) -> Tensor:
    """rows (M, K) times weight (N, K) transposed, to (M, N); `adds` to what is in `out`.

    `rows` and `out` may be columns of a larger matrix, `weight` may be transposed.
    """
    length, inner = rows.shape
    out = rows.new_empty(length, weight.shape[0]) if out is None else out
    call = ProductCall(
        length,
        inner,
        weight.shape[0],
        torch.get_num_threads(),
        adds,
        rows.data_ptr(),
        weight.data_ptr(),
        rows.stride(0),
        weight.stride(),
        out.stride(0),
        out.data_ptr(),
    )
    space = workspace(LIBRARY.fastvim_product_space(call, rows.dtype == torch.float64))
    call.space = space.data_ptr()
    calls.run("fastvim_product", call, rows.dtype)
    return out


def rows_product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a (M, K) transposed times b (M, N), to (K, N); both may be columns of larger matrices.

    A weight's gradient. The blocks call it from C++; here it can be held to PyTorch's alone.
    """
    length, outputs = a.shape
    out = a.new_empty(outputs, b.shape[1]) if out is None else out
    if length == 0:
        return out.zero_()
    call = RowsProductCall(
        length,
        outputs,
        b.shape[1],
        torch.get_num_threads(),
        a.data_ptr(),
        b.data_ptr(),
        a.stride(0),
        b.stride(0),
        out.data_ptr(),
    )
    space = workspace(LIBRARY.fastvim_rows_product_space(call, a.dtype == torch.float64))
    call.space = space.data_ptr()
    calls.run("fastvim_rows_product", call, a.dtype)
    return out
