"""What a run optimises and measures.

A task has a `name`, the names of its `metrics`, and three methods: `build(model, dataset, seed)`
makes the network of a run's model section, `loss(model, images, targets)` is the mean over a
batch, and `evaluate(model, batches)` measures a split.
"""

from typing import TYPE_CHECKING

from fastvim.errors import UserError, nearest

if TYPE_CHECKING:
    from fastvim.tasks.classification import Classification
    from fastvim.training.recipe import Recipe

TASKS = ("classification",)


def create(name: str, recipe: "Recipe") -> "Classification":
    """The task called `name`, with what the recipe says of its loss. UserError if unknown."""
    if name not in TASKS:
        raise UserError(
            f"task: there is no task {name!r}{nearest(name, TASKS)}; one of {', '.join(TASKS)}"
        )
    from fastvim.tasks.classification import Classification

    return Classification(smoothing=recipe.smoothing)
