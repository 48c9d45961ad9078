"""Probes of a frozen encoder: a linear classifier, and the nearest neighbours of its features."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvim.tasks.classification import Classification

NEIGHBOURS = 20
TEMPERATURE = 0.07
# Training examples that a batch is compared with at once.
CHUNK = 2**16

Batches = Iterable[tuple[Tensor, Tensor]]
Collected = tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]


class Probe(nn.Module):
    """Images to logits: a frozen encoder, normalised features, one linear layer that learns.

    The batch norm has no affine part: it only brings features to one scale (arXiv 2111.06377).
    """

    def __init__(self, encoder: nn.Module, width: int, classes: int, seed: int) -> None:
        super().__init__()
        # Counted first: what is fixed already, as some models' positions are, was never learnt.
        self.frozen_parameters = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
        self.encoder = encoder.requires_grad_(False).eval()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.head = nn.Linear(width, classes)
        generator = torch.Generator().manual_seed(seed)
        nn.init.trunc_normal_(self.head.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.head.bias)

    def features(self, images: Tensor) -> Tensor:
        """Features (B, width) of images."""
        with torch.no_grad():
            return self.encoder(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.features(images)))

    def train(self, mode: bool = True) -> "Probe":
        """As of any module, but the encoder stays as it is evaluated."""
        super().train(mode)
        self.encoder.eval()
        return self


class LinearProbe(Classification):
    """Classification by a linear layer on a frozen encoder; k-nearest-neighbours at the end."""

    def build(self, model: Mapping, dataset, seed: int) -> nn.Module:
        """A probe of the model of a run's `model` section, its weights still to be loaded."""
        encoder = super().build(model, dataset, seed)
        encoder.reset_classifier(0)
        width = getattr(encoder, "head_hidden_size", encoder.num_features)
        return Probe(encoder, width, dataset.num_classes, seed)

    def collect(self, model: Probe, batches_of: Callable[[str], Batches]) -> Collected:
        """Features and labels of the training split, and those of the test split by its batches."""
        features, labels = zip(*_features(model, batches_of("train")), strict=True)
        return torch.cat(features), torch.cat(labels), list(_features(model, batches_of("test")))

    def final(self, model: Probe, collected: Collected) -> dict[str, float]:
        """`knn_top1`: accuracy in percent of the neighbours of the features, on the test split."""
        features, labels, asked = collected
        right = total = 0
        for found, targets in asked:
            nearest = neighbours(found, features, labels)
            right += int((vote(*nearest, model.head.out_features) == targets).sum())
            total += len(targets)
        return {"knn_top1": 100 * right / total}


def neighbours(found: Tensor, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Similarities and labels (B, K) of training examples, all neighbours of `found` among them.

    `found` (B, width) and `features` (N, width) have unit length. Of each chunk of the training
    set the nearest are kept, so that (B, N) similarities are never held.
    """
    similarities, classes = [], []
    for known, own in zip(features.split(CHUNK), labels.split(CHUNK), strict=True):
        nearest = (found @ known.T).topk(min(NEIGHBOURS, len(known)), dim=1)
        similarities.append(nearest.values)
        classes.append(own[nearest.indices])
    return torch.cat(similarities, dim=1), torch.cat(classes, dim=1)


def vote(similarity: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The class (B,) that the most similar of N examples say, for similarities (B, N).

    `labels` are (N,), or (B, N) where the examples differ.
    20 neighbours, each with the weight exp(cosine / 0.07) (Wu et al., arXiv 1805.01978).
    """
    nearest = similarity.topk(min(NEIGHBOURS, similarity.shape[1]), dim=1)
    weights = (nearest.values / TEMPERATURE).exp()
    said = labels.expand_as(similarity).gather(1, nearest.indices)
    votes = weights.new_zeros(len(similarity), classes)
    return votes.scatter_add(1, said, weights).argmax(dim=1)


def _features(model: Probe, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """Features of unit length (B, width) and labels (B,) of each batch."""
    for images, labels in batches:
        yield F.normalize(model.features(images).float(), dim=1), labels
