import re

import pytest
import torch
import torch.nn.functional as F

from fastvim.errors import UserError
from fastvim.kernels import backends, use_backend
from fastvim.models import create_model, resolve_config

needs_cpu_backend = pytest.mark.skipif(
    backends.available()["cpu"] is not None, reason=f"cpu backend: {backends.available()['cpu']}"
)


def images(model, batch=2):
    generator = torch.Generator().manual_seed(0)
    config = model.config
    return torch.randn(batch, config.in_channels, *config.image_size, generator=generator)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("fastvim_tiny", 7.166), ("fastvim_small", 26), ("fastvim_base", 98), ("vim_tiny", 7.166)],
)
def test_published_sizes(name, millions):
    parameters = sum(p.numel() for p in create_model(name).parameters()) / 1e6
    assert parameters == pytest.approx(millions, rel=0.01 if millions > 10 else 1e-4)


@pytest.mark.parametrize("name", ["large", "huge"])
def test_published_widths_and_depths(name):
    config = resolve_config(f"fastvim_{name}")
    expected = {"large": (1024, 48, (16, 16)), "huge": (1280, 64, (14, 14))}[name]
    assert (config.d_model, config.depth, config.patch_size) == expected


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"pooling": "max"},
        {"pooling": "attention"},
        {"schedule": ["row"]},
        {"schedule": ["col", "col", "row"]},
        {"schedule": []},
        {"schedule": [], "pooling": "attention"},
        {"schedule": [], "class_token": "head"},
        {"schedule": [], "class_token": "middle", "scan_order": ["col", "row"]},
        {"post_ssm_norm": False},
        {"post_ssm_norm": False, "gate_without_norm": False},
        {"direction_merge": "sum"},
        {"image_size": [28, 14], "patch_size": [4, 2], "stride": [2, 2]},
        {"num_classes": 0},
    ],
)
def test_every_choice_runs_and_every_parameter_gets_a_gradient(overrides):
    model = create_model("fastvim_femto", **overrides)
    out = model(images(model))
    assert out.shape == (2, model.config.num_classes or model.config.d_model)
    # The mean of normalised tokens alone would leave some gradients zero by symmetry.
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, parameter_name


def test_attention_starts_as_the_mean_and_follows_its_query():
    mean, attention = (
        create_model("fastvim_femto", pooling=pooling).double() for pooling in ("mean", "attention")
    )
    x = images(mean).double()
    torch.testing.assert_close(mean(x), attention(x), rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        attention.blocks[0].mixer.pool_query.normal_(generator=torch.Generator().manual_seed(2))
    assert not torch.allclose(mean(x), attention(x), rtol=1e-6)


@pytest.mark.parametrize("place", ["head", "middle"])
def test_a_class_token_leaves_the_start_of_the_grids_positions(place):
    without, with_token = (
        create_model("vim_femto", class_token=token, patch_size=7) for token in ("none", place)
    )
    row = with_token.class_token_place
    positions = with_token.pos_embed
    grid = torch.cat([positions[:, :row], positions[:, row + 1 :]], dim=1)
    assert torch.equal(grid, without.pos_embed)
    assert not (grid == positions[:, row]).any()


def test_autocast_does_not_reach_inside_attention_pooling():
    """As of the other poolings, whose operator excludes it."""
    model = create_model("fastvim_femto", pooling="attention")
    mixer, layout = model.blocks[0].mixer, model.layouts["col"]()
    mixer.in_proj = mixer.out_proj = torch.nn.Identity()
    torch.nn.init.normal_(mixer.pool_query)
    xz = torch.randn(2, 196, 128)
    plain = mixer(xz, layout)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mixer(xz, layout), plain)


def test_attention_pooling_is_the_documented_formula():
    mixer = create_model("fastvim_femto", pooling="attention").blocks[0].mixer.double()
    with torch.no_grad():
        mixer.pool_query.normal_(generator=torch.Generator().manual_seed(2))
    u = torch.randn(2, 12, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    steps = torch.arange(12, dtype=torch.int32) // 4
    pooled = mixer._attention_pool(3)(u, steps, 1)
    for step in range(3):
        tokens = u[:, 4 * step : 4 * step + 4]
        shares = F.softmax(tokens @ mixer.pool_query[1] / 64**0.5, dim=1)
        torch.testing.assert_close(pooled[:, step], (shares[..., None] * tokens).sum(1))


def test_alternation_is_transposition():
    """Pooling rows of an image is pooling columns of its transpose."""
    rows = create_model("fastvim_femto", schedule=["row"], scan_order=["col", "row"]).double()
    cols = create_model("fastvim_femto", schedule=["col"]).double()
    cols.load_state_dict(rows.state_dict())
    with torch.no_grad():
        cols.patch_embed.weight.copy_(rows.patch_embed.weight.transpose(2, 3))
        grid = rows.pos_embed.reshape(1, 14, 14, -1)
        cols.pos_embed.copy_(grid.transpose(1, 2).reshape(1, 196, -1))
    x = images(rows).double()
    torch.testing.assert_close(rows(x), cols(x.transpose(2, 3)), rtol=1e-9, atol=1e-12)


def test_common_parameters_of_variants_start_alike():
    norm = create_model("fastvim_femto", seed=5)
    plain = create_model("fastvim_femto", seed=5, post_ssm_norm=False)
    other = create_model("fastvim_femto", seed=6)
    values = dict(norm.named_parameters())
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, values[name]), name
    assert not torch.equal(other.blocks[0].mixer.x_proj, norm.blocks[0].mixer.x_proj)


def test_initial_values_are_the_published_ones():
    model = create_model("fastvim_femto", dt_min=0.01, dt_max=0.02)
    mixer = model.blocks[1].mixer
    assert torch.equal(mixer.A_log[1, 3], torch.arange(1.0, 17).log())
    delta = F.softplus(mixer.dt_bias)
    assert delta.min() > 0.0099 and delta.max() < 0.0201
    assert bool((mixer.D == 1).all()) and not model.head.bias.any()
    bound = 1 / (64 * 2) ** 0.5
    assert 0.9 * bound < mixer.out_proj.weight.abs().max() <= bound


def test_drop_path_drops_whole_images_and_only_in_training():
    model = create_model("fastvim_femto", depth=4, drop_path_rate=0.5)
    x = images(model)
    torch.manual_seed(0)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_another_size_interpolates_the_positions():
    model = create_model("vim_femto").eval()
    before = model.pos_embed.detach().clone()
    model.set_input_size((28, 56))
    assert model.pos_embed.shape == (1, 14 * 28 + 1, 32)
    assert torch.equal(model.pos_embed[:, 14 * 14], before[:, 98])
    assert model(torch.randn(1, 1, 28, 56)).shape == (1, 10)
    model.pos_embed.requires_grad_(False)
    model.set_input_size((28, 42))
    assert not model.pos_embed.requires_grad
    with pytest.raises(ValueError, match="set_input_size"):
        model(torch.randn(1, 1, 28, 28))


def test_gradient_checkpointing_changes_nothing():
    model = create_model("fastvim_femto").train()
    x = images(model)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_what_has_no_weight_decay():
    names = create_model("vim_femto", pooling="mean").no_weight_decay()
    decayed = {n for n, _ in create_model("vim_femto").named_parameters()} - names
    kinds = {re.sub(r"^blocks\.\d+\.", "", name) for name in decayed}
    assert kinds == {
        "mixer.in_proj.weight",
        "mixer.conv_weight",
        "mixer.x_proj",
        "mixer.dt_proj",
        "mixer.out_proj.weight",
        "patch_embed.weight",
        "head.weight",
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"dept": 3}, "no setting 'dept', did you mean 'depth'"),
        ({"schedule": ["channel"]}, "no axis 'channel'"),
        ({"image_size": 29}, "nearest that fits is 30"),
        ({"patch_size": 30}, "larger than the image"),
        ({"pooling": "median"}, "mean"),
        ({"class_token": "head"}, "no place on a pooled grid"),
        ({"drop_path_rate": 1.5}, "drop_path_rate = 1.5"),
        ({"dt_min": 0.5}, "greater than dt_max"),
    ],
)
def test_bad_settings_are_named(overrides, message):
    with pytest.raises(UserError, match=message):
        create_model("fastvim_femto", **overrides)


def test_unknown_presets_are_named():
    with pytest.raises(UserError, match="did you mean 'fastvim_tiny'"):
        create_model("fastvim_tny")


def test_every_block_gets_tokens_side_by_side():
    model = create_model("fastvim_femto")
    seen = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
    model(images(model))
    assert seen == [True] * len(model.blocks)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_cpu_backend)])
def test_torch_compile_agrees(backend):
    """As one graph, forward and gradients."""
    model = create_model("fastvim_femto")
    x, parameters = images(model), list(model.parameters())
    results = []
    with use_backend(backend):
        for run in (model, torch.compile(model, fullgraph=True)):
            y = run(x)
            results.append((y, *torch.autograd.grad(y.square().sum(), parameters)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "matters"), [("vim_femto", False), ("fastvim_femto", True)])
def test_only_pooled_values_are_scaled(name, matters):
    images = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    plain, scaled = (create_model(name, pooling_scale=scale) for scale in (1, 0.25))
    assert torch.equal(plain(images), scaled(images)) != matters


@needs_cpu_backend
@pytest.mark.parametrize(
    "overrides",
    [{}, {"schedule": []}, {"pooling": "max", "post_ssm_norm": False}, {"pooling": "attention"}],
)
def test_the_fused_block_computes_the_same(overrides):
    model = create_model("fastvim_femto", **overrides).double().eval()
    x = images(model).double()

    def found():
        out = model(x)
        return out, *torch.autograd.grad(out.square().sum(), [*model.parameters()])

    fused = found()
    hooks = [block.mixer.register_forward_hook(lambda *_: None) for block in model.blocks]
    for value, expected in zip(fused, found(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        torch.testing.assert_close(model(x), fused[0].detach(), rtol=1e-10, atol=1e-12)


@needs_cpu_backend
def test_the_fused_block_steps_aside_for_those_who_look_inside():
    model = create_model("fastvim_femto").eval()
    mixer, seen = model.blocks[0].mixer, []
    x = images(model)
    with torch.no_grad():
        plain = model(x)
        for module in (mixer.in_proj, model.blocks[0].norm, mixer):
            hook = module.register_forward_hook(lambda *_: seen.append(1))
            model(x)
            hook.remove()
        mixer.observer = lambda *_: seen.append(1)
        model(x)
        mixer.observer = None
        assert len(seen) == 4
        own = mixer.in_proj
        mixer.in_proj = torch.nn.Sequential(own)
        torch.testing.assert_close(model(x), plain, rtol=1e-5, atol=1e-6)
        mixer.in_proj = torch.nn.Linear(own.in_features, own.out_features)
        mixer.in_proj.bias.fill_(1.0)
        mixer.in_proj.weight.copy_(own.weight)
        with torch.enable_grad():
            biased = model(x).detach()
        assert not torch.allclose(biased, plain, rtol=1e-2)
        torch.testing.assert_close(model(x), biased, rtol=1e-5, atol=1e-6)


@needs_cpu_backend
def test_a_block_that_is_watched_or_wrapped_is_called():
    """And the others' operators, one by one, give the bits that all in a row give."""

    class Wrapper(torch.nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, *arguments):
            seen.append("wrapped")
            return self.block(*arguments)

    model, seen = create_model("fastvim_femto"), []
    x, block, parameters = images(model), model.blocks[1], list(model.parameters())

    def found():
        y = model(x)
        return y, *torch.autograd.grad(y.square().sum(), parameters)

    in_a_row = found()
    hook = block.register_forward_hook(lambda *_: seen.append("hooked"))
    hooked = found()
    hook.remove()
    own = block.forward
    block.forward = lambda *arguments: (seen.append("patched"), own(*arguments))[1]
    patched = found()
    del block.forward
    model.blocks[1] = Wrapper(block)
    for results in (hooked, patched, found()):
        assert all(map(torch.equal, results, in_a_row))
    assert seen == ["hooked", "patched", "wrapped"]


@needs_cpu_backend
def test_all_layers_features_are_those_of_each_pass():
    model = create_model("fastvim_femto")
    last = len(model.blocks) - 1
    x, features = model.forward_intermediates(images(model), [0, last, -1], output_fmt="NLC")
    assert len(features) == 2 and torch.equal(model.norm(features[1]), x)
    alone = model.forward_intermediates(images(model), [0], stop_early=True, output_fmt="NLC")
    assert torch.equal(alone[1][0], features[0])
