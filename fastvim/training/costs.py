"""What a run costs: parameters, FLOPs, memory and speed, and how each is measured."""

import copy
import os
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from fastvim.kernels import flops
from fastvim.kernels.cpu_products import release_workspace


def count_parameters(model: nn.Module) -> int:
    """Parameters of the whole model: a probe's frozen encoder too, but no fixed positions."""
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return learning + getattr(model, "frozen_parameters", 0)


def count_gflops(model: nn.Module, image: Tensor) -> float:
    """Billions of operations of one forward pass of `image`, (1, C, H, W).

    As papers report: a multiplication with its addition is one operation, and element-wise work
    but that of norms is left out. Counted by fvcore, with attention's two products, fused or not,
    which it leaves out where they are fused; the suite's operators count their real work.
    """
    with warnings.catch_warnings(), torch.no_grad():
        # fvcore compiles TorchScript on import; tracing fixes shapes, which is what is wanted.
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(copy.deepcopy(model).eval(), image)
        analysis.set_op_handle(**flops.fvcore_handles())
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        unseen = getattr(model, "uncounted_operations", lambda: 0)()
        return (analysis.total() + unseen * image.shape[0]) / 1e9


def step_memory(
    take_step: Callable[[], None],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    others: Iterable[Tensor],
) -> int:
    """Peak bytes of tensors alive during `take_step` on the CPU.

    Weights, optimiser state and `others` (an average's weights, the batch) plus the highest sum
    of what PyTorch's allocator gave and took back within the step, as its profiler records it.
    Unlike the resident size of the process this does not depend on what ran before.
    """
    # The profiler warns when memory that it did not see given is taken back.
    optimizer.zero_grad(set_to_none=True)
    release_workspace()
    # And it prints its own start and stop otherwise.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    state = [value for entry in optimizer.state.values() for value in entry.values()]
    held = [*model.parameters(), *model.buffers(), *state, *others]
    alive = sum(tensor.nbytes for tensor in held if isinstance(tensor, Tensor))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        take_step()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    change = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        change += event.nbytes()
        highest = max(highest, change)
    return alive + highest


class Speed:
    """Training images per second: the median over windows of steps, waiting for data included."""

    def __init__(self, rates: Tensor | None = None) -> None:
        self._rates: list[float] = [] if rates is None else rates.tolist()

    def add(self, images: int, seconds: float) -> float:
        """Record a window; its rate."""
        self._rates.append(images / max(seconds, 1e-9))
        return self._rates[-1]

    @property
    def rates(self) -> Tensor:
        """Every window so far, (windows,)."""
        return torch.tensor(self._rates, dtype=torch.float64)

    def median(self) -> float | None:
        """The median without the first windows, in which caches fill; None before any."""
        settled = self._rates[min(3, len(self._rates) // 2) :]
        return float(torch.tensor(settled).quantile(0.5)) if settled else None
