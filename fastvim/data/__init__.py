"""Data sets and transforms; every source states its licence and layout.

Importing this package, or `fastvim.data.config`, loads no torch, so that the command line can
check a configuration and list the data sets quickly; `load` imports the rest.
"""

from typing import TYPE_CHECKING

from fastvim.data.config import DataConfig
from fastvim.data.locate import find_datasets

if TYPE_CHECKING:
    from fastvim.data.dataset import Dataset

__all__ = ["DataConfig", "find_datasets", "load"]


def load(config: DataConfig) -> "Dataset":
    """Read the data set that `config` names; see `fastvim.data.dataset.load_dataset`.

    Raises UserError when files are missing or damaged, naming what was looked for and where.
    """
    from fastvim.data.dataset import load_dataset

    return load_dataset(config)
