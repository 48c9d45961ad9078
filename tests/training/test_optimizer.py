import math

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from fastvim.models import create_model
from fastvim.training.optimizer import Schedule, build_optimizer
from fastvim.training.recipe import Recipe


def settings_by_name(model, optimizer, key):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: group[key] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("name", ["fastvim_femto", "vim_femto"])
@pytest.mark.parametrize("layer_decay", [None, 0.65])
def test_weight_decay_spares_what_the_paper_spares(name, layer_decay):
    model = create_model(name)
    recipe = Recipe(weight_decay=0.05, layer_decay=layer_decay)
    decay = settings_by_name(model, build_optimizer(model, recipe), "weight_decay")
    assert set(decay) == {name for name, _ in model.named_parameters()}
    kinds = {name: name.rsplit(".", 1)[-1] for name in decay}
    spared = {name for name, value in decay.items() if value == 0}
    never = ("A_log", "D", "bias", "conv_bias", "dt_bias", "pos_embed", "cls_token")
    assert spared == {n for n in decay if kinds[n] in never or "norm" in n}
    assert {decay[n] for n in decay if n not in spared} == {0.05}
    assert any(kinds[n] == "A_log" for n in spared)


def test_layer_decay_scales_rates_from_the_head_down():
    model = create_model("fastvim_femto", depth=3)
    recipe = Recipe(lr=1e-3, layer_decay=0.5, min_lr=0, warmup_epochs=0)
    optimizer = build_optimizer(model, recipe)
    lr = Schedule(optimizer, recipe, steps_per_epoch=10).set(0)
    rates = settings_by_name(model, optimizer, "lr")
    assert lr == rates["head.weight"] == pytest.approx(1e-3)
    blocks = [rates[f"blocks.{i}.mixer.in_proj.weight"] for i in range(3)]
    assert blocks == pytest.approx([blocks[2] / 4, blocks[2] / 2, blocks[2]])
    assert rates["pos_embed"] == pytest.approx(blocks[0] / 2)


def test_learning_rates_are_timms_step_by_step():
    recipe = Recipe(epochs=7, lr=2e-3, min_lr=1e-5, warmup_epochs=2, warmup_lr=1e-6)
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.AdamW([parameter], lr=recipe.lr, weight_decay=0.1)
    schedule = Schedule(optimizer, recipe, steps_per_epoch=5)
    other = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=2e-3)
    timms = CosineLRScheduler(
        other, 35, lr_min=1e-5, warmup_t=10, warmup_lr_init=1e-6, t_in_epochs=False
    )
    for step in range(35):
        timms.step_update(step)
        assert schedule.set(step) == other.param_groups[0]["lr"]
    assert schedule.set(0) == 1e-6
    # Half a cosine between the peak at step 0 and the minimum at step 35, after the warm-up.
    expected = 1e-5 + (2e-3 - 1e-5) * (1 + math.cos(math.pi * 20 / 35)) / 2
    assert schedule.set(20) == pytest.approx(expected)


def test_weight_decay_rises_along_half_a_cosine():
    model = create_model("fastvim_femto")
    recipe = Recipe(epochs=10, weight_decay=0.04, weight_decay_end=0.4, warmup_epochs=0)
    optimizer = build_optimizer(model, recipe)
    schedule = Schedule(optimizer, recipe, steps_per_epoch=10)
    seen = []
    for step in (0, 50, 99):
        schedule.set(step)
        decay = settings_by_name(model, optimizer, "weight_decay")
        assert decay["pos_embed"] == decay["head.bias"] == 0
        seen.append(decay["head.weight"])
    assert seen[:2] == pytest.approx([0.04, 0.22])
    assert 0.399 < seen[2] < 0.4
