"""How many runs go side by side where nobody says: `--jobs auto`."""

from collections.abc import Sequence

from fastvim.experiments.schema import RunConfig
from fastvim.experiments.store import Run
from fastvim.experiments.workers import cores

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
    grid = getattr(config.model, "grid_size", None)
    if grid is None:  # A model of timm, whose size is not known before it is built.
        return False
    tokens = grid[0] * grid[1] * config.training.forward_size
    return tokens * config.model.d_inner * config.model.depth <= SMALL_STEP
