"""What makes two runs the same run: a hash over everything that decides the result."""

import functools
import hashlib
import importlib.util
import json
from pathlib import Path

from fastvim.experiments.schema import INTERPOLATE, RunConfig
from fastvim.training.recipe import WITHOUT_EFFECT

# Where a run's result is computed; the other rooms only arrange runs and read them.
ROOMS = ("kernels", "models", "tasks", "data", "training")
SOURCES = (".py", ".cpp", ".h", ".cu")
# The rest of a pretraining enters by its own identity.
INTERPOLATED = f"pretrained.{INTERPOLATE}"


@functools.cache
def code_version() -> str:
    """Hash of the source files that compute results (hex, 64 digits)."""
    digest = hashlib.sha256()
    for room in ROOMS:
        spec = importlib.util.find_spec(f"fastvim.{room}")
        for folder in spec.submodule_search_locations:
            for file in sorted(Path(folder).rglob("*")):
                if file.suffix in SOURCES and file.is_file():
                    name = f"{room}/{file.relative_to(folder).as_posix()}"
                    digest.update(f"{name}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def run_identity(
    config: RunConfig, seed: int, fingerprint: str, pretraining: str | None = None
) -> str:
    """The identity of a run (hex, 64 digits).

    `fingerprint` is the data set's, `pretraining` the identity of the run that this one starts
    from. The names of experiment, profile and variant play no part, so that experiments share
    runs. The data set enters by its fingerprint, wherever it lies.
    """
    values = {
        key: value
        for key, value in config.flat().items()
        if key not in WITHOUT_EFFECT and (key == INTERPOLATED or not key.startswith("pretrained."))
    }
    parts = {"config": values, "seed": seed, "data": fingerprint, "code": code_version()}
    if pretraining is not None:
        parts["pretraining"] = pretraining
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
