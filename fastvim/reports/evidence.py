"""All results below a folder, for the ledger of claims."""

import json
from pathlib import Path
from typing import Any

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
        problems += result.get("problems", [])
        results.append(result)
    return results, problems


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content["experiment"], str):
            raise TypeError("`experiment` is no text")
        for variant in content["variants"]:
            if not isinstance(variant["name"], str) or not isinstance(variant["metrics"], dict):
                raise TypeError("a variant without `name` or `metrics`")
        return content
    except KeyError as error:
        raise UserError(f"{path}: not the results of an experiment: no {error}") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: not the results of an experiment: {reason}") from None
