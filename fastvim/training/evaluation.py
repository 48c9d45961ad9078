"""Evaluation of weights on a split, in a run and afterwards."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from fastvim import tasks
from fastvim.data import DataConfig, load
from fastvim.errors import UserError
from fastvim.models.config import MaskingConfig
from fastvim.training import devices
from fastvim.training.recipe import Recipe
from fastvim.training.state import WEIGHTS_FILE, load_weights

CONFIG_FILE = "config.json"


def evaluate_split(
    task,
    model: nn.Module,
    dataset,
    split: str,
    recipe: Recipe,
    device: torch.device,
    precision: str,
):
    """The task's evaluation of `model` on `validation` or `test`; the model's mode is kept."""
    with evaluating(model, precision, device):
        return task.evaluate(model, _batches(dataset, split, recipe, device))


def evaluate_finally(
    task, model: nn.Module, dataset, recipe: Recipe, device: torch.device, precision: str
) -> dict[str, float]:
    """What the task measures at the end alone, on the splits that it asks for."""
    with evaluating(model, precision, device):
        collected = task.collect(model, lambda split: _batches(dataset, split, recipe, device))
    return task.final(model, collected)


def _batches(dataset, split: str, recipe: Recipe, device: torch.device):
    size = recipe.eval_batch_size or recipe.forward_size
    for images, labels, _ in dataset.evaluation_batches(split, size):
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


@contextmanager
def evaluating(model: nn.Module, precision: str, device: torch.device) -> Iterator[None]:
    """A context in which `model` evaluates, in `precision`; its mode comes back afterwards."""
    training = model.training
    model.eval()
    try:
        with devices.autocast(precision, device):
            yield
    finally:
        model.train(training)


def evaluate_run(directory: str | Path) -> dict:
    """Evaluate the checkpoint of a run again; `metrics` as in its result.json, and `backend`.

    Raises UserError that names the file when config.json or the checkpoint is missing, damaged
    or of another model.
    """
    directory = Path(directory)
    config = directory / CONFIG_FILE
    try:
        settings = json.loads(config.read_text())
        data, recipe = DataConfig(**settings["data"]), Recipe(**settings["training"])
        model_settings, seed = dict(settings["model"]), int(settings["seed"])
        masking = settings.get("masking")
        task = tasks.create(
            settings["task"], recipe, None if masking is None else MaskingConfig(**masking)
        )
    except OSError as error:
        raise UserError(f"cannot read {config}: {error.strerror or error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{config} does not hold the settings of a run: {error}") from error
    device = devices.choose_device()
    precision = devices.choose_precision(recipe, device)
    dataset = load(data)
    model = task.build(model_settings, dataset, seed)
    load_weights(directory / WEIGHTS_FILE, model)
    model.to(device)
    metrics: dict[str, float] = {}
    for split, prefix in (("test", ""), ("validation", "val_")):
        evaluation = evaluate_split(task, model, dataset, split, recipe, device, precision)
        metrics |= {prefix + name: value for name, value in evaluation.metrics.items()}
    metrics |= evaluate_finally(task, model, dataset, recipe, device, precision)
    backend = devices.kernel_backend(device, precision, model_settings["name"])
    return {"metrics": metrics, "backend": backend}
