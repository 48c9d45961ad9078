"""All results below a folder, for the ledger of claims."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from fastvim.errors import UserError
from fastvim.experiments.record import FILE
from fastvim.files import files_below
from fastvim.reports.gather import gather

RESULTS = "results.json"


def collect_results(folder: str | Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Every result below `folder`, and what is wrong with those left out.

    Where the runs are there, they are read anew; a results.json that stands alone is taken as it
    is. Raises UserError when `folder` is no folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of results")
    results, problems = [], []
    found = {path.parent for path in files_below(folder) if path.name in (FILE, RESULTS)}
    for place in sorted(found):
        try:
            result = gather(place) if (place / FILE).exists() else _read(place / RESULTS)
        except UserError as error:
            problems.append(str(error))
            continue
        except OSError as error:
            problems.append(f"{error.filename or place}: cannot be read: {error.strerror}")
            continue
        problems += result.get("problems", [])
        results.append(result)
    return results, problems


class _Variant(BaseModel):
    """What the ledger reads of a variant: a value of each metric for each seed, costs, scale."""

    model_config = ConfigDict(strict=True)

    name: str
    seeds: list[int] = []
    metrics: dict[str, list[float | None]]
    cost: dict[str, float | list[float] | None] | None = None
    scale: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_value_a_seed(self) -> "_Variant":
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("a seed comes twice")
        for metric, values in self.metrics.items():
            if len(values) != len(self.seeds):
                raise ValueError(f"{len(values)} values of {metric} for {len(self.seeds)} seeds")
        return self


class _Contrast(BaseModel):
    metric: str | None = None
    variant: str
    baseline: str


class _Results(BaseModel):
    experiment: str
    command: str | None = None
    scale: dict[str, Any] | None = None
    variants: list[_Variant]
    contrasts: list[_Contrast] = []
    problems: list[str] = []


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        _Results.model_validate(content)
        return content
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = f"{where}: {first['msg']}" if where else first["msg"]
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error)
    reason = " ".join(reason.split())[:120]
    raise UserError(f"{path}: not the results of an experiment: {reason}")
