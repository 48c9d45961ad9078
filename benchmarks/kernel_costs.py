"""Bytes and arithmetic of the Triton kernels, of the least the two-pass design moves, and of peers.

Counted from launches that were listed on tensors without data, none of it measured. Axes as in
`kernels/triton`. DRAM bytes count each tensor of a launch once: what neighbouring programs read
twice at the border of their tiles (halos), and weights, are taken to come from the L2 cache;
`halo_bytes` says how much that is, were none of it cached.
"""

import math
from dataclasses import dataclass

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Of these tensors a kernel touches a half: x, not z.
HALVES = {("pool_tokens", "x"), ("convolve_backward", "x"), ("convolve_backward", "grad_x")}
HALVES |= {("finish_backward", "grad_x")}
# Read and written: chunks' states are joined in place.
TWICE = {("scan_carry", "states")}
VIEWS = {"view", "transpose", "expand", "slice", "select", "t", "permute", "unsqueeze", "detach"}
VIEWS |= {"split", "split_with_sizes", "chunk", "_unsafe_view", "empty", "new_empty", "empty_like"}
VIEWS |= {"as_strided", "alias", "empty_strided", "new_empty_strided", "squeeze", "reshape"}


@dataclass
class Cost:
    """Bytes to and from DRAM, floating-point operations, exponentials and reciprocals."""

    bytes: float = 0.0
    halo_bytes: float = 0.0
    flops: float = 0.0
    special: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, f) + getattr(other, f) for f in self.__dataclass_fields__))

    def seconds(self, gpu: dict) -> float:
        """The longest of what memory, arithmetic and special functions take at their peaks."""
        return max(
            self.bytes / gpu["bytes"], self.flops / gpu["flops"], self.special / gpu["special"]
        )


def size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def launch_cost(launch) -> Cost:
    """Cost of one launch of a kernel of `kernels/triton`."""
    name, given = launch.kernel.__name__, launch.arguments
    moved = 0.0
    for argument, value in given.items():
        if isinstance(value, Tensor):
            # An expanded tensor is as large as its memory.
            once = min(size(value), value.untyped_storage().nbytes())
            share = 0.5 if (name, argument) in HALVES else 1.0
            # A first sweep over chunks wants their last states alone.
            if name == "scan_forward" and argument == "C" and not given["OUTPUT"]:
                share = 0.0
            moved += once * share * (2 if (name, argument) in TWICE else 1)
    cost = Cost(bytes=moved)
    taps = given.get("K", 0)
    if "batch" in given:
        cells = given["batch"] * given["length"] * given["channels"]
        reach, element = 2 * (taps - 1), given["x"].element_size()
    if name == "pool_tokens":
        per_program = given["TILE"]
        if given["POOLING"] != "none":
            per_program = given["length"] / given["n_steps"]
        cost.halo_bytes = cells * element * reach / per_program
        cost.flops, cost.special = cells * 2 * (2 * taps + 4), cells * 4
    elif name == "finish_tokens":
        cost.halo_bytes = cells * element * reach / given["share"]
        cost.flops, cost.special = cells * (2 * (2 * taps + 7) + 12), cells * 6
    elif name == "finish_backward":
        per_program = given["share"]
        if given["POOLED"]:
            per_program = given["length"] / given["n_steps"] / given["parts"]
        cost.halo_bytes = cells * element * reach / per_program
        cost.flops, cost.special = cells * (2 * (2 * taps + 7) + 32), cells * 6
    elif name == "convolve_backward":
        cost.halo_bytes = cells * element * 2 * reach / given["run"]
        cost.flops, cost.special = cells * 2 * (6 * taps + 14), cells * 4
    elif name.startswith("scan_"):
        count = math.prod(launch.grid[1:2]) * given["channels"] * given["n_states"]
        steps = given["chunks"] if name == "scan_carry" else given["length"]
        per_state = {"scan_forward": 8 if given.get("OUTPUT") else 6, "scan_carry": 4}
        per_state |= {"scan_adjoint_ends": 6, "scan_backward": 33}
        cost.flops = count * steps * per_state[name]
        cost.special = count * steps * (3 if name == "scan_backward" else 1)
    return cost


class Operations(TorchDispatchMode):
    """Adds up what torch's own operators move and compute, each its inputs and outputs once."""

    def __init__(self):
        super().__init__()
        self.cost = Cost()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in VIEWS:
            return result
        outputs = result if isinstance(result, tuple | list) else [result]
        tensors = [t for t in (*args, *outputs) if isinstance(t, Tensor)]
        for listed in args:
            if isinstance(listed, tuple | list):
                tensors += [t for t in listed if isinstance(t, Tensor)]
        if name in ("copy_", "zero_", "fill_"):
            tensors = tensors[: 2 if name == "copy_" else 1]
        # An expanded tensor is as large as its memory.
        self.cost.bytes += sum(min(size(t), t.untyped_storage().nbytes()) for t in tensors)
        if name in ("bmm", "baddbmm"):
            left, right = args[-2:]
            self.cost.flops += 2 * left.shape[0] * left.shape[1] * left.shape[2] * right.shape[2]
        return result


def least(
    batch, length, channels, steps, states, rank, element, pooled, split
) -> tuple[float, float]:
    """Bytes that the two-pass design cannot but move, forward and backward.

    Each stage reads its inputs and writes its outputs once: pass one, the two projections, the
    scan, pass two; backward, pass two and one again, the scan, and two products for each
    projection, whose outputs are recomputed. Weights and tables are left out, and so is all that
    is kept between tiles and chunks and all partial sums.

    A `split` scan reads its inputs twice: no chunk knows the state that enters it before those
    ahead of it have been read, and programs do not wait for one another on the GPU. The backward's
    chunks are entered from both sides.
    """
    token = batch * length * channels * element
    step = 2 * batch * steps * channels * 4
    row = 2 * batch * steps * (rank + 2 * states) * 4
    dt, bc = row * rank / (rank + 2 * states), row * 2 * states / (rank + 2 * states)
    project = (step + row) + (dt + step)
    ends = step + step + bc / 2 if split else 0.0
    forward = (token + step) + project + ends + (step + step + bc + step) + (3 * token + step)
    # Pass two: x, z, grad_out, scanned to grad_z, grad_merged and the sums of the steps, which
    # are one direction's, since both have the same; where nothing is pooled they are grad_merged.
    sums = step / 2 if pooled else 0.0
    incoming = sums if pooled else token
    adjoint_ends = step + bc / 2 + incoming if split else 0.0
    scan = ends + adjoint_ends + step + step + bc + incoming + step + step + bc
    products = (step + dt) + (step + dt) + (row + step) + (row + step + step)
    backward = (5 * token + step + sums) + project + scan + products + (3 * token + step)
    return forward, backward


def published_chain(batch, length, channels, steps, states, rank, element, taps=4) -> Cost:
    """The unfused chain's forward: each operation a kernel that reads and writes memory.

    Per direction: convolution with its SiLU (one kernel, as causal-conv1d's), mean over the
    pooled axis, two projections, the CUDA scan, repeat, skip as a product and a sum; the reverse
    direction turns x and its result around. Then: sum, half, norm, SiLU of z, product.
    """
    token = batch * length * channels * element
    step = batch * steps * channels * element
    row = batch * steps * (rank + 2 * states) * element
    direction = 2 * token + (token + step) + (step + row) + (row + step) + (3 * step + row)
    direction += (step + token) + 2 * token + 3 * token
    turned = 4 * token
    last = 3 * token + 2 * token + 2 * token + 2 * token + 3 * token
    cells = batch * length * channels
    flops = cells * (2 * (2 * taps + 7) + 12) + 2 * batch * steps * channels * states * 8
    special = cells * 6 + 2 * batch * steps * channels * states
    return Cost(2 * direction + turned + last, 0.0, flops, special)


def unpooled_mamba_ssm(batch, length, channels, states, rank, element, taps=4) -> Cost:
    """Vim's forward with mamba-ssm's kernels: no pooling, z gated inside each scan."""
    token = batch * length * channels * element
    row = batch * length * (rank + 2 * states) * element
    direction = 2 * token + (token + row) + (row + token) + (4 * token + row)
    turned = 2 * 2 * token + 2 * token
    cells = batch * length * channels
    flops = cells * (2 * (2 * taps + 7) + 12) + 2 * cells * states * 8
    return Cost(2 * direction + turned + 3 * token, 0.0, flops, cells * 6 + 2 * cells * states)
