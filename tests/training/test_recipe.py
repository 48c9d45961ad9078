import subprocess
import sys

import pytest
from pydantic import ValidationError
from timm.optim import list_optimizers

from fastvim.training.recipe import OPTIMIZERS, Recipe

IN1K_STEPS = 1281167 // 1024


def test_imports_no_torch():
    code = "import sys, fastvim.training.recipe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_optimizer_is_timms():
    assert set(OPTIMIZERS) <= set(list_optimizers())


@pytest.mark.parametrize(
    ("fields", "peak"),
    [
        # Supervised, both ways in which the rate is published.
        ({"lr": 1e-3, "lr_batch": 1024, "ema_decay": 0.9999}, 1e-3),
        ({"lr": 5e-4, "lr_batch": 512}, 1e-3),
        # MAE pretraining, finetuning of B, linear probe.
        (
            {"batch_size": 4096, "lr": 1.5e-4, "lr_batch": 256, "betas": (0.9, 0.95)}
            | {"epochs": 1600, "warmup_epochs": 40, "min_lr": 0, "smoothing": 0},
            2.4e-3,
        ),
        ({"lr": 5e-4, "lr_batch": 256, "layer_decay": 0.65, "epochs": 100}, 2e-3),
        (
            {"optimizer": "momentum", "momentum": 0.9, "lr": 0.1, "lr_batch": 256}
            | {"batch_size": 4096, "epochs": 90, "warmup_epochs": 10, "weight_decay": 0}
            | {"min_lr": 0, "smoothing": 0},
            1.6,
        ),
        # Cells.
        (
            {"batch_size": 256, "lr": 1e-3, "min_lr": 1e-6, "warmup_epochs": 10, "warmup_lr": 0}
            | {"weight_decay": 0.04, "weight_decay_end": 0.4, "epochs": 100, "smoothing": 0},
            1e-3,
        ),
    ],
)
def test_published_recipes_can_be_written(fields, peak):
    assert Recipe(**fields).peak_lr == pytest.approx(peak)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer": "adamv"}, "did you mean 'adam"),
        ({"batch_size": 64, "micro_batch_size": 48}, "48 does not divide batch_size 64"),
        ({"epochs": 5, "warmup_epochs": 5}, "leaves nothing of 5 epochs"),
        ({"lr": 1e-6}, "min_lr: 1e-05 is above the peak of 1e-06"),
        ({"weight_decay": 0, "weight_decay_end": 0.4}, "weight_decay above 0"),
        ({"optimizer": "sgd", "betas": (0.9, 0.95)}, "sgd has momentum"),
        ({"betas": (0.9, 1.0)}, "not both in"),
        ({"lr": float("inf")}, "finite"),
        ({"epoch": 3}, "Extra inputs"),
        ({"smoothing": 1.0}, "less than 1"),
    ],
)
def test_what_does_not_fit_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        Recipe(**fields)


def test_a_cap_on_steps_keeps_the_share_of_warm_up():
    recipe = Recipe(epochs=300, warmup_epochs=5)
    assert recipe.total_steps(IN1K_STEPS) == 300 * IN1K_STEPS
    assert recipe.warmup_steps(IN1K_STEPS) == 5 * IN1K_STEPS
    capped = Recipe(epochs=300, warmup_epochs=5, steps=600)
    assert capped.total_steps(IN1K_STEPS) == 600
    assert capped.warmup_steps(IN1K_STEPS) == 10
