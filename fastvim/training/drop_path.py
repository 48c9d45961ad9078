"""Stochastic depth whose draws belong to images, not to forward passes.

timm's DropPath draws anew in every forward pass, so splitting a batch changes which images skip
which block. Here one number is drawn for each module and image of the global batch, and a
micro-batch looks up its own.
"""

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from fastvim.training.seeds import derive_seed


class StepDraws:
    """The uniform numbers of one step, (modules, images), and which images are being passed."""

    def __init__(self, seed: int) -> None:
        self.modules = 0
        self._seed = seed
        self._numbers: Tensor | None = None
        self._images = slice(0, 0)

    def draw(self, step: int, batch_size: int, device: torch.device) -> None:
        """Draw for a global batch of `batch_size` images at `step`."""
        if self.modules:
            generator = torch.Generator().manual_seed(derive_seed(self._seed, "drop path", step))
            numbers = torch.rand(self.modules, batch_size, generator=generator)
            self._numbers = numbers.to(device, non_blocking=True)

    def select(self, start: int, stop: int) -> None:
        """The next forward pass sees images `start` to `stop` of the global batch."""
        self._images = slice(start, stop)

    def clear(self) -> None:
        """Forget the numbers: the step is over."""
        self._numbers = None

    def numbers(self, module: int) -> Tensor:
        """Numbers in [0, 1) of the selected images, (images,)."""
        if self._numbers is None:
            raise RuntimeError("drop path in training mode before a step was drawn")
        return self._numbers[module, self._images]


class DrawnDropPath(DropPath):
    """Drops the residual branch of an image with probability `drop_prob` and rescales the rest."""

    def __init__(self, drop_prob: float, draws: StepDraws) -> None:
        super().__init__(drop_prob)
        self._draws = draws
        self._index = draws.modules
        draws.modules += 1

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to the same shape."""
        if not self.training:
            return x
        kept = self._draws.numbers(self._index) >= self.drop_prob
        scale = kept.to(x.dtype) / (1 - self.drop_prob)
        return x * scale.view(-1, *[1] * (x.ndim - 1))


def draw_by_image(model: nn.Module, seed: int) -> StepDraws:
    """Replace every active timm DropPath of `model` in place; returns what they draw from."""
    draws = StepDraws(seed)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is DropPath and child.drop_prob:
                setattr(module, name, DrawnDropPath(child.drop_prob, draws))
    return draws
