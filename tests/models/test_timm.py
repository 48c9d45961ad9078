"""What a user of timm expects of any model."""

import subprocess
import sys

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

import fastvim  # noqa: F401
from fastvim.errors import UserError


def test_created_by_name_with_timm_arguments():
    model = timm.create_model(
        "fastvim_tiny_patch16_224",
        img_size=64,
        num_classes=5,
        in_chans=1,
        depth=2,
        drop_path_rate=0.1,
    )
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 5)
    assert model.default_cfg["crop_pct"] == 0.875
    tokens = model.forward_features(torch.randn(2, 1, 64, 64))
    assert tokens.shape == (2, 16, 192)
    assert model.forward_head(tokens, pre_logits=True).shape == (2, 192)
    model.reset_classifier(3)
    assert model.forward_head(tokens).shape == (2, 3)
    model.reset_classifier(0)
    assert model.forward_head(tokens).shape == (2, 192)


def test_created_by_the_arguments_of_timms_train_py():
    """With its defaults, and the pooling that the model has."""
    arguments = {"drop_rate": 0.0, "drop_path_rate": None, "drop_block_rate": None}
    arguments |= {"global_pool": None, "bn_momentum": None, "bn_eps": None, "scriptable": False}
    arguments |= {"pretrained": False, "in_chans": 1, "num_classes": 5, "checkpoint_path": ""}
    fast = timm.create_model("fastvim_femto_patch2_28", **arguments)
    assert fast.num_classes == 5 and fast.config.drop_path_rate == 0
    assert timm.create_model("fastvim_femto_patch2_28", global_pool="avg").num_classes == 10
    assert timm.create_model("vim_femto_patch2_28", global_pool="token").num_classes == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"drop_rate": 0.1}, "drop_rate is 0.1; this model has no dropout"),
        ({"global_pool": "max"}, "global_pool is 'max'; this model has 'avg'"),
        ({"global_pool": "token"}, "global_pool is 'token'; this model has 'avg'"),
        ({"global_pol": "avg"}, "no setting 'global_pol'"),
    ],
)
def test_what_these_models_do_not_have_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        timm.create_model("fastvim_femto_patch2_28", **arguments)


def test_features_only():
    model = timm.create_model(
        "vim_tiny_patch16_224", img_size=(64, 96), depth=4, features_only=True, out_indices=(1, 3)
    )
    features = model(torch.randn(1, 3, 64, 96))
    assert [tuple(f.shape) for f in features] == [(1, 192, 4, 6)] * 2
    assert model.feature_info.channels() == [192, 192]
    assert model.feature_info.reduction() == [16, 16]


def test_intermediates_are_the_tokens_after_each_block():
    model = timm.create_model("fastvim_femto_patch2_28").eval()
    x = torch.randn(1, 1, 28, 28)
    final, found = model.forward_intermediates(x, indices=1, norm=True, output_fmt="NLC")
    assert torch.equal(final, model.forward_features(x))
    assert torch.equal(found[0], final)


@pytest.mark.parametrize("preset", ["fastvim_small_patch16_224", "vim_base_patch16_224"])
def test_every_published_name_is_listed(preset):
    assert preset in timm.list_models("*vim*")


def test_layer_decay_groups_follow_the_depth():
    model = timm.create_model("fastvim_femto_patch2_28")
    groups = param_groups_layer_decay(
        model, weight_decay=0.1, layer_decay=0.5, no_weight_decay_list=model.no_weight_decay()
    )
    assert sorted({group["lr_scale"] for group in groups}) == [0.125, 0.25, 0.5, 1.0]


@pytest.mark.parametrize("order", ["import fastvim, timm", "import timm, fastvim"])
def test_registered_whichever_is_imported_first(order):
    script = f"{order}; print(timm.is_model('fastvim_tiny_patch16_224'))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "True", result.stderr


def test_importing_fastvim_does_not_import_torch():
    script = "import sys, fastvim; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "False"
