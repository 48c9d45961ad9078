"""Supervised classification: cross entropy in training, top-1 and top-5 in evaluation."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from fastvim.errors import UserError
from fastvim.models import create_model
from fastvim.models.config import TIMM_PREFIX
from fastvim.models.timm_peers import create_timm, try_image


@dataclass(frozen=True)
class Evaluation:
    """What a task measured on a split, and what it predicted for each example, in order."""

    metrics: dict[str, float]
    predictions: dict[str, Tensor]


class Classification:
    """One label an image. `smoothing` spreads that share of a target over all classes."""

    metrics = ("top1", "top5", "loss")

    def __init__(self, smoothing: float = 0.0) -> None:
        self._hard = LabelSmoothingCrossEntropy(smoothing)
        self._soft = SoftTargetCrossEntropy()

    def build(self, model: Mapping, dataset, seed: int) -> nn.Module:
        """The model of a run's `model` section (a name and settings) for `dataset`.

        The suite's own models draw each parameter from `seed` and its name; timm's draw all from
        one stream. Raises UserError where model and data do not fit together.
        """
        name, settings = fitted(model, dataset)
        return create(name, settings, seed)

    def targets(self, model: nn.Module, labels: Tensor, *draw: int) -> Tensor:
        """Labels (B,) as they are."""
        return labels

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of images (B, C, H, W) and labels (B,) or mixed targets (B, classes)."""
        logits = _at_least_float32(model(images))
        return (self._soft if targets.ndim == 2 else self._hard)(logits, targets)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Evaluation:
        """Top-1 and top-5 accuracy in percent and mean cross entropy of a model in `eval` mode.

        Top-5 is the accuracy within all classes where there are fewer than five.
        """
        labels, predicted, within, losses = [], [], [], []
        for images, targets in batches:
            logits = _at_least_float32(model(images))
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices
            labels.append(targets)
            predicted.append(best[:, 0])
            within.append((best == targets[:, None]).any(dim=1))
            losses.append(F.cross_entropy(logits, targets, reduction="none"))
        label, prediction = torch.cat(labels).cpu(), torch.cat(predicted).cpu()
        metrics = {
            "top1": 100 * (label == prediction).double().mean().item(),
            "top5": 100 * torch.cat(within).double().mean().item(),
            "loss": torch.cat(losses).double().mean().item(),
        }
        predictions = {"label": label.to(torch.int16), "predicted": prediction.to(torch.int16)}
        return Evaluation(metrics, predictions)

    def collect(self, model: nn.Module, batches_of: Callable) -> Any:
        """Nothing is measured at the end alone."""

    def final(self, model: nn.Module, collected: Any) -> dict[str, float]:
        """Nothing is measured at the end alone."""
        return {}

    def picture(self, model: nn.Module, dataset) -> None:
        """There is nothing to show."""
        return None


def fitted(model: Mapping, dataset) -> tuple[str, dict]:
    """Name and settings of a run's `model` section, with the classes, channels and image size of
    `dataset`. UserError where the section says otherwise."""
    settings = dict(model)
    name = settings.pop("name")
    size = settings.get("image_size")
    if isinstance(size, int):
        settings["image_size"] = [size, size]
    needs = {
        "num_classes": dataset.num_classes,
        "in_channels": dataset.in_channels,
        "image_size": [dataset.config.image_size] * 2,
    }
    for key, needed in needs.items():
        given = settings.setdefault(key, needed)
        if given != needed:
            raise UserError(f"model.{key} = {given}, but {dataset.name} has {needed}")
    return name, settings


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def create(name: str, settings: dict, seed: int) -> nn.Module:
    """A model with `settings` that `fitted` has completed. UserError where timm cannot build it."""
    if not name.startswith(TIMM_PREFIX):
        return create_model(name, seed=seed, **settings)
    image = torch.zeros(1, settings["in_channels"], *settings["image_size"])
    torch.manual_seed(seed)
    try:
        model = create_timm(name, settings)
        try_image(model, name, image)
    except UserError as error:
        raise UserError(f"model.name: {error}") from error
    return model
