"""FastMaskVim: masked autoencoding with an encoder that only sees the tokens that are kept.

Axes: B batch, L tokens of the full grid, K kept tokens, P = patch rows * columns * channels.
Source: arXiv 2502.00594 (FastMaskVim) and arXiv 2111.06377 (masked autoencoders).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvim.grid import TokenGrid
from fastvim.models.backbone import Block, LayoutTables, VisionMamba, run_blocks
from fastvim.models.config import IMAGE_AXES, MaskingConfig, ModelConfig
from fastvim.models.initialisation import initialise
from fastvim.models.masking import kept_places
from fastvim.models.mixer import RMSNorm


class Decoder(nn.Module):
    """Kept tokens (B, K, d_model) to pixels (B, L, P): unpooled blocks over the full grid."""

    def __init__(self, config: ModelConfig, masking: MaskingConfig, pixels: int):
        super().__init__()
        width = masking.decoder_width
        blocks = config.model_copy(
            update={"d_model": width, "depth": masking.decoder_depth, "dt_rank": None}
            | {"schedule": (), "post_ssm_norm": True}
        )
        self.config = blocks
        self.embed = nn.Linear(config.d_model, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(
            sincos_positions(config.grid_size, width)[None], requires_grad=False
        )
        self.blocks = nn.ModuleList(Block(blocks, 0.0) for _ in range(blocks.depth))
        self.norm = RMSNorm(width, eps=config.norm_eps)
        self.head = nn.Linear(width, pixels)

    def forward(self, x: Tensor, kept: Tensor, layout) -> Tensor:
        """`kept` (B, K) are the places of the tokens x; the rest become mask tokens."""
        x = self.embed(x)
        full = self.mask_token.to(x.dtype).expand(x.shape[0], self.pos_embed.shape[1], -1)
        x = full.scatter(1, kept[..., None].expand_as(x), x) + self.pos_embed
        x = run_blocks(x, self.blocks, [(layout, None)] * len(self.blocks))
        return self.head(self.norm(x))


class MaskedAutoencoder(nn.Module):
    """Images (B, C, H, W) to (loss, pred, mask), as `forward` says.

    `encoder` is a `VisionMamba` without a head (made here unless given), whose weights a
    classifier of the same configuration takes as they are.
    """

    def __init__(
        self,
        config: ModelConfig,
        masking: MaskingConfig,
        seed: int = 0,
        encoder: nn.Module | None = None,
    ):
        super().__init__()
        masking.check(config)
        self.config, self.masking = config, masking
        self.grid = TokenGrid(IMAGE_AXES, config.grid_size)
        if encoder is None:
            encoder = VisionMamba(config.model_copy(update={"num_classes": 0}), seed)
        self.encoder = encoder
        # Fixed positions: a masked autoencoder has too few tokens to learn them.
        self.encoder.pos_embed = nn.Parameter(
            sincos_positions(config.grid_size, config.d_model)[None], requires_grad=False
        )
        rows, cols = config.patch_size
        self.full_layout = LayoutTables(self.grid.layout(None, config.scan_order))
        self.decoder = Decoder(config, masking, rows * cols * config.in_channels)
        self.init_weights(seed)

    def init_weights(self, seed: int) -> None:
        """Draw all parameters anew but the fixed positions."""
        self.encoder.init_weights(seed)
        initialise(self.decoder, self.decoder.config, seed)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, ...]:
        """The loss (), the predicted patches (B, L, P) and the mask (B, L), 1 where removed.

        `noise` (B, L) in [0, 1) decides what is kept. Drawn if not given.
        """
        tokens = len(self.grid)
        if noise is None:
            noise = torch.rand(images.shape[0], tokens, device=images.device)
        kept = self.kept_places(noise)
        pred = self.decoder(self.encode(images, kept), kept, self.full_layout())
        mask = torch.ones_like(noise).scatter(1, kept, 0)
        return self.loss(images, pred, mask), pred, mask

    def kept_places(self, noise: Tensor) -> Tensor:
        """Places (B, K) that are kept, ascending; see `fastvim.models.masking`."""
        return kept_places(noise, self.config.grid_size, self.masking)

    def encode(self, images: Tensor, kept: Tensor) -> Tensor:
        """Normalised tokens (B, K, d_model) of the kept places."""
        encoder = self.encoder
        x = self.embed_kept(images, kept, encoder.patch_embed) + encoder.pos_embed[0, kept]
        places = {}
        for axis in set(encoder.schedule):
            pooled = None if axis == "None" else axis
            layout = self.grid.layout(
                pooled, encoder.config.scan_order, kept, self.masking.reverse_ids
            )
            divisor = None
            if pooled is not None and self.masking.pooling_divisor == "full":
                divisor = self.grid.sizes[self.grid.axes.index(pooled)]
            places[axis] = (layout, divisor)
        layouts = [places[axis] for axis in encoder.schedule]
        return encoder.norm(run_blocks(x, encoder.blocks, layouts))

    def embed_kept(self, images: Tensor, kept: Tensor, projection: nn.Conv2d) -> Tensor:
        """`projection` of the kept patches (B, K, width), without positions.

        Only these are projected: the convolution's kernel is its stride, so that it is a matrix.
        """
        batch = torch.arange(len(kept), device=kept.device)[:, None]
        width = self.config.grid_size[1]
        patches = self._on_grid(images)[batch, kept // width, kept % width]
        weight = projection.weight.permute(0, 2, 3, 1)
        return F.linear(patches.flatten(2), weight.flatten(1), projection.bias)

    def patches(self, images: Tensor) -> Tensor:
        """Images to patches (B, L, P), each in (row, column, channel) order."""
        return self._on_grid(images).flatten(3).flatten(1, 2)

    def _on_grid(self, images: Tensor) -> Tensor:
        """Images as (B, grid rows, grid columns, patch rows, patch columns, C), a view."""
        config = self.config
        if tuple(images.shape[1:]) != (config.in_channels, *config.image_size):
            raise ValueError(
                f"images are {tuple(images.shape[1:])}; this model takes "
                f"{(config.in_channels, *config.image_size)}"
            )
        (rows, cols), (height, width) = config.patch_size, config.grid_size
        x = images.reshape(images.shape[0], -1, height, rows, width, cols)
        return x.permute(0, 2, 4, 3, 5, 1)

    def unpatched(self, patches: Tensor) -> Tensor:
        """Images of patches (B, L, P): the inverse of `patches`."""
        (rows, cols), (height, width) = self.config.patch_size, self.config.grid_size
        x = patches.reshape(patches.shape[0], height, width, rows, cols, -1)
        x = x.permute(0, 5, 1, 3, 2, 4)
        return x.reshape(patches.shape[0], -1, height * rows, width * cols)

    def targets(self, images: Tensor) -> Tensor:
        """What the decoder is to predict (B, L, P): patches, normalised each by its own values."""
        target = self.patches(images)
        if not self.masking.normalise_targets:
            return target
        mean = target.mean(dim=-1, keepdim=True)
        variance = target.var(dim=-1, keepdim=True)
        return (target - mean) / (variance + 1e-6) ** 0.5

    def loss(self, images: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error over the removed patches."""
        error = (pred - self.targets(images)).square().mean(dim=-1)
        return (error * mask).sum() / mask.sum()

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, as the classifier's, and the mask token."""
        names = {f"encoder.{name}" for name in self.encoder.no_weight_decay()}
        exempt = ("A_log", "D", "bias", "conv_bias", "dt_bias", "mask_token", "pos_embed")
        return names | {
            f"decoder.{name}"
            for name, parameter in self.decoder.named_parameters()
            if parameter.ndim <= 1 or name.rsplit(".", 1)[-1] in exempt
        }


def sincos_positions(grid_size: tuple[int, int], width: int) -> Tensor:
    """Fixed positions (L, width) of a grid: half the channels say the row, half the column.

    Each half is sin and cos of the coordinate over 10000^(2 i / half), as in Vaswani et al. 2017.
    """
    if width % 4:
        raise ValueError(f"a width of {width} is not divisible by 4: no sin-cos positions")
    quarter = width // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, cols = (torch.arange(size, dtype=torch.float64) for size in grid_size)
    halves = []
    for coordinate in (
        rows[:, None].expand(grid_size).reshape(-1),
        cols[None, :].expand(grid_size).reshape(-1),
    ):
        angles = coordinate[:, None] * frequencies
        halves += [angles.sin(), angles.cos()]
    return torch.cat(halves, dim=1).float()
