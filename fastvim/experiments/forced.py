"""FASTVIM_KERNELS and runs that are there already: those of another backend are no answer to it."""

import os
from collections.abc import Mapping

VARIABLE = "FASTVIM_KERNELS"
# What a run records whose model uses none of our operators: no backend changes it.
NONE_OF_OURS = "pytorch"


def check_forced() -> None:
    """UserError unless the backend that FASTVIM_KERNELS names, if it is set, works here."""
    name = os.environ.get(VARIABLE)
    if name:
        from fastvim.kernels import backends  # with torch, which a plan alone does without

        backends.require(name)


def other_backend(result: Mapping) -> str | None:
    """The backend that computed `result`, where FASTVIM_KERNELS forces another; else None."""
    forced = os.environ.get(VARIABLE)
    backend = result.get("backend", "unknown")
    return backend if forced and backend not in (forced, NONE_OF_OURS) else None
