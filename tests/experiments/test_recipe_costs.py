"""What the ablation mae-recipe says of equal compute, counted."""

import pytest
import torch

from fastvim import tasks
from fastvim.data import load as load_data
from fastvim.experiments.experiment import load
from fastvim.experiments.plan import identified_runs, make_plan
from fastvim.training.costs import count_gflops


def test_the_vision_transformer_is_a_yardstick_at_equal_compute():
    plan = make_plan(load("mae-recipe"), "quick", seeds="0,")
    found = {}
    for run in identified_runs(plan):
        if run.variant in ("published", "vit"):
            probe, before = run.config, run.pretraining.config
            data = load_data(probe.data)
            image = torch.zeros(1, 1, 28, 28)
            counts = []
            for config in (before, probe):
                task = tasks.create(config.task, config.training, config.masking)
                model = task.build(config.nested()["model"], data, 0)
                counts.append(count_gflops(model, image))
            found[run.variant] = counts
    assert found["vit"][1] == pytest.approx(found["published"][1], rel=0.02)
    assert found["published"] == pytest.approx([0.00904, 0.0140], rel=0.01)
    assert found["vit"] == pytest.approx([0.00688, 0.0139], rel=0.01)
