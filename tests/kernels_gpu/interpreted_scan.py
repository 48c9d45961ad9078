"""`tl.associative_scan` for Triton's interpreter, a slice at a time."""

import contextlib
import os
from collections.abc import Callable, Iterator

import numpy as np
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@contextlib.contextmanager
def slices_at_a_time() -> Iterator[Callable | None]:
    """Let the interpreter scan slices; gives its own way, None where nothing is interpreted.

    Its own way calls the combining function for each element, which takes a minute a test.
    """
    if not INTERPRETED:
        yield None
        return
    from triton.runtime import interpreter

    original = interpreter.ScanOps.generic_scan
    interpreter.ScanOps.generic_scan = generic_scan
    yield original
    interpreter.ScanOps.generic_scan = original


def device_of_this_process() -> torch.device:
    """Where the kernels run: the CPU by Triton's interpreter, else the GPU."""
    return torch.device("cpu" if INTERPRETED else "cuda")


def generic_scan(self, inputs: list) -> list:
    """Scan tensors along `self.axis` with `self.combine_fn`, whose other axes are independent."""
    arrays = [np.moveaxis(tensor.handle.data, self.axis, 0) for tensor in inputs]
    results = [np.empty_like(array) for array in arrays]
    for result, array in zip(results, arrays, strict=True):
        result[0] = array[0]
    for i in range(1, len(arrays[0])):
        before = [self.to_tensor(r[i - 1], t.dtype) for r, t in zip(results, inputs, strict=True)]
        here = [self.to_tensor(a[i], t.dtype) for a, t in zip(arrays, inputs, strict=True)]
        for result, value in zip(results, self.combine_fn.fn(*before, *here), strict=True):
            result[i] = value.handle.data
    return [
        self.to_tensor(np.ascontiguousarray(np.moveaxis(result, 0, self.axis)), tensor.dtype)
        for result, tensor in zip(results, inputs, strict=True)
    ]
