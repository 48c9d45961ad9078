import math

import pytest
import torch
import torch.nn.functional as F

from fastvim import tasks
from fastvim.data import DataConfig, load
from fastvim.errors import UserError
from fastvim.tasks.classification import Classification
from fastvim.training.recipe import Recipe


@pytest.fixture(scope="module")
def dataset():
    return load(DataConfig(train_images=20, validation_images=10, test_images=10))


class Table(torch.nn.Module):
    """Images (B, 1, 1, 1) hold a row's number; the logits are that row."""

    def __init__(self, logits):
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, images):
        return self.logits[images.flatten().long()]


def rows(*numbers):
    return torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1, 1)


def test_metrics_of_known_logits():
    logits = torch.zeros(3, 7)
    logits[0, 2] = 9.0  # Right for label 2.
    logits[1] = torch.arange(7.0)  # Label 2 is fifth, label 1 sixth.
    batches = [(rows(0, 1), torch.tensor([2, 2])), (rows(1), torch.tensor([1]))]
    evaluation = Classification().evaluate(Table(logits), batches)
    assert evaluation.metrics["top1"] == pytest.approx(100 / 3)
    assert evaluation.metrics["top5"] == pytest.approx(200 / 3)
    expected = F.cross_entropy(logits[[0, 1, 1]], torch.tensor([2, 2, 1])).item()
    assert evaluation.metrics["loss"] == pytest.approx(expected)
    assert evaluation.predictions["label"].tolist() == [2, 2, 1]
    assert evaluation.predictions["predicted"].tolist() == [2, 6, 6]


def test_top5_of_three_classes_is_everything():
    batches = [(rows(0), torch.tensor([1]))]
    assert Classification().evaluate(Table(torch.zeros(1, 3)), batches).metrics["top5"] == 100


def test_smoothing_is_in_the_training_loss_only():
    logits = torch.tensor([[2.0, 0.0, 0.0, 0.0]])
    label = torch.tensor([0])
    log_p = F.log_softmax(logits, dim=1)[0]
    smooth = -(0.9 * log_p[0] + 0.1 * log_p.mean())
    task = tasks.create("classification", Recipe(smoothing=0.1))
    assert task.loss(Table(logits), rows(0), label).item() == pytest.approx(smooth.item())
    evaluated = task.evaluate(Table(logits), [(rows(0), label)]).metrics["loss"]
    assert evaluated == pytest.approx(-log_p[0].item())
    mixed = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    soft = -(log_p[0] + log_p[1]) / 2
    assert task.loss(Table(logits), rows(0), mixed).item() == pytest.approx(soft.item())


def test_half_precision_logits_are_judged_in_float32():
    logits = torch.tensor([[8.0, 0.25, 0.0]], dtype=torch.bfloat16)
    loss = Classification().loss(Table(logits), rows(0), torch.tensor([0]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-7.75) + math.exp(-8)), rel=1e-4)


def test_the_same_seed_builds_the_same_weights(dataset):
    task = Classification()
    for name in ("fastvim_femto", "timm/test_mambaout"):
        models = [task.build({"name": name}, dataset, seed) for seed in (1, 1, 2)]
        first, again, other = (model.state_dict() for model in models)
        assert all(torch.equal(first[key], again[key]) for key in first)
        assert any(not torch.equal(first[key], other[key]) for key in first)


def test_variants_of_a_seed_share_what_they_have_in_common(dataset):
    task = Classification()
    one = task.build({"name": "fastvim_femto"}, dataset, 5).state_dict()
    other = task.build({"name": "fastvim_femto", "depth": 3, "schedule": ["row"]}, dataset, 5)
    weight = "blocks.1.mixer.in_proj.weight"
    assert torch.equal(one[weight], other.state_dict()[weight])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "fastvim_fempto"}, "did you mean 'fastvim_femto'"),
        ({"name": "fastvim_femto", "num_classes": 5}, "num_classes = 5, but fashion-mnist-subset"),
        ({"name": "fastvim_femto", "in_channels": 3}, "in_channels = 3, but"),
        ({"name": "fastvim_femto", "image_size": 32}, r"image_size = \[32, 32\], but"),
        ({"name": "timm/test_vit"}, "should be divisible by patch size"),
        ({"name": "timm/test_resnett"}, "did you mean 'timm/test_resnet'"),
    ],
)
def test_what_does_not_fit_is_named(dataset, model, message):
    with pytest.raises(UserError, match=message):
        Classification().build(model, dataset, 0)


def test_an_unknown_task_is_named():
    with pytest.raises(UserError, match="did you mean 'classification'"):
        tasks.create("clasification", Recipe())
