import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from fastvim.kernels import available, use_backend
from fastvim.models import resolve_config
from fastvim.models.backbone import VisionMamba
from fastvim.models.checkpoints import from_official, to_official
from fastvim.models.config import MaskingConfig
from fastvim.models.masked_autoencoder import MaskedAutoencoder, sincos_positions

VECTORS = sorted(
    (Path(__file__).resolve().parents[3] / "shared" / "parity").glob("fastmaskvim-*.safetensors")
)
BACKENDS = [name for name in ("reference", "cpu") if available()[name] is None]


@pytest.mark.skipif(not VECTORS, reason="no parity vectors beside the checkout")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_loss_prediction_and_gradients_are_the_published_ones(path, backend):
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
    model = from_official(state, config)
    with use_backend(backend):
        loss, pred, mask = model(tensors["input"], noise=tensors["noise"])
        loss.backward()

    def close(found, expected):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)

    close(loss.reshape(1), tensors["loss"])
    close(pred, tensors["pred"])
    assert torch.equal(mask, tensors["mask"])
    gradients = to_official(model, lambda parameter: parameter.grad)
    assert set(gradients) == {k.removeprefix("grad.") for k in tensors if k.startswith("grad.")}
    for name, gradient in gradients.items():
        close(gradient, tensors[f"grad.{name}"])


def autoencoder(schedule=("col", "row"), pooling="mean", **masking):
    values = {"schedule": list(schedule), "pooling": pooling}
    config = resolve_config("fastvim_femto", values | {"image_size": [12, 16], "patch_size": 2})
    settings = {"mask_ratio": 0.6, "decoder_width": 32, "decoder_depth": 1} | masking
    return MaskedAutoencoder(config, MaskingConfig(**settings), seed=1).double()


def images(batch=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 1, 12, 16, dtype=torch.float64, generator=generator)


def swap_directions(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.shape[:1] == (2,) and "mixer" in name:
                parameter.copy_(parameter.flip(0))


@pytest.mark.parametrize(
    ("reverse_ids", "equivariant"), [("flipped", True), ("as_published", False)]
)
def test_reversing_the_grid_and_the_directions(reverse_ids, equivariant):
    """The right reverse direction sees a reversed image as the forward one saw the image."""
    model = autoencoder(reverse_ids=reverse_ids)
    kept = model.kept_places(torch.rand(2, 48, generator=torch.Generator().manual_seed(4)))
    mirrored = autoencoder(reverse_ids=reverse_ids)
    mirrored.load_state_dict(model.state_dict())
    swap_directions(mirrored)
    with torch.no_grad():
        mirrored.encoder.pos_embed.copy_(model.encoder.pos_embed.flip(1))
        mirrored.encoder.patch_embed.weight.copy_(model.encoder.patch_embed.weight.flip(2, 3))
        tokens = model.encode(images(), kept)
        reversed_tokens = mirrored.encode(images().flip(2, 3), 47 - kept.flip(1)).flip(1)
    assert torch.allclose(tokens, reversed_tokens, rtol=1e-9, atol=1e-11) == equivariant


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 16, 12\); this model takes \(1, 12, 16\)"):
        autoencoder()(images().transpose(2, 3))


def test_kept_patches_are_embedded_as_by_the_convolution():
    """Patches that are not square, of several channels: the order inside a patch counts."""
    config = resolve_config(
        "fastvim_femto", {"image_size": [12, 16], "patch_size": [3, 4], "in_channels": 3}
    )
    model = MaskedAutoencoder(config, MaskingConfig(decoder_width=32, decoder_depth=1)).double()
    x = torch.randn(2, 3, 12, 16, dtype=torch.float64)
    kept = torch.tensor([[0, 5, 6], [2, 3, 15]])
    every = model.encoder.patch_embed(x).flatten(2).transpose(1, 2)
    expected = every.gather(1, kept[..., None].expand(-1, -1, every.shape[2]))
    found = model.embed_kept(x, kept, model.encoder.patch_embed)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_keeping_everything_is_the_classifier_backbone():
    model = autoencoder(mask_ratio=0.0)
    backbone = VisionMamba(model.encoder.config).double()
    backbone.load_state_dict(model.encoder.state_dict())
    every = torch.arange(48).expand(2, -1)
    expected = backbone.forward_features(images())
    torch.testing.assert_close(model.encode(images(), every), expected, rtol=1e-9, atol=1e-12)


def test_the_decoders_scan_order_moves_with_the_model():
    """Its table is no weight, and none is made in a forward, which would be on the CPU."""
    config = resolve_config("fastvim_femto", {"image_size": 8, "scan_order": ["col", "row"]})
    model = MaskedAutoencoder(config, MaskingConfig(decoder_width=4, decoder_depth=1))
    assert not any("layout" in name for name in model.state_dict())
    elsewhere = torch.device("meta")
    _, pred, _ = model.to(elsewhere)(torch.empty(1, 1, 8, 8, device=elsewhere))
    assert pred.shape == (1, 16, 4) and pred.device == elsewhere


def test_the_divisor_is_the_full_row_or_the_kept():
    """With one kept token in every row, full divides by the columns and kept by one."""
    kept = torch.arange(6)[None] * 8
    full = autoencoder(schedule=["col"], pooling_divisor="full")
    scaled = autoencoder(schedule=["col"], pooling_divisor="kept")
    scaled.load_state_dict(full.state_dict())
    for block in scaled.encoder.blocks:
        block.mixer.config = block.mixer.config.model_copy(update={"pooling_scale": 1 / 8})
    torch.testing.assert_close(full.encode(images(1), kept), scaled.encode(images(1), kept))


@pytest.mark.parametrize("pooling", ["mean", "attention"])
@pytest.mark.parametrize("schedule", [["col", "row"], []])
def test_removed_tokens_have_no_influence_on_the_encoder(schedule, pooling):
    model = autoencoder(schedule, pooling)
    x = images()
    noise = torch.rand(2, 48, generator=torch.Generator().manual_seed(4))
    kept = model.kept_places(noise)
    assert kept.shape == (2, 19)
    patches = torch.zeros(2, 48, 1, dtype=torch.float64).scatter(1, kept[..., None], 1.0)
    visible = patches.reshape(2, 1, 6, 8).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(model.encode(x, kept), model.encode(x * visible, kept))
    loss, pred, mask = model(x, noise)
    assert pred.shape == (2, 48, 4) and int(mask.sum()) == 2 * 29
    loss.backward()
    frozen = {"encoder.pos_embed", "decoder.pos_embed"}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name in frozen), name


def test_the_loss_is_of_normalised_removed_patches():
    model = autoencoder()
    target = model.targets(images())
    torch.testing.assert_close(target.mean(-1), torch.zeros(2, 48, dtype=torch.float64))
    mask = torch.zeros(2, 48, dtype=torch.float64)
    mask[:, 5] = 1
    pred = target.clone()
    pred[:, 5] += 3
    pred[:, 6] += 100
    assert float(model.loss(images(), pred, mask).detach()) == pytest.approx(9)


def test_positions_tell_every_place_apart():
    positions = sincos_positions((6, 8), 32)
    assert positions.shape == (48, 32)
    assert len({tuple(row) for row in positions.tolist()}) == 48
    with pytest.raises(ValueError, match="divisible by 4"):
        sincos_positions((2, 2), 30)
