"""The results of `fastvim stability`: one row a variant over its ladder of learning rates."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from fastvim.analysis import load_claims
from fastvim.analysis.claims import scale_from_config
from fastvim.analysis.ledger import judge
from fastvim.experiments.stability import CLAIM, NAME, Request, variant_name
from fastvim.files import write_atomic
from fastvim.reports.stability_factors import factor_answers
from fastvim.reports.stability_figures import draw_losses, draw_sensitivity
from fastvim.reports.stability_table import LAST_STEPS, THROWN_BACK, counted_loss, markdown
from fastvim.reports.study import Study, StudyRun
from fastvim.stability.alternatives import SCORE_LEAST, spike_score
from fastvim.stability.episodes import DIVERGENCE, NONFINITE
from fastvim.training.recorded import recorded_summary
from fastvim.training.responses import read_responses

FORMAT = 1


def write_stability(study: Study, request: Request, output: Path) -> tuple[str, list[Path]]:
    """Write table.md, results.json and the plots to `output`; the table and the paths written."""
    results = summarise(study, request)
    text = markdown(results)
    files: dict[str, str | bytes] = {
        "table.md": text,
        "results.json": json.dumps(results, indent=2, allow_nan=False) + "\n",
        "loss.png": draw_losses(study, results),
        "sensitivity.png": draw_sensitivity(results),
    }
    for name, content in files.items():
        write_atomic(output / name, content)
    return text, [output / name for name in files]


def summarise(study: Study, request: Request) -> dict[str, Any]:
    """results.json. Its variants are those of the study with their ladders gathered.

    `seeds` and `metrics` have an entry a run, in the order of `runs`, which says the seed and the
    learning rate of each; episodes of every class count as spikes, NaN and infinity too.
    """
    configs = study.plan.variants
    groups = request.groups()
    ladder = [m for m in request.ladder if variant_name(next(iter(groups)), m) in configs]
    runs = {
        group: [
            measure(run, multiple)
            for multiple in ladder
            for run in study.runs_of(variant_name(group, multiple))
        ]
        for group in groups
    }
    everything = [run for group in runs.values() for run in group]
    # Where no run got below the loss at initialisation, that is the best.
    best = min(map(counted_loss, everything), default=None)
    first = variant_name(next(iter(groups)), ladder[0])
    variants = [_variant(group, found, ladder, best) for group, found in runs.items()]
    results = {
        "format": FORMAT,
        "experiment": NAME,
        "profile": request.size,
        "question": study.plan.question,
        "claim": CLAIM,
        "metric": "spikes",
        "command": study.plan.command,
        "scale": scale_from_config(configs[first].nested(), study.plan.train_images[first]),
        "ladder": ladder,
        "best_loss": best,
        "variants": variants,
        "factors": factor_answers(variants, request),
        "norm_costs": _norm_costs(variants),
        "emulated_float16": _emulated(study),
        "contrasts": [],
        "problems": study.results["problems"],
        "missing": [f"{name}-seed{seed}: {state}" for name, seed, state in study.states],
    }
    claims = load_claims()
    judged = judge(claims[CLAIM], results, claims)
    # Text where this study does not have what the claim compares.
    results["verdict"] = None if isinstance(judged, str) else judged[0].to_dict()
    return results


def measure(run: StudyRun, multiple: float) -> dict[str, Any]:
    """What one run's history says; `final_loss` is None where it ended in NaN or infinity.

    A run diverged when its loss was no number, when it ended no lower than it began, or when its
    last episode was a divergence. `stability_table.UNSTABLE` says when it was unstable.
    """
    loss, episodes = run.curves.loss, run.curves.episodes
    initial = float(loss[0])
    count = max(LAST_STEPS, len(loss) // 10)
    lost = run.record.state == "diverged" or not np.isfinite(loss).all()
    final = None if lost else float(np.mean(loss[-count:]))
    path = run.record.directory / "history.csv"
    norms = np.genfromtxt(path, delimiter=",", names=True, ndmin=1)["grad_norm"]
    kept = norms[np.isfinite(norms)]
    gone = bool(episodes) and episodes[-1].kind in (DIVERGENCE, NONFINITE)
    diverged = bool(final is None or final >= initial or gone)
    highest = float(loss[np.isfinite(loss)].max(initial=initial))
    return {
        "directory": run.record.directory.name,
        "seed": run.seed,
        "lr_multiple": multiple,
        "lr": run.record.run.config.training.peak_lr,
        "steps": len(loss),
        "initial_loss": initial,
        "final_loss": final,
        "highest_loss": highest,
        "diverged": diverged,
        "unstable": diverged or bool(episodes) or highest > THROWN_BACK * initial,
        "episodes": [episode.to_dict() for episode in episodes],
        "spike_score": spike_score(loss) if len(loss) > SCORE_LEAST else None,
        "largest_grad_norm": float(kept.max()) if len(kept) else None,
        "grad_norm_finite": len(kept) == len(norms),
        "images_per_second": run.record.result["cost"]["train_images_per_second"],
        "attributions": _attributions(run.record.directory / "episodes"),
        "responses": [response.to_dict() for response in read_responses(run.record.directory)],
    }


def _attributions(folder: Path) -> dict[str, str]:
    """Step -> what the recorder said, for episodes that it could attribute."""
    found = {}
    for path in sorted(folder.glob("*.json"), key=lambda path: int(path.stem)):
        summary = recorded_summary(folder.parent, int(path.stem))
        if summary is not None:
            found[path.stem] = summary
    return found


def _variant(
    group: str, runs: list[dict], ladder: Sequence[float], best: float | None
) -> dict[str, Any]:
    scores = [run["spike_score"] for run in runs if run["spike_score"] is not None]
    norms = [run["largest_grad_norm"] for run in runs if run["largest_grad_norm"] is not None]
    speeds = [run["images_per_second"] for run in runs if run["images_per_second"]]
    regrets = [counted_loss(run) - best for run in runs if best is not None]
    stable = None
    for multiple in ladder:
        at = [run for run in runs if run["lr_multiple"] == multiple]
        if not at or any(run["unstable"] for run in at):
            break
        stable = at[0]["lr"]
    return {
        "name": group,
        "seeds": list(range(len(runs))),
        "metrics": {
            "spikes": [len(run["episodes"]) for run in runs],
            "final_loss": [run["final_loss"] for run in runs],
        },
        "cost": {"train_images_per_second": max(speeds, default=None)},
        "spikes": sum(len(run["episodes"]) for run in runs),
        "diverged": sum(run["diverged"] for run in runs),
        "unstable": sum(run["unstable"] for run in runs),
        "highest_loss": max((run["highest_loss"] for run in runs), default=None),
        "spike_score": mean(scores) if scores else None,
        "largest_grad_norm": max(norms) if norms else None,
        "grad_norm_finite": all(run["grad_norm_finite"] for run in runs),
        "highest_stable_lr": stable,
        "lr_sensitivity": mean(regrets) if regrets else None,
        "runs": runs,
    }


def _norm_costs(variants: list[dict]) -> dict[str, float]:
    """Variant with the norm -> the training throughput that it loses by it, in percent."""
    speeds = {v["name"]: v["cost"]["train_images_per_second"] for v in variants}
    return {
        name: 100 * (1 - speed / speeds[bare])
        for name, speed in speeds.items()
        for bare in [name.replace("-with", "-without")]
        if bare != name and "-without" not in name and speed and speeds.get(bare)
    }


def _emulated(study: Study) -> bool:
    return any(
        run.record.run.config.training.precision == "float16"
        and run.record.result.get("device") == "cpu"
        for run in study.runs
    )
