"""How the fused mixer's work is cut for a GPU: by a rule of the shape, the same on every GPU.

Nothing is tuned by trying: the first call is as fast as the others, and a result does not depend
on the device it was tuned on.
"""

from dataclasses import dataclass

from fastvim.kernels.triton.launch import blocks, power_of_two

_PROGRAMS = 512  # programs of 8 warps that fill the largest GPU more than once
# Of pass two's backward, whose threads take 128 registers: as many fit the largest GPU at once.
_BACKWARD_WARPS = 2048
_BACKWARD_PROGRAMS = 256
_BACKWARD_TOKENS = 12  # of a program at least: it leaves two rows for the norm's gradients
_WALKERS = 8  # warps of a program of pass one's backward


@dataclass(frozen=True)
class MixerPlan:
    """Tiles (tokens, channels) and warps of the two passes, and how much a program does."""

    pool: tuple[int, int]  # one warp
    tokens: int  # of a tile of pass two
    segments: int  # blocks of channels in a row
    block: int
    warps: int
    share: int  # tokens of a program of pass two
    group: int  # of its backward: steps of a program (tokens where nothing is pooled)
    parts: int  # programs that share a step
    run: int  # tokens that a warp of pass one's backward walks
    run_block: int
    walkers: int  # warps of such a program, whose sums are added


def plan_mixer(batch: int, length: int, channels: int, n_steps: int, pooled: bool) -> MixerPlan:
    """Sizes for a shape; the same on every GPU, so that results are too."""
    # A row of up to five blocks wastes little (384, 768 and 1536 channels are three, 2560 five)
    # and leaves a thread at most six values of a tile, so that they stay in registers.
    block = max(64, power_of_two(blocks(channels, 5)))
    segments = blocks(channels, block)
    tokens = max(1, 4 // segments)
    share = max(tokens, min(64, batch * length // _PROGRAMS))
    warps = min(16, block // 64)
    programs = min(_BACKWARD_WARPS // warps, batch * length // _BACKWARD_TOKENS)
    programs = max(_BACKWARD_PROGRAMS, programs)
    if pooled:
        parts = max(1, min(programs // (batch * n_steps), length // n_steps // tokens))
        group = min(64, blocks(batch * n_steps, programs))
    else:
        parts, group = 1, max(tokens, min(256, batch * length // programs))
    width = power_of_two(channels)
    run_block = min(64, width)
    run = batch * length * blocks(channels, run_block) // (2 * _PROGRAMS)
    run = max(16, min(256, run))
    # Runs of an image are of one length, but for rounding.
    run = blocks(length, blocks(length, run))
    return MixerPlan(
        pool=(4, min(128, width)),
        tokens=tokens,
        segments=segments,
        block=block,
        warps=warps,
        share=share,
        group=group,
        parts=parts,
        run=run,
        run_block=run_block,
        walkers=min(_WALKERS, power_of_two(batch * blocks(length, run))),
    )
