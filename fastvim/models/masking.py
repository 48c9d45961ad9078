"""Which tokens of a grid a masked autoencoder keeps.

Axes: B batch, L tokens of the full grid (row by row), K kept tokens.
"""

import torch
from torch import Tensor

from fastvim.models.config import MaskingConfig


def kept_places(noise: Tensor, grid_size: tuple[int, int], masking: MaskingConfig) -> Tensor:
    """Places (B, K) that are kept, ascending, for `noise` (B, L); K is `masking.kept_tokens(L)`.

    - `random`: the places of the smallest noise (arXiv 2111.06377);
    - `block`: whole squares of `block_size` tokens are removed, in the order of the noise at
      their first corner; the last of them in part, so that every image keeps K;
    - `row-balanced`: every row keeps equally many, to within one, the smallest of its own.
    """
    kept = masking.kept_tokens(noise.shape[1])
    key = noise
    if masking.pattern != "random":
        rows, cols = grid_size
        grid = noise.reshape(-1, rows, cols)
        if masking.pattern == "row-balanced":
            # The smallest of every row come first, then the second smallest, and so on.
            order = grid.argsort(dim=2).argsort(dim=2).flatten(1)
        else:
            size = masking.block_size
            row, col = (torch.arange(n, device=noise.device) // size * size for n in grid_size)
            corners = grid[:, row][:, :, col].flatten(1)
            # A rank by the corner's noise; tokens of one block have the same.
            order = torch.searchsorted(corners.sort(dim=1).values, corners)
        # Within equal order, by the rank of a token's own noise.
        key = order * noise.shape[1] + noise.argsort(dim=1).argsort(dim=1)
    return key.argsort(dim=1)[:, :kept].sort(dim=1).values
