"""Token grids: named axes with sizes, the orders in which a scan visits them, the axis it pools."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastvim.errors import UserError, nearest
from fastvim.kernels import ScanLayout


@dataclass(frozen=True)
class TokenGrid:
    """Tokens of an image, a multichannel image or a video, in row-major memory order.

    `axes` names the axes, slowest first (`("row", "col")`, `("row", "col", "channel")`,
    `("frame", "row", "col")`); `sizes` are tokens along each. Axes in `unpooled` (channels) are
    never pooled and keep their place in a scan. `class_token` is the place of a class token in
    memory, which the scan visits there too, or None.
    """

    axes: tuple[str, ...]
    sizes: tuple[int, ...]
    unpooled: tuple[str, ...] = ()
    class_token: int | None = None

    def __len__(self) -> int:
        tokens = math.prod(self.sizes)
        return tokens + (self.class_token is not None)

    def scan_order(self, pooled: str | None, base: tuple[str, ...] | None = None) -> tuple:
        """Axes from outermost to innermost, when `pooled` is pooled.

        The pooled axis takes the innermost place among those of `base` that may be pooled:
        on (row, col, channel), pooling row scans (col, row, channel).
        """
        base = base or self.axes
        if pooled is None:
            return base
        if pooled not in self.axes or pooled in self.unpooled:
            allowed = [axis for axis in self.axes if axis not in self.unpooled]
            raise UserError(
                f"schedule: the grid has no axis {pooled!r} to pool{nearest(pooled, allowed)}; "
                f"it has {', '.join(allowed)}"
            )
        poolable = [axis for axis in base if axis not in self.unpooled and axis != pooled]
        turned = iter([*poolable, pooled])
        return tuple(axis if axis in self.unpooled else next(turned) for axis in base)

    def layout(
        self,
        pooled: str | None,
        base: tuple[str, ...] | None = None,
        kept: Tensor | None = None,
        reverse_ids: str = "flipped",
    ) -> ScanLayout:
        """Tables for a scan that pools `pooled` (None: nothing).

        `kept` (B, K) holds the memory places of the tokens that are there, ascending, when some
        are missing; the layout then speaks of places among the kept ones. `reverse_ids` is
        `flipped` (each token belongs to the same step in both directions) or `as_published`
        (FastMaskVim's reverse direction reads the step of the token at the mirrored place).
        """
        order = self.scan_order(pooled, base)
        places = torch.arange(math.prod(self.sizes)).reshape(self.sizes)
        places = places.permute([self.axes.index(axis) for axis in order])
        steps, n_steps = None, len(self)
        if pooled is not None:
            shape = [1 if axis == pooled else places.shape[i] for i, axis in enumerate(order)]
            n_steps = math.prod(shape)
            steps = torch.arange(n_steps).reshape(shape).expand(places.shape).reshape(-1)
        places = places.reshape(-1)
        if self.class_token is not None:
            places = places + (places >= self.class_token)
            places = torch.cat(
                [
                    places[: self.class_token],
                    torch.tensor([self.class_token]),
                    places[self.class_token :],
                ]
            )
        if kept is not None:
            return _kept_layout(places, steps, n_steps, kept, reverse_ids)
        in_memory_order = bool((places == torch.arange(len(places))).all())
        return ScanLayout(
            order=None if in_memory_order else places.int(),
            steps=None if steps is None else steps.int(),
            n_steps=n_steps,
        )


def _kept_layout(
    places: Tensor, steps: Tensor | None, n_steps: int, kept: Tensor, reverse_ids: str
) -> ScanLayout:
    """The layout of the tokens `kept` (B, K) of a full scan over `places` with `steps` (L,)."""
    rank = torch.empty_like(places)
    rank[places] = torch.arange(len(places))
    times, order = rank.to(kept.device)[kept].sort(dim=1)
    if steps is None:
        return ScanLayout(order=order.int(), n_steps=kept.shape[1])
    kept_steps = steps.to(kept.device)[times]
    reverse_steps = None
    if reverse_ids == "as_published":
        reverse_steps = (n_steps - 1 - kept_steps.flip(1)).int()
    return ScanLayout(order.int(), kept_steps.int(), reverse_steps, n_steps)
