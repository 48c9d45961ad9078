"""A residual block's arguments and what it keeps: as Python sees them, and as torch's schema."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from fastvim.kernels.mixer_schema import SETTINGS, TABLES, WEIGHTS
from fastvim.kernels.operator import scatter_back
from fastvim.kernels.reference import MixerWeights, ScanLayout
from fastvim.kernels.shapes import check_mixer, check_tensors

# Of a block's tensors the first have gradients, then come tables.
DIFFERENTIATED = 3 + WEIGHTS
TENSORS = DIFFERENTIATED + TABLES


class BlockArguments(NamedTuple):
    """All of a residual block but the tokens."""

    norm_weight: Tensor  # (d_model,)
    in_proj: Tensor  # (2 D, d_model)
    out_proj: Tensor  # (d_model, D)
    weights: MixerWeights  # but for A, which is log(-A) here
    layout: ScanLayout
    settings: dict[str, Any]  # of the mixer: pooling, scale, merge, gate, eps
    norm_eps: float

    def tensors(self) -> tuple[Tensor | None, ...]:
        # By name: torch 2.6 doesn't compile slices of named tuples.
        own, layout = (self.norm_weight, self.in_proj, self.out_proj), self.layout
        return (*own, *self.weights, layout.order, layout.steps, layout.reverse_steps)

    def with_tensors(self, tensors: Sequence[Tensor | None]) -> "BlockArguments":
        """The same block with others, in the order of `tensors`."""
        return _block(tensors, self.layout.n_steps, self.settings, self.norm_eps)


def check_block(x: Tensor, block: BlockArguments) -> None:
    """ValueError where a block does not fit its tokens x (B, L, d_model), dtypes too."""
    check_mixer(x, block.weights, block.layout)
    width, channels = x.shape[2], block.weights.A.shape[1]
    own = (
        ("norm_weight", block.norm_weight, ((width,),)),
        ("in_proj", block.in_proj, ((2 * channels, width),)),
        ("out_proj", block.out_proj, ((width, channels),)),
    )
    check_tensors(x.device, own)
    for place, tensor in enumerate(block.tensors()[:DIFFERENTIATED]):
        if tensor is not None and tensor.dtype != x.dtype:
            name = (*block._fields[:3], *MixerWeights._fields)[place]
            raise ValueError(f"{name} is {tensor.dtype}, but the tokens are {x.dtype}")


class Kept(NamedTuple):
    """What a block's backward takes from its forward."""

    normal: Tensor  # (B, L, d_model): after the norm
    scale: Tensor  # (B, L): of the norm
    xz: Tensor  # (B, L, 2 D): after in_proj
    merged: Tensor  # (B, L, D): before out_proj
    pooled: Tensor  # (2, B, S, D)
    scanned: Tensor  # (2, B, S, D)

    @classmethod
    def allocate(cls, x: Tensor, block: BlockArguments) -> "Kept":
        (batch, length, _), channels = x.shape, block.out_proj.shape[1]
        steps = length if block.layout.steps is None else block.layout.n_steps
        shapes = (
            x.shape,
            (batch, length),
            (batch, length, 2 * channels),
            (batch, length, channels),
            (2, batch, steps, channels),
            (2, batch, steps, channels),
        )
        return cls(*map(x.new_empty, shapes))


class Ran(NamedTuple):
    """A block that ran, for its backward."""

    x: Tensor
    block: BlockArguments
    kept: Kept


# Of blocks one after the other: lists as long as there are blocks, but for `tensors`, those of all
# blocks that are not None, and `present`, which says of each whether it is.
BLOCKS = (
    "Tensor[] tensors, bool[] present, SymInt[] n_steps, str[] pooling, float[] scale, "
    "str[] merge, bool[] gate, float[] eps, float[] norm_eps"
)


def as_arguments(blocks: Sequence[BlockArguments]) -> tuple[list, ...]:
    """The arguments of `BLOCKS`."""
    tensors = [tensor for block in blocks for tensor in block.tensors()]
    settings = [
        (block.layout.n_steps, *(block.settings[name] for name in SETTINGS), block.norm_eps)
        for block in blocks
    ]
    columns = [list(column) for column in zip(*settings, strict=True)]
    return [t for t in tensors if t is not None], [t is not None for t in tensors], *columns


def as_blocks(
    tensors: Sequence[Tensor], present: Sequence[bool], *columns: Sequence
) -> list[BlockArguments]:
    """The blocks of the arguments of `BLOCKS`."""
    there, blocks = iter(tensors), []
    for place, (n_steps, *settings, norm_eps) in enumerate(zip(*columns, strict=True)):
        own = present[place * TENSORS : (place + 1) * TENSORS]
        named = dict(zip(SETTINGS, settings, strict=True))
        blocks.append(_block(scatter_back(own, there), n_steps, named, norm_eps))
    return blocks


def as_ran(flat: Sequence[Tensor], blocks: Sequence[BlockArguments]) -> list[Ran]:
    """The blocks that ran, of their inputs and what they kept, one after the other."""
    each = 1 + len(Kept._fields)
    parts = (flat[place * each : (place + 1) * each] for place in range(len(blocks)))
    return [Ran(x, block, Kept(*kept)) for (x, *kept), block in zip(parts, blocks, strict=True)]


def _block(
    tensors: Sequence[Tensor | None], n_steps: int, settings: dict[str, Any], norm_eps: float
) -> BlockArguments:
    weights = MixerWeights(*tensors[3:DIFFERENTIATED])
    layout = ScanLayout(*tensors[DIFFERENTIATED:], n_steps)
    return BlockArguments(*tensors[:3], weights, layout, settings, norm_eps)
