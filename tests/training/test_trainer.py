import pytest
import torch

from fastvim import tasks
from fastvim.data import load
from fastvim.data.mixing import create_mixing
from fastvim.training.seeds import seed_generators
from fastvim.training.trainer import Trainer


def one_batch(arguments):
    data, recipe = load(arguments["data"]), arguments["training"]
    images, labels, _ = next(data.train_batches(0, 0, recipe.batch_size))
    mixing = create_mixing(arguments["data"], data.num_classes, recipe.smoothing)
    return data, mixing(images, labels, 0, 0, 0) if mixing else (images, labels)


def new_trainer(arguments, data):
    task = tasks.create("classification", arguments["training"])
    return Trainer(
        task,
        task.build(arguments["model"], data, arguments["seed"]),
        arguments["training"],
        steps_per_epoch=data.batches_per_epoch(arguments["training"].batch_size),
        seed=arguments["seed"],
        device=torch.device("cpu"),
        precision="float32",
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mixup", [0.8, 0.0])
def test_micro_batches_give_the_gradients_of_the_whole(settings, dtype, mixup):
    gradients, losses = [], []
    for micro in (None, 8, 2):
        arguments = settings(
            micro_batch_size=micro,
            model={"drop_path_rate": 0.5},
            data={"mixup": mixup, "cutmix": mixup},
        )
        data, (images, targets) = one_batch(arguments)
        trainer = new_trainer(arguments, data)
        trainer.model.to(dtype)
        targets = targets.to(dtype) if targets.ndim == 2 else targets
        losses.append(trainer.accumulate(4, images.to(dtype), targets))
        gradients.append([p.grad for p in trainer.model.parameters()])
    rounding = 1e-5 if dtype == torch.float32 else 1e-12
    for loss, parts in zip(losses[1:], gradients[1:], strict=True):
        assert loss.item() == pytest.approx(losses[0].item(), rel=rounding)
        scale = torch.nn.utils.get_total_norm(gradients[0])
        for part, whole in zip(parts, gradients[0], strict=True):
            # Single precision leaves nothing but rounding of the smallest gradients.
            size = whole.norm() if dtype == torch.float64 else scale
            assert (part - whole).norm() <= rounding * size


def test_micro_batches_keep_the_schedule(settings):
    rates = []
    for micro in (None, 4):
        arguments = settings(micro_batch_size=micro)
        data, (images, targets) = one_batch(arguments)
        trainer = new_trainer(arguments, data)
        rates.append([trainer.step(step, images, targets).lr for step in range(4)])
        assert trainer.schedule.total == 12
    assert rates[0] == rates[1]


def test_drop_path_draws_belong_to_the_step_and_the_image(settings):
    arguments = settings(model={"depth": 3, "drop_path_rate": 0.9}, micro_batch_size=None)
    data, (images, targets) = one_batch(arguments)
    losses = []
    for step in (5, 6, 5):
        trainer = new_trainer(arguments, data)
        losses.append(trainer.accumulate(step, images, targets).item())
    assert losses[0] == losses[2] != losses[1]


def test_what_else_a_model_draws_depends_on_the_step(settings):
    arguments = settings(model={"drop_path_rate": 0}, micro_batch_size=None)
    data, (images, targets) = one_batch(arguments)
    trainer = new_trainer(arguments, data)
    trainer.model.head = torch.nn.Sequential(torch.nn.Dropout(0.5), trainer.model.head)
    losses = [trainer.accumulate(step, images, targets).item() for step in (5, 6, 5)]
    assert losses[0] == losses[2] != losses[1]


def test_generators_are_seeded_as_by_torch():
    seed_generators(2**62 + 5, torch.device("cpu"))
    drawn = torch.rand(4)
    torch.manual_seed(2**62 + 5)
    assert torch.equal(drawn, torch.rand(4))


def test_drop_path_keeps_the_expectation():
    from timm.layers import DropPath

    from fastvim.training.drop_path import draw_by_image

    model = torch.nn.Sequential(DropPath(0.25), torch.nn.Sequential(DropPath(0.0)))
    draws = draw_by_image(model, seed=0)
    assert draws.modules == 1
    images = torch.ones(4000, 1, 2)
    draws.draw(0, 4000, images.device)
    draws.select(0, 4000)
    out = model.train()(images)
    assert set(out.flatten().tolist()) == {0.0, (torch.ones(()) / 0.75).item()}
    assert (out[:, 0, 0] == out[:, 0, 1]).all()
    assert (out == 0).float().mean() == pytest.approx(0.25, abs=0.03)
    assert (model.eval()(images) == images).all()


def test_average_follows_the_weights(settings):
    arguments = settings(ema_decay=0.8)
    data, (images, targets) = one_batch(arguments)
    trainer = new_trainer(arguments, data)
    expected = trainer.model.head.weight.detach().clone()
    for step in range(3):
        trainer.step(step, images, targets)
        expected = 0.8 * expected + 0.2 * trainer.model.head.weight.detach()
    assert trainer.evaluated_model is not trainer.model
    torch.testing.assert_close(trainer.evaluated_model.head.weight, expected)


def test_clipping_bounds_the_step_and_reports_the_norm_before_it(settings):
    arguments = settings(clip_grad=1e-3, optimizer="momentum", lr=1.0, weight_decay=0)
    data, (images, targets) = one_batch(arguments)
    trainer = new_trainer(arguments, data)
    before = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
    result = trainer.step(8, images, targets)
    after = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    assert result.grad_norm > 1e-3
    assert (after - before).norm() / result.lr == pytest.approx(1e-3, rel=1e-2)
