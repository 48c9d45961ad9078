"""Probing and finetuning: what is loaded, what stays frozen, what does not fit."""

import math

import pytest
import safetensors.torch
import torch

from fastvim import tasks
from fastvim.data import DataConfig, load
from fastvim.errors import UserError
from fastvim.models import create_model
from fastvim.models.config import MaskingConfig
from fastvim.tasks import probing
from fastvim.tasks.probing import Probe, vote
from fastvim.tasks.transfer import load_pretrained
from fastvim.training.costs import count_parameters
from fastvim.training.evaluation import evaluate_finally, evaluate_run
from fastvim.training.recipe import Recipe
from fastvim.training.run import train_run

DATA = DataConfig(train_images=60, validation_images=20, test_images=20)
MODEL = {"name": "fastvim_femto", "patch_size": 4}
RECIPE = Recipe(epochs=2, batch_size=20, warmup_epochs=0, lr=0.01, smoothing=0)
PRETRAINING = {"task": "masked-autoencoding", "model": MODEL}


@pytest.fixture(scope="module")
def dataset():
    return load(DATA)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The directory of a pretraining."""
    directory = tmp_path_factory.mktemp("pretraining")
    masking = MaskingConfig(decoder_width=32, decoder_depth=1)
    train_run(
        task="masked-autoencoding",
        data=DATA,
        model=MODEL,
        training=RECIPE,
        masking=masking,
        seed=0,
        directory=directory,
    )
    return directory


def encoder_of(directory):
    state = safetensors.torch.load_file(directory / "checkpoint.safetensors")
    return {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}


def start_from(pretrained, directory, task, **changes):
    settings = {"data": DATA, "model": MODEL, "training": RECIPE, "seed": 0} | changes
    section = {**PRETRAINING, "interpolate_positions": False}
    return train_run(
        task=task, directory=directory, pretrained=section, pretrained_in=pretrained, **settings
    )


def test_a_probe_leaves_the_encoder_as_it_was(pretrained, tmp_path):
    result = start_from(pretrained, tmp_path, "linear-probe")
    state = safetensors.torch.load_file(tmp_path / "checkpoint.safetensors")
    for name, value in encoder_of(pretrained).items():
        assert torch.equal(state[f"encoder.{name}"], value), name
    assert {name for name in state if not name.startswith("encoder.")} == {
        "head.weight",
        "head.bias",
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    }
    assert state["norm.num_batches_tracked"] == 6
    learning = 32 * 10 + 10
    encoder = sum(value.numel() for value in encoder_of(pretrained).values())
    assert result["cost"]["parameters"] == encoder + learning
    assert set(tasks.TASKS["linear-probe"]) <= set(result["metrics"])
    assert evaluate_run(tmp_path)["metrics"] == result["metrics"]


def test_finetuning_starts_from_the_encoder(pretrained, tmp_path):
    """With a learning rate of nothing, the weights stay what they were loaded as."""
    still = RECIPE.model_copy(update={"lr": 1e-12, "min_lr": 0.0, "layer_decay": 0.65})
    start_from(pretrained, tmp_path, "classification", training=still)
    state = safetensors.torch.load_file(tmp_path / "checkpoint.safetensors")
    for name, value in encoder_of(pretrained).items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=1e-9)


def test_a_probe_of_a_supervised_timm_model(dataset, tmp_path):
    model = {"name": "timm/test_mambaout"}
    train_run(
        task="classification", data=DATA, model=model, training=RECIPE, seed=0, directory=tmp_path
    )
    probe = tasks.create("linear-probe", RECIPE).build(model, dataset, 1)
    checkpoint = tmp_path / "checkpoint.safetensors"
    load_pretrained(probe, checkpoint, {"task": "classification", "model": model}, False)
    before = safetensors.torch.load_file(checkpoint)
    loaded = probe.encoder.state_dict()
    assert loaded and all(torch.equal(loaded[name], before[name]) for name in loaded)


def test_a_probe_has_the_parameters_of_the_model_that_is_finetuned(dataset):
    probe, whole = (
        tasks.create(task, RECIPE).build(MODEL, dataset, 0)
        for task in ("linear-probe", "classification")
    )
    assert count_parameters(probe) == count_parameters(whole)
    assert sum(p.numel() for p in probe.parameters() if p.requires_grad) == 32 * 10 + 10


def test_positions_of_another_size(pretrained):
    checkpoint = pretrained / "checkpoint.safetensors"
    model = create_model("fastvim_femto", patch_size=4, image_size=36)
    message = (
        r"checkpoint.safetensors: position embeddings of a 7 x 7 grid \(image size 28\); this "
        r"model has 9 x 9. .* pretrained.interpolate_positions: true"
    )
    section = {**PRETRAINING, "model": {**MODEL, "image_size": [28, 28]}}
    with pytest.raises(UserError, match=message):
        load_pretrained(model, checkpoint, section, interpolate=False)
    load_pretrained(model, checkpoint, section, interpolate=True)
    before = encoder_of(pretrained)["pos_embed"]
    assert model.pos_embed.shape == (1, 81, 32)
    # The first sin of the row: from row 0 to 6 stretched over 9 rows.
    stretched = model.pos_embed[0, :, 0].reshape(9, 9)
    middle = math.sin(3)
    assert stretched[4].tolist() == pytest.approx([middle] * 9, abs=0.02)
    assert before[0, 21, 0].item() == pytest.approx(middle, abs=1e-6)


def test_checkpoints_that_do_not_fit(pretrained, tmp_path):
    checkpoint = pretrained / "checkpoint.safetensors"

    def attempt(path=checkpoint, **settings):
        model = create_model("fastvim_femto", **({"patch_size": 4} | settings))
        load_pretrained(model, path, PRETRAINING, False)

    with pytest.raises(UserError, match=r"weights of another model: it has no blocks.2"):
        attempt(depth=3)
    with pytest.raises(UserError, match=r"nothing takes its blocks.1"):
        attempt(depth=1)
    with pytest.raises(UserError, match=r"its blocks.0.mixer.A_log is \(2, 64, 16\), this model's"):
        attempt(d_state=8)
    with pytest.raises(UserError, match=r"no pretrained checkpoint at .*nowhere"):
        attempt(tmp_path / "nowhere")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(checkpoint.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"cut.safetensors: not a whole safetensors file"):
        attempt(cut)


def test_neighbours_vote_by_similarity():
    labels = torch.tensor([0, 0, 1])
    # Two far ones of class 0 against a near one of class 1, and the other way round.
    similarity = torch.tensor([[0.1, 0.1, 0.9], [0.9, 0.88, 0.9]])
    assert vote(similarity, labels, 2).tolist() == [1, 0]
    many = torch.cat([torch.full((1, 1), 0.9), torch.full((1, 25), 0.5)], dim=1)
    assert vote(many, torch.tensor([1] + [0] * 25), 2).tolist() == [1]


class Angles:
    """Splits of points on an arc, of so many classes that a rounded cosine cannot tell them."""

    CLASSES = 40

    def evaluation_batches(self, split, size):
        angles = torch.rand(2000, generator=torch.Generator().manual_seed(len(split)))
        points, labels = torch.stack([angles.cos(), angles.sin()], 1), angles * self.CLASSES
        for batch in zip(points.split(size), labels.long().split(size), strict=True):
            yield *batch, None


def neighbours_accuracy(precision):
    probe = Probe(torch.nn.Identity(), 2, Angles.CLASSES, 0)
    task, recipe = tasks.create("linear-probe", RECIPE), Recipe(batch_size=300)
    return evaluate_finally(task, probe, Angles(), recipe, torch.device("cpu"), precision)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_neighbours_are_compared_in_float32(precision):
    """The features have the run's precision, which these do not depend on."""
    exact = neighbours_accuracy("float32")
    assert exact["knn_top1"] > 90
    assert neighbours_accuracy(precision) == exact


def test_neighbours_are_found_chunk_by_chunk(monkeypatch):
    whole, widths = neighbours_accuracy("float32"), set()

    def watched(similarity, *rest):
        widths.add(similarity.shape[1])
        return vote(similarity, *rest)

    monkeypatch.setattr(probing, "CHUNK", 330)
    monkeypatch.setattr(probing, "vote", watched)
    assert neighbours_accuracy("float32") == whole
    assert widths == {6 * 20 + 20}
