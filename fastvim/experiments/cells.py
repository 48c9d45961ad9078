"""`--grid`: every combination of the values of its keys, and what to call it."""

import itertools
import re
from collections.abc import Sequence

from fastvim.errors import UserError
from fastvim.experiments.documents import parse_value
from fastvim.experiments.experiment import GRID
from fastvim.experiments.schema import MAX_RUNS
from fastvim.experiments.settings import Layer, Setting, split_assignment


def cells(grid: Sequence[str]) -> dict[str, Layer]:
    """Every combination of the grid's values: suffix of the variant's name -> layer."""
    axes: list[list[tuple[str, str, Setting]]] = []
    for rank, text in enumerate(grid):
        key, listed, place = split_assignment(text, "--grid")
        values = parse_value(f"[{listed}]", place)
        if not isinstance(values, list) or not values:
            raise UserError(f"{place}: expected key=a,b,c")
        named = zip(_names(values), values, strict=True)
        axes.append([(key, text, Setting(v, "--grid", place, GRID + rank)) for text, v in named])
    if not axes:
        return {"": {}}
    keys = [axis[0][0] for axis in axes]
    if len(set(keys)) != len(keys):
        raise UserError("--grid: the same key is given twice")
    if len({key.rpartition(".")[2] for key in keys}) == len(keys):
        labels = {key: key.rpartition(".")[2] for key in keys}
    else:
        labels = {key: key for key in keys}
    found: dict[str, Layer] = {}
    total = 1
    for axis in axes:
        total *= len(axis)
    if total > MAX_RUNS:
        raise UserError(f"--grid: {total} combinations; the limit is {MAX_RUNS} runs")
    for combination in itertools.product(*axes):
        suffix = "".join(f"+{labels[key]}={text}" for key, text, _ in combination)
        if suffix in found:
            raise UserError(f"--grid: the same value comes twice ({suffix[1:]})")
        found[suffix] = {key: setting for key, _, setting in combination}
    return found


def _names(values: list) -> list[str]:
    """What to call each of a key's grid values; different ones that look alike are numbered."""
    names: list[str] = []
    for place, value in enumerate(values):
        name = _as_text(value)
        alike = name in names and value not in values[:place]
        names.append(f"{name}-{place + 1}" if alike else name)
    return names


def _as_text(value: object) -> str:
    """A grid value as a part of a variant's name, which is also a folder's."""
    text = "-".join(map(str, value)) if isinstance(value, list) else str(value)
    text = text.replace("e+", "e")
    return re.sub(r"[^A-Za-z0-9._-]", "-", text or "none")[:40]
