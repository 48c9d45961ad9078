import pytest
import timm
import torch

from fastvim.errors import UserError
from fastvim.models.config import MaskingConfig
from fastvim.models.masked_transformer import MaskedTransformer

MASKING = MaskingConfig(decoder_width=32, decoder_depth=1)


def vit(**settings):
    torch.manual_seed(0)
    size = {"img_size": 28, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    pooled = {"class_token": False, "global_pool": "avg", "fc_norm": False}
    return timm.create_model("vit_tiny_patch16_224", in_chans=1, **(size | pooled | settings))


def images():
    return torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def test_keeping_everything_is_timms_model():
    model = MaskedTransformer(vit(), MaskingConfig(mask_ratio=0)).eval()
    every = torch.arange(49).expand(3, -1)
    torch.testing.assert_close(
        model.encode(images(), every), model.encoder.forward_features(images())
    )


def test_removed_tokens_have_no_influence():
    model = MaskedTransformer(vit(), MASKING).eval()
    noise = torch.rand(3, 49, generator=torch.Generator().manual_seed(2))
    kept = model.kept_places(noise)
    assert kept.shape == (3, 12)
    shown = torch.zeros(3, 49, 16).scatter(1, kept[..., None].expand(-1, -1, 16), 1.0)
    visible = model.unpatched(shown)
    assert torch.equal(model.encode(images(), kept), model.encode(images() * visible, kept))
    loss, pred, mask = model(images(), noise)
    loss.backward()
    assert pred.shape == (3, 49, 16) and int(mask.sum()) == 3 * 37
    assert all(
        (p.grad is None) == name.endswith("pos_embed") for name, p in model.named_parameters()
    )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: timm.create_model("test_mambaout"), "only timm's vit_"),
        (lambda: vit(class_token=True), "model.class_token: none"),
        (lambda: vit(fc_norm=True), "model.class_token: none"),
        (lambda: vit(embed_dim=30), "d_model: 30 is no multiple of 4"),
    ],
)
def test_other_models_are_refused(model, message):
    with pytest.raises(UserError, match=message):
        MaskedTransformer(model(), MASKING)
