import pytest
import torch

from fastvim import tasks
from fastvim.data import load
from fastvim.errors import UserError
from fastvim.training.recipe import OPTIMIZERS
from fastvim.training.state import Progress, UnreadableState, load_state, save_state
from fastvim.training.trainer import Trainer


def new_trainer(arguments):
    data, recipe = load(arguments["data"]), arguments["training"]
    task = tasks.create("classification", recipe)
    trainer = Trainer(
        task,
        task.build(arguments["model"], data, arguments["seed"]),
        recipe,
        steps_per_epoch=6,
        seed=arguments["seed"],
        device=torch.device("cpu"),
        precision="float32",
    )
    images, labels, _ = next(data.train_batches(0, 0, recipe.batch_size))
    return trainer, lambda step: trainer.step(step, images, labels)


def save(path, trainer, progress):
    save_state(
        path,
        progress,
        trainer.model,
        trainer.optimizer,
        ema=trainer.average_model,
        scaler=trainer.scaler,
        measured={"rates": torch.tensor([1.5], dtype=torch.float64)},
    )


def load_into(path, trainer, settings="digest"):
    return load_state(
        path,
        trainer.model,
        trainer.optimizer,
        ema=trainer.average_model,
        scaler=trainer.scaler,
        settings=settings,
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_goes_on_where_it_stopped(settings, tmp_path, optimizer):
    arguments = settings(optimizer=optimizer, weight_decay_end=0.1, layer_decay=0.9)
    whole, step = new_trainer(arguments)
    for number in range(2):
        step(number)
    progress = Progress("digest", step=2, validation={"val_top1": 12.5}, notes=["a note"])
    save(tmp_path / "state", whole, progress)
    step(2)
    resumed, step = new_trainer(arguments)
    loaded, measured = load_into(tmp_path / "state", resumed)
    assert loaded == progress
    assert measured["rates"].tolist() == [1.5]
    step(2)
    for models in ((whole.model, resumed.model), (whole.average_model, resumed.average_model)):
        for one, other in zip(*(model.state_dict().values() for model in models), strict=True):
            assert torch.equal(one, other)


def test_nothing_changes_when_a_state_is_refused(settings, tmp_path):
    path = tmp_path / "state"
    trained, step = new_trainer(settings())
    step(0)
    save(path, trained, Progress("digest", step=1))
    fresh, _ = new_trainer(settings())
    before = {name: tensor.clone() for name, tensor in fresh.model.state_dict().items()}
    with pytest.raises(UserError, match="other settings"):
        load_into(path, fresh, settings="another digest")
    content = path.read_bytes()
    for damaged in (content[:-1], content[:50], b"", content[:-64] + bytes(64)):
        path.write_bytes(damaged)
        with pytest.raises(UnreadableState):
            load_into(path, fresh)
    for name, tensor in fresh.model.state_dict().items():
        assert torch.equal(tensor, before[name])
