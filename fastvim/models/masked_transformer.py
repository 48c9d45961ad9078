"""A masked autoencoder with timm's vision transformer as encoder: the yardstick for FastMaskVim.

Decoder, positions, masking and loss are those of `MaskedAutoencoder`, so that only the encoder
differs. Source: arXiv 2111.06377.
"""

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fastvim.errors import UserError
from fastvim.models.config import MaskingConfig, ModelConfig
from fastvim.models.initialisation import initialise
from fastvim.models.masked_autoencoder import MaskedAutoencoder


class MaskedTransformer(MaskedAutoencoder):
    """Images (B, C, H, W) to (loss, pred, mask), as `MaskedAutoencoder`.

    `vit` has no class token, normalises tokens (not their mean), and has drawn its own weights.
    Raises UserError for another model of timm's.
    """

    def __init__(self, vit: nn.Module, masking: MaskingConfig, seed: int = 0):
        if not isinstance(vit, VisionTransformer):
            raise UserError(
                f"model.name: {type(vit).__name__}: only timm's vit_* and deit_* models can be "
                "masked autoencoders"
            )
        if vit.cls_token is not None or isinstance(vit.norm, nn.Identity):
            raise UserError("class_token: set model.class_token: none for a masked autoencoder")
        embed = vit.patch_embed
        config = ModelConfig(
            image_size=embed.img_size,
            patch_size=embed.patch_size,
            in_channels=embed.proj.in_channels,
            num_classes=0,
            d_model=vit.embed_dim,
            schedule=(),
        )
        vit.reset_classifier(0)
        super().__init__(config, masking, seed, encoder=vit)

    def init_weights(self, seed: int) -> None:
        """Draw the decoder anew; the encoder stays as timm made it."""
        initialise(self.decoder, self.decoder.config, seed)

    def encode(self, images: Tensor, kept: Tensor) -> Tensor:
        """Normalised tokens (B, K, d_model) of the kept places."""
        vit = self.encoder
        x = self.embed_kept(images, kept, vit.patch_embed.proj)
        x = vit.patch_embed.norm(x) + vit.pos_embed[0, kept]
        return vit.norm(vit.blocks(vit.norm_pre(x)))
