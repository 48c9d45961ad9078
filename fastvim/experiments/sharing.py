"""How many runs go side by side where nobody says: `--jobs auto`."""

from collections.abc import Sequence

from fastvim.experiments.schema import RunConfig
from fastvim.experiments.store import Run
from fastvim.experiments.workers import cores
from fastvim.models.config import ModelConfig

# Elements of a step (tokens x batch x inner width x layers) up to which a second thread mostly
# waits: fastvim_pico with batches of 100 (7.5e6) is below, fastvim_nano with 128 (4e7) above.
SMALL_STEP = 2e7


def choose_jobs(runs: Sequence[Run]) -> int:
    """As many as this process may use cores where every model is small and there is no GPU; else 1.

    It depends on the whole plan and the machine, not on which runs are still to do: the cores a
    run gets decide the last bits of its result, so a command given again must share alike.
    """
    from fastvim.training.devices import choose_device

    if choose_device().type != "cpu":
        return 1
    needed = {run.identity: run for run in runs}
    needed |= {run.pretraining.identity: run.pretraining for run in runs if run.pretraining}
    return cores() if all(_is_small(run.config) for run in needed.values()) else 1


def _is_small(config: RunConfig) -> bool:
    model = config.model
    if isinstance(model, ModelConfig):
        rows, cols = model.grid_size
        width, depth = model.d_inner, model.depth
    elif model.patch_size and model.embed_dim and model.depth:
        rows, cols = (size // model.patch_size for size in model.image_size)
        width, depth = 2 * model.embed_dim, model.depth
    else:  # A model of timm, whose size is not known before it is built.
        return False
    return rows * cols * config.training.forward_size * width * depth <= SMALL_STEP
