"""Fixtures that tests of several rooms share."""

import os

import pytest


@pytest.fixture(scope="module")
def one_thread():
    """One thread here and in processes started from here: fastest for very small runs."""
    import torch

    threads, variable = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    yield
    torch.set_num_threads(threads)
    if variable is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = variable
