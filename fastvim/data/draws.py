"""Random draws that depend on the seed, the epoch and the image or batch, and on nothing else.

Neither the model, nor the number of workers, nor what was drawn before changes them, so variants
of one seed see the same images in the same order, and a run resumes in the middle of an epoch.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What a draw is for; each purpose has numbers of its own. Values are part of the results."""

    ORDER = 0
    CROP = 1
    FLIP = 2
    ERASE = 3
    ERASE_PIXELS = 4
    TRANSFORM = 5
    MIXING = 6
    MASKING = 7
    MASKING_EVALUATION = 8


def generator(seed: int, epoch: int, stream: Stream, *place: int) -> np.random.Generator:
    """A fresh generator for one purpose; `place` is a batch or an image number."""
    return np.random.Generator(
        np.random.PCG64(np.random.SeedSequence([seed, epoch, stream, *place]))
    )


@contextmanager
def seeded_globals(seed: int, epoch: int, stream: Stream, *place: int) -> Iterator[None]:
    """Seed the global generators of `random`, numpy and torch (CPU), and put their states back.

    For library code, such as timm's, that draws from them.
    """
    before = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    seeds = generator(seed, epoch, stream, *place).integers(2**32, size=3)
    try:
        random.seed(int(seeds[0]))
        np.random.seed(int(seeds[1]))
        torch.default_generator.manual_seed(int(seeds[2]))
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.random.set_rng_state(before[2])
