"""What a run optimises and measures.

A task has the names of its `metrics`, and these methods:

- `build(model, dataset, seed)` makes the network of a run's model section;
- `targets(model, labels, seed, epoch, batch)` says what a training batch is trained towards;
- `loss(model, images, targets)` is the mean over a batch;
- `evaluate(model, batches)` measures a split;
- `collect(model, batches_of)` and `final(model, collected)` measure what is measured once, at the
  end: the model only runs in the first, in the run's precision, and figures are made of what it
  gave in the second, in float32; `batches_of(split)` iterates over a split;
- `picture(model, dataset)` shows, as a PNG file's bytes, what a model does, or is None.

Finetuning is `classification` of a pretrained encoder (`fastvim.tasks.transfer`).
"""

from typing import TYPE_CHECKING

from fastvim.errors import UserError, nearest

if TYPE_CHECKING:
    from fastvim.models.config import MaskingConfig
    from fastvim.tasks.classification import Classification
    from fastvim.tasks.masked_autoencoding import MaskedAutoencoding
    from fastvim.training.recipe import Recipe

# Task -> what a finished run has measured on the test split.
TASKS = {
    "classification": ("top1", "top5", "loss"),
    "linear-probe": ("top1", "top5", "loss", "knn_top1"),
    "masked-autoencoding": ("loss",),
}


def create(
    name: str, recipe: "Recipe", masking: "MaskingConfig | None" = None
) -> "Classification | MaskedAutoencoding":
    """The task called `name`, with what the recipe says of its loss. UserError if unknown.

    `masking` is for masked autoencoding alone, whose published values are the default.
    """
    if name not in TASKS:
        raise UserError(
            f"task: there is no task {name!r}{nearest(name, TASKS)}; one of {', '.join(TASKS)}"
        )
    if name == "masked-autoencoding":
        from fastvim.models.config import MaskingConfig
        from fastvim.tasks.masked_autoencoding import MaskedAutoencoding

        return MaskedAutoencoding(masking or MaskingConfig())
    if name == "linear-probe":
        from fastvim.tasks.probing import LinearProbe

        return LinearProbe(smoothing=recipe.smoothing)
    from fastvim.tasks.classification import Classification

    return Classification(smoothing=recipe.smoothing)
