import io

import numpy as np
import pytest
import torch
from PIL import Image

from fastvim import tasks
from fastvim.data import DataConfig, load
from fastvim.errors import UserError
from fastvim.models.config import MaskingConfig
from fastvim.training.recipe import Recipe
from fastvim.training.run import train_run

DATA = DataConfig(train_images=60, validation_images=20, test_images=20)
MODEL = {"name": "fastvim_femto", "patch_size": 4}
MASKING = MaskingConfig(decoder_width=32, decoder_depth=1)
RECIPE = Recipe(epochs=2, batch_size=20, micro_batch_size=10, warmup_epochs=0, lr=3e-3)


@pytest.fixture(scope="module")
def dataset():
    return load(DATA)


@pytest.fixture(scope="module")
def task():
    return tasks.create("masked-autoencoding", RECIPE, MASKING)


@pytest.fixture(scope="module")
def model(task, dataset):
    return task.build(MODEL, dataset, 0).eval()


def batches(dataset, size):
    return [(x, y) for x, y, _ in dataset.evaluation_batches("test", size)]


def pretrain(directory, **changes):
    settings = {"data": DATA, "model": MODEL, "training": RECIPE, "masking": MASKING, "seed": 0}
    settings |= changes
    return train_run(task="masked-autoencoding", directory=directory, **settings)


def test_noise_follows_seed_epoch_and_batch(task, model):
    labels = torch.zeros(6, dtype=torch.long)
    first = task.targets(model, labels, 1, 2, 3)
    assert first.shape == (6, 49) and first.dtype == torch.float32
    assert torch.equal(first, task.targets(model, labels + 5, 1, 2, 3))
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert not torch.equal(first, task.targets(model, labels, *other))


def test_evaluation_removes_the_same_whatever_the_batch(task, model, dataset):
    losses = [task.evaluate(model, batches(dataset, size)).metrics["loss"] for size in (20, 7, 20)]
    assert losses[0] == losses[2]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_patches_and_back(model, dataset):
    images = batches(dataset, 5)[0][0]
    assert torch.equal(model.unpatched(model.patches(images)), images)


def test_the_picture_shows_what_is_kept(task, model, dataset):
    picture = Image.open(io.BytesIO(task.picture(model, dataset)))
    pixels = np.asarray(picture).astype(int)
    side, gap = 84, 2
    assert pixels.shape == (3 * side + 2 * gap, 8 * side + 7 * gap, 3)
    original, masked, restored = (pixels[row * (side + gap) :][:side, :side] for row in range(3))
    images, _, _ = next(iter(dataset.evaluation_batches("validation", 1)))
    true = images[0, 0] * DATA.std[0] + DATA.mean[0]
    enlarged = (255 * true).round().numpy().repeat(3, axis=0).repeat(3, axis=1)
    assert np.abs(original[..., 0] - enlarged).max() <= 1
    # 12 of 49 patches, of 12 x 12 pixels each as shown, are left as they were.
    cells = masked.reshape(7, 12, 7, 12, 3).transpose(0, 2, 1, 3, 4).reshape(49, -1)
    grey = (cells == 128).all(axis=1)
    assert grey.sum() == 37
    as_shown = restored.reshape(7, 12, 7, 12, 3).transpose(0, 2, 1, 3, 4).reshape(49, -1)
    as_was = original.reshape(7, 12, 7, 12, 3).transpose(0, 2, 1, 3, 4).reshape(49, -1)
    assert (as_shown[~grey] == as_was[~grey]).all()
    assert (as_shown[grey] != as_was[grey]).any()


def test_a_run_repeats_to_the_bit(tmp_path):
    result = pretrain(tmp_path / "one")
    again = pretrain(tmp_path / "two")
    other = pretrain(tmp_path / "three", seed=1)
    assert result["metrics"] == again["metrics"] != other["metrics"]
    for name in ("checkpoint.safetensors", "history.csv", "picture.png"):
        first, second = ((tmp_path / run / name).read_bytes() for run in ("one", "two"))
        assert first == second
    assert set(result["metrics"]) == {"loss", "val_loss"}
    events = b"".join(path.read_bytes() for path in (tmp_path / "one").glob("events*"))
    assert b"validation/picture" in events and events.count(b"IHDR") == 2


def test_a_run_learns(tmp_path):
    masking = MASKING.model_copy(update={"normalise_targets": False})
    longer = RECIPE.model_copy(update={"epochs": 8, "lr": 0.01, "eval_every": 8})
    pretrain(tmp_path, masking=masking, training=longer)
    rows = (tmp_path / "history.csv").read_text().splitlines()[1:]
    losses = [float(row.split(",")[2]) for row in rows]
    assert losses[-1] < 0.7 * losses[0], losses


def test_micro_batches_do_not_change_what_is_removed(tmp_path):
    whole = RECIPE.model_copy(update={"micro_batch_size": None})
    one, two = pretrain(tmp_path / "a"), pretrain(tmp_path / "b", training=whole)
    assert one["metrics"]["loss"] == pytest.approx(two["metrics"]["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("model", "masking", "message"),
    [
        ({}, MaskingConfig(mask_ratio=0.99), "mask_ratio: 0.99 keeps none of 49 tokens"),
        ({"name": "vim_femto"}, MASKING, "class_token: a masked autoencoder has none"),
        ({"name": "timm/test_vit", "patch_size": 4}, MASKING, "set model.class_token: none"),
        ({"image_size": 32}, MASKING, r"model.image_size = \[32, 32\], but fashion-mnist-subset"),
    ],
)
def test_what_does_not_fit_is_named(dataset, model, masking, message):
    with pytest.raises(UserError, match=message):
        tasks.create("masked-autoencoding", RECIPE, masking).build(MODEL | model, dataset, 0)
