"""How often two variants answer differently on the same test images."""

from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fastvim.analysis.disagreement import PooledDisagreement, pooled_disagreement
from fastvim.errors import UserError
from fastvim.reports.study import Study, StudyRun

FILE = "predictions.safetensors"


@dataclass(frozen=True)
class PairDisagreement:
    """One contrast's; `found` is None, for the `reason`, where predictions cannot be compared."""

    variant: str
    baseline: str
    found: PooledDisagreement | None
    reason: str = ""


def disagreements(study: Study) -> list[PairDisagreement]:
    """One for each contrast of the study, pooled over the seeds that both variants finished."""
    result = []
    for contrast in study.results["contrasts"]:
        variant, baseline = contrast["variant"], contrast["baseline"]
        theirs = {run.seed: _predictions(run) for run in study.runs_of(baseline)}
        pairs: dict[int, tuple] = {}
        for run in study.runs_of(variant):
            own, other = _predictions(run), theirs.get(run.seed)
            if own is not None and other is not None:
                if not np.array_equal(own[0], other[0]):
                    pairs.clear()
                    break
                pairs[run.seed] = (own[0], other[1], own[1])
        try:
            found = pooled_disagreement(pairs) if pairs else None
            reason = "" if found else "no seed has predictions of both on the same test images"
        except UserError as error:
            found, reason = None, str(error)
        result.append(PairDisagreement(variant, baseline, found, reason))
    return result


def _predictions(run: StudyRun) -> tuple[np.ndarray, np.ndarray] | None:
    """(labels, predicted classes), int arrays (examples,); None where there are none."""
    try:
        arrays = load_file(run.record.directory / FILE)
        return arrays["label"], arrays["predicted"]
    except (OSError, KeyError, SafetensorError):
        return None
