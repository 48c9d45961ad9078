"""How large the numbers of many tensors are: on the CPU one pass over each, all in one call."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from fastvim.kernels import backends, calls
from fastvim.kernels.native import MagnitudesCall


def magnitudes(tensors: Sequence[Tensor]) -> Tensor:
    """The least and the greatest number and the norm of each tensor, (tensors, 3) float32.

    All three are NaN where a number is. The tensors are on one device, and none is empty.
    """
    tensors = [tensor.detach() for tensor in tensors]
    kinds = {(tensor.device.type, tensor.dtype) for tensor in tensors}
    contiguous = all(tensor.is_contiguous() for tensor in tensors)
    if len(kinds) == 1 and contiguous and backends.choose(*kinds.pop()) == "cpu":
        return _in_one_pass(tensors).float()
    # Two passes, without a temporary. PyTorch's infinity norm takes twenty times as long on a CPU.
    scalars = [
        value
        for tensor in tensors
        for value in (*torch.aminmax(tensor), torch.linalg.vector_norm(tensor, dtype=_wide(tensor)))
    ]
    return torch.stack(scalars).float().view(-1, 3)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _in_one_pass(tensors: Sequence[Tensor]) -> Tensor:
    count = len(tensors)
    y = tensors[0].new_empty(count, 3)
    addresses = (ctypes.c_void_p * count)(*(tensor.data_ptr() for tensor in tensors))
    sizes = (ctypes.c_int64 * count)(*(tensor.numel() for tensor in tensors))
    call = MagnitudesCall(
        count,
        torch.get_num_threads(),
        ctypes.addressof(addresses),
        ctypes.addressof(sizes),
        y.data_ptr(),
    )
    calls.run("fastvim_magnitudes", call, y.dtype)
    return y
