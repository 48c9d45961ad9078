"""What a call needs of memory: predicted before anything is computed, and measured."""

import copy
import weakref
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastvim.training.costs import step_memory

# Control groups of Linux by what /proc/self/cgroup calls them, version 2 and 1: where they are
# mounted, the files of limit and use, and in memory.stat the cached files, which are given back.
_CGROUPS = {
    "": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": (
        *("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        "total_inactive_file",
    ),
}


class _Alive(TorchDispatchMode):
    """Follows the bytes of the storages that operators make, as long as each is alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Called in place of every operator."""
        found = func(*args, **(kwargs or {}))
        for value in tree_leaves(found):
            if isinstance(value, Tensor):
                self.hold(value)
        return found

    def hold(self, tensor: Tensor) -> None:
        """Count the storage of `tensor` until it is freed; one that is known, once."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size


def predicted_memory(
    model: nn.Module, images: tuple[int, ...], call: Callable[[nn.Module, Tensor], object]
) -> int:
    """Peak bytes of `call(model, images)`, weights and images included; nothing is computed.

    The call runs on tensors without data, so workspace inside operators is not seen, such as an
    image's intermediates that the fused block keeps for each thread.
    """
    with FakeTensorMode() as fake:
        model = _without_data(model, fake)
        alive = _Alive()
        device = next(model.parameters()).device
        batch = torch.empty(images, device=device)
        with alive:
            for tensor in (*model.parameters(), *model.buffers(), batch):
                alive.hold(tensor)
            call(model, batch)
        return alive.peak


def _without_data(model: nn.Module, fake: FakeTensorMode) -> nn.Module:
    """A copy of `model` whose parameters and buffers have shapes only."""
    memo = {}
    for tensor in (*model.parameters(), *model.buffers()):
        twin = fake.from_tensor(tensor)
        if isinstance(tensor, nn.Parameter):
            twin = nn.Parameter(twin, tensor.requires_grad)
        memo[id(tensor)] = twin
    return copy.deepcopy(model, memo)


def measured_memory(call: Callable[[], object], model: nn.Module, images: Tensor) -> int:
    """Peak bytes during `call`, with the weights and images but without those of other models."""
    if images.device.type != "cuda":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        return step_memory(call, model, optimizer, [images])
    device = images.device
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    own = sum(t.nbytes for t in (*model.parameters(), *model.buffers(), images))
    return torch.cuda.max_memory_allocated(device) - before + own


def available_memory(device: torch.device) -> float:
    """Bytes that `device` can still give; infinity where nobody says."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return min(_free_in_machine(), _free_under_limit(), free_in_cgroups(Path("/")))


def _free_in_machine() -> float:
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
        return 1024.0 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return float("inf")


def _free_under_limit() -> float:
    """What `ulimit -v` leaves to this process."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit == resource.RLIM_INFINITY:
            return float("inf")
        with open("/proc/self/statm") as file:
            return limit - int(file.read().split()[0]) * resource.getpagesize()
    except (ImportError, OSError, ValueError):
        return float("inf")


def free_in_cgroups(root: Path) -> float:
    """Bytes that the limits of a container, or of a service, leave; infinity without any.

    A process that takes more is killed. `root` is the folder that holds proc and sys.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return float("inf")
    free = [float("inf")]
    for line in lines:
        _, controllers, group = line.split(":", 2)
        for controller in _CGROUPS.keys() & set(controllers.split(",")):
            mount, limit, used, cached = _CGROUPS[controller]
            # The limits of the groups around it hold, too. Those outside a container are not seen.
            inner = PurePosixPath(group)
            for path in (inner, *inner.parents):
                folder = root / mount / path.relative_to("/")
                free.append(_free_in_cgroup(folder, limit, used, cached))
    return min(free)


def _free_in_cgroup(folder: Path, limit: str, used: str, cached: str) -> float:
    try:
        # No limit is the word `max` in version 2, and more than any machine has in version 1.
        left = int((folder / limit).read_text()) - int((folder / used).read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
        return left + int(dict(line.split() for line in lines).get(cached, 0))
    except (OSError, ValueError):
        return float("inf")
