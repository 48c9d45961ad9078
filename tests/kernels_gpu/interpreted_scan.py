"""`tl.associative_scan` for Triton's interpreter, a slice at a time."""

import numpy as np


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
