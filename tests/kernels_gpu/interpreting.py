"""Triton's interpreter without what takes it the most time."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator

import numpy as np
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def device_of_this_process() -> torch.device:
    """Where the kernels run: the CPU by Triton's interpreter, else the GPU."""
    return torch.device("cpu" if INTERPRETED else "cuda")


@contextlib.contextmanager
def quick_interpreter() -> Iterator[dict]:
    """The interpreter in a third of the time; gives its own ways, by the object and the name.

    Its own scan calls the combining function for each element, which takes a minute a test. It
    patches the language again at each call of a function, and works out whether integers overflow
    only to throw the answer away, for it asserts nothing outside of its debug mode.
    """
    if not INTERPRETED:
        yield {}
        return
    from triton.runtime import interpreter

    own_patch, builder = interpreter._patch_lang, interpreter.interpreter_builder
    options = builder.options

    def patch_once(function):
        # The launch undoes at its end what it is given; a function finds it done.
        return None if _is_patched(function) else own_patch(function)

    quick = {
        (interpreter.ScanOps, "generic_scan"): generic_scan,
        (interpreter, "_patch_lang"): patch_once,
        (builder, "options"): dataclasses.replace(options, sanitize_overflow=options.debug),
    }
    own = {(owner, name): getattr(owner, name) for owner, name in quick}
    for (owner, name), value in quick.items():
        setattr(owner, name, value)
    try:
        yield own
    finally:
        for (owner, name), value in own.items():
            setattr(owner, name, value)


def _is_patched(function) -> bool:
    """Whether the language, as the module of `function` sees it, is the interpreter's."""
    import triton.language as tl

    seen = [value for value in function.__globals__.values() if value is tl or value is tl.core]
    return not any(tl.core.is_builtin(language.load) for language in seen)


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
