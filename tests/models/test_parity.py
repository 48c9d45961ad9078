"""The published function, held to vectors that lie beside the checkout and are not part of it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from fastvim.errors import UserError
from fastvim.kernels import available, use_backend
from fastvim.models import create_model, resolve_config
from fastvim.models.checkpoints import from_official, to_official
from fastvim.models.config import MaskingConfig
from fastvim.models.masked_autoencoder import MaskedAutoencoder

VECTORS = Path(__file__).resolve().parents[3] / "shared" / "parity"
FILES = sorted([*VECTORS.glob("fastvim-*.safetensors"), *VECTORS.glob("vim-*.safetensors")])
BACKENDS = [name for name in ("reference", "cpu") if available()[name] is None]

needs_vectors = pytest.mark.skipif(not FILES, reason=f"no parity vectors in {VECTORS}")


def load(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
        return config, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


@needs_vectors
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_outputs_and_gradients_are_the_published_ones(path, backend):
    config, tensors = load(path)
    model = from_official(under("state.", tensors), config)
    images = tensors["input"].clone().requires_grad_()
    with use_backend(backend):
        logits = model(images)
        (logits * tensors["cotangent"]).sum().backward()

    def close(found, expected):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)

    close(logits, tensors["output"])
    close(images.grad, tensors["grad_input"])
    gradients = to_official(model, lambda parameter: parameter.grad)
    expected = under("grad.", tensors)
    assert set(gradients) == set(expected)
    for name, gradient in gradients.items():
        close(gradient, expected[name])


@pytest.mark.parametrize(
    ("name", "config", "overrides"),
    [
        ("fastvim_femto", {}, {}),
        ("fastvim_femto", {"scanpath_type": "colwise"}, {"scan_order": ["col", "row"]}),
        ("vim_femto", {"if_cls_token": True, "use_middle_cls_token": True}, {}),
        ("vim_femto", {"if_cls_token": True}, {"class_token": "head"}),
        (
            "vim_femto",
            {"scanpath_type": "colwise"},
            {"class_token": "none", "scan_order": ["col", "row"]},
        ),
    ],
)
def test_a_model_survives_the_way_there_and_back(name, config, overrides):
    shape = {"image_size": [8, 12], "patch_size": 4, "stride": 2}
    if config.get("scanpath_type") == "colwise" and name.startswith("fastvim"):
        overrides = overrides | {"schedule": ["row", "col"]}
    model = create_model(name, seed=3, **shape, **overrides).double()
    arguments = {"model": name.split("_")[0], "img_size": [8, 12], "patch_size": 4, "stride": 2}
    again = from_official(to_official(model), arguments | config)
    images = torch.randn(2, 1, 8, 12, dtype=torch.float64)
    assert torch.equal(model(images), again(images))
    assert again.config.delta_rank == model.config.delta_rank
    again_fields, fields = (c.model_dump(exclude={"dt_rank"}) for c in (again.config, model.config))
    assert again_fields == fields


def with_layer_norms(model: nn.Module, chosen=lambda name: True) -> nn.Module:
    """`model` with LayerNorms of random weights in place of the RMSNorms that are `chosen`."""
    for name, norm in list(model.named_modules()):
        if isinstance(norm, nn.RMSNorm) and chosen(name):
            layer = nn.LayerNorm(norm.normalized_shape, eps=norm.eps)
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
            model.set_submodule(name, layer.to(norm.weight))
    return model


def layer_norms(model: nn.Module) -> set[str]:
    return {name for name, each in model.named_modules() if isinstance(each, nn.LayerNorm)}


@pytest.mark.parametrize("family", ["fastvim", "vim"])
@pytest.mark.parametrize("chosen", [lambda name: True, lambda name: name == "norm"])
def test_a_norm_with_a_bias_is_a_layer_norm(family, chosen):
    model = create_model(f"{family}_femto", class_token="none").double()
    model = with_layer_norms(model, chosen)
    again = from_official(to_official(model), {"model": family, "img_size": 28, "patch_size": 2})
    assert layer_norms(again) == layer_norms(model)
    images = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    assert torch.equal(model(images), again(images))


@pytest.mark.parametrize(
    ("family", "schedule"), [("mae", ["col", "row"]), ("mae", ["col"]), ("vim-mae", [])]
)
@pytest.mark.parametrize("chosen", [lambda name: False, lambda name: True, "decoder.norm".__eq__])
def test_a_masked_autoencoder_survives_the_way_there_and_back(family, schedule, chosen):
    config = resolve_config(
        "fastvim_femto",
        {"image_size": [12, 16], "patch_size": 4, "schedule": schedule, "num_classes": 0},
    )
    masking = MaskingConfig(
        mask_ratio=0.5, decoder_width=24, decoder_depth=3, reverse_ids="as_published"
    )
    model = with_layer_norms(MaskedAutoencoder(config, masking).double(), chosen)
    arguments = {"model": family, "img_size": [12, 16], "patch_size": 4, "mask_ratio": 0.5}
    arguments["rotate_every_block"] = len(schedule) > 1
    again = from_official(to_official(model), arguments)
    assert layer_norms(again) == layer_norms(model)
    assert again.encoder.schedule == model.encoder.schedule
    images = torch.randn(2, 1, 12, 16, dtype=torch.float64)
    noise = torch.rand(2, 12, dtype=torch.float64)
    for found, expected in zip(again(images, noise=noise), model(images, noise=noise), strict=True):
        assert torch.equal(found, expected)


def test_the_dtype_is_kept():
    model = create_model("fastvim_femto").to(torch.float64)
    arguments = {"img_size": 28, "patch_size": 2}
    assert from_official(to_official(model), arguments).pos_embed.dtype == torch.float64


def transposed(name: str):
    return lambda state, config: state.update({name: state[name].transpose(0, -1)})


def flattened(name: str):
    return lambda state, config: state.update({name: state[name].flatten()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state, config: state.pop("norm_f.weight"), "no 'norm_f.weight'"),
        (lambda state, config: state.update(extra=torch.ones(1)), "nothing takes: extra"),
        (
            lambda state, config: config.update(colapse_method="max"),
            "did you mean 'collapse_method'",
        ),
        (lambda state, config: config.update(scanpath_type="zigzag"), "rowwise or colwise"),
        (lambda state, config: config.update(img_size=56), "pos_embed has shape"),
        (lambda state, config: config.update(img_size=27), "image_size: 27 pixels .* nearest"),
        (lambda state, config: config.update(model="mea"), "'mea' is not .* vim-mae"),
        (lambda state, config: config.update(model="mae"), "no 'mask_token'"),
        (lambda state, config: state.pop("patch_embed.proj.weight"), "no 'patch_embed.proj.weig"),
        (lambda state, config: state.clear(), "no weight layers.0"),
        (lambda state, config: config.update(if_divide_out=False), "if_divide_out False"),
        (transposed("layers.0.mixer.in_proj.weight"), r"in_proj.*\(32, 128\); .* \(128, 32\)"),
        (transposed("layers.1.mixer.A_b_log"), r"A_b_log .* \(16, 64\); .* \(64, 16\)"),
        (transposed("layers.1.mixer.conv1d.weight"), r"conv1d.* \(4, 1, 64\); .* \(64, 1, 4\)"),
        (
            lambda state, config: config.update(patch_size=[1, 4], img_size=[14, 56]),
            r"patch_embed.proj.weight has shape \(32, 1, 2, 2\); .* \(32, 1, 1, 4\)",
        ),
        (flattened("layers.0.mixer.conv1d.weight"), r"conv1d.* \(256,\); it must have 3 axes"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    state = {k: v.detach() for k, v in to_official(create_model("fastvim_femto")).items()}
    config = {"img_size": 28, "patch_size": 2}
    change(state, config)
    with pytest.raises(UserError, match=message):
        from_official(state, config)
