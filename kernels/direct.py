"""Operators without PyTorch's dispatcher, where nothing wants to see them.

The dispatcher of an operator written in Python takes 0.15 to 0.4 ms between kernels that have
filled the caches, forward alone.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_watched(tensors: Iterable[Tensor | None]) -> bool:
    """Whether anything is to see operators: compilers, tracers, modes, transforms, subclasses.

    Of a tensor whose sign is yet to be turned, as of `torch.imag` of a conjugate, the dispatcher
    makes one whose memory says what it is.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or any(
            t is not None and (type(t) not in (Tensor, torch.nn.Parameter) or t.is_neg())
            for t in tensors
        )
    )


def refuse_tangents(tensors: Iterable[Tensor | None]) -> None:
    """NotImplementedError for a tensor in forward-mode differentiation: PyTorch drops tangents."""
    if forward_ad._current_level >= 0 and any(
        t is not None and _tangent(t) is not None for t in tensors
    ):
        raise NotImplementedError(
            "fastvim's operators have no forward-mode derivatives (torch.func.jvp, jacfwd, "
            "torch.autograd.forward_ad); use torch.autograd.grad or backward()"
        )


def _tangent(tensor: Tensor) -> Tensor | None:
    while torch._C._functorch.is_batchedtensor(tensor):  # of which vmap does not tell it
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return forward_ad.unpack_dual(tensor).tangent


class Operator:
    """An operator as `torch.library.custom_op` registers it, called directly where it can be."""

    def __init__(self, name: str, implementation: Callable, options: dict[str, Any]):
        self._implementation = implementation
        self._registered = torch.library.custom_op(name, implementation, mutates_args=(), **options)
        self._function: type[torch.autograd.Function] | None = None
        self.register_fake = self._registered.register_fake

    def register_autograd(self, backward: Callable, *, setup_context: Callable) -> None:
        """As `torch.library.custom_op`'s."""
        self._registered.register_autograd(backward, setup_context=setup_context)
        methods = {"forward": self._implementation, "setup_context": setup_context}
        methods = {name: staticmethod(method) for name, method in methods.items()}
        name = self._implementation.__name__
        self._function = type(
            name, (torch.autograd.Function,), methods | {"backward": staticmethod(backward)}
        )

    def __call__(self, *arguments):
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        refuse_tangents(tensors)
        if tensors[0].is_meta or is_watched(tensors):
            return self._registered(*arguments)
        if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in tensors):
            return self._implementation(*arguments)
        # Without a derivative the dispatcher's refuses that it is asked for.
        return (self._registered if self._function is None else self._function.apply)(*arguments)


def operator(name: str, **options: Any) -> Callable[[Callable], Operator]:
    """Decorates an operator's implementation; options are `torch.library.custom_op`'s."""
    return lambda implementation: Operator(name, implementation, options)
