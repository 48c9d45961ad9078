"""results.json: what an output folder's run directories say, and what follows from it."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from fastvim.analysis import contrasts, load_claims
from fastvim.analysis.claims import Claim, scale_from_config
from fastvim.analysis.ledger import judge
from fastvim.experiments.record import RecordedPlan, read_plan
from fastvim.experiments.store import FINAL, RunRecord, Store
from fastvim.reports.tables import MADE_ON, decides_speed
from fastvim.training.responses import read_responses

FORMAT = 1
ENVIRONMENT = "environment.json"
METRICS = ("top1", "top5", "loss", "knn_top1")
COUNTED = ("parameters", "gflops")
MEASURED = ("train_images_per_second", "peak_memory_mb", "seconds")


def gather(output: str | Path, plan: RecordedPlan | None = None) -> dict[str, Any]:
    """The results of the experiment in `output`, computed from its run directories.

    `plan` is reported where it is given, else the one that `output` records.

    Metrics are of the test split, a value a seed in the order of `seeds` (top1 and top5 in
    percent), None where the seed diverged; runs that are not finished are in `missing`, run
    directories that cannot be believed in `problems`, and neither is counted. Costs are the
    median over seeds, measured ones only where the runs were made alike (`decides_speed`);
    `made_on` says where they were made, each place once. Raises UserError when `output` holds no
    experiment.
    """
    plan, store = plan or read_plan(Path(output)), Store(Path(output))
    records: dict[str, dict[int, RunRecord]] = {name: {} for name in plan.variants}
    missing: dict[str, list[int]] = {name: [] for name in plan.variants}
    problems: list[str] = []
    for run in plan.runs:
        record, broken = store.lookup(run)
        problems += broken
        if record is not None and record.state in FINAL:
            records[run.variant][run.seed] = record
        else:
            missing[run.variant].append(run.seed)
    variants = [
        variant_entry(name, plan.baselines.get(name), records[name], missing[name])
        for name in plan.variants
    ]
    return assemble(plan, variants, problems)


def assemble(plan: RecordedPlan, variants: list[dict], problems: list[str]) -> dict[str, Any]:
    """results.json of variants that have been read: contrasts and verdicts added."""
    claims = load_claims()
    ours = [c for c in claims.values() if c.id == plan.claim or plan.name in c.experiments]
    values = {
        v["name"]: dict(zip(v["seeds"], v["metrics"][plan.metric], strict=True)) for v in variants
    }
    scales = {
        name: scale_from_config(config.nested(), plan.train_images.get(name))
        for name, config in plan.variants.items()
    }
    variants = [{**v, "scale": scales[v["name"]]} if v["name"] in scales else v for v in variants]
    scale = _shared(list(scales.values()))
    results = {
        "format": FORMAT,
        "experiment": plan.name,
        "profile": plan.profile,
        "question": plan.question,
        "claim": plan.claim,
        "metric": plan.metric,
        "command": plan.command,
        "scale": scale,
        "variants": variants,
        "contrasts": contrasts(values, list(plan.baselines.items()), plan.metric, ours, scale),
        "problems": problems,
    }
    results["claims"] = [_judged(claim, results, claims) for claim in ours]
    return results


def variant_entry(
    name: str, baseline: str | None, records: Mapping[int, RunRecord], missing: list[int]
) -> dict[str, Any]:
    """An entry of results.json's `variants`, from the finished runs of one, by seed."""
    seeds = sorted(records)
    results = [records[seed].result for seed in seeds]
    metrics = {
        metric: [(result.get("metrics") or {}).get(metric) for result in results]
        for metric in METRICS
    }
    spikes = [int(result.get("spikes") or 0) for result in results]
    made_on = [_made_on(records[seed]) for seed in seeds]
    costs = [result.get("cost") or {} for result in results]
    deciding = [decides_speed(place) for place in made_on]
    alike = all(place == deciding[0] for place in deciding)
    known = COUNTED + MEASURED if alike else COUNTED
    return {
        "name": name,
        "baseline": baseline,
        "seeds": seeds,
        "metrics": {**metrics, "spikes": spikes},
        "cost": {
            name: _median(cost.get(name) for cost in costs) if name in known else None
            for name in COUNTED + MEASURED
        },
        "spikes": sum(spikes),
        "responses": [
            {"seed": seed, **response.to_dict()}
            for seed in seeds
            for response in read_responses(records[seed].directory)
        ],
        "diverged": sum(records[seed].state == "diverged" for seed in seeds),
        "missing": missing,
        "made_on": [place for i, place in enumerate(made_on) if place not in made_on[:i]],
        "runs": [records[seed].directory.name for seed in seeds],
    }


def read_environment(directory: Path) -> dict[str, Any] | None:
    """A run's environment.json; None where it cannot be read."""
    try:
        content = json.loads((directory / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else {}


def _made_on(record: RunRecord) -> dict[str, Any]:
    """`MADE_ON` of a run; None for what its environment.json does not say."""
    said = read_environment(record.directory) or {}
    known = {**said, "backend": record.result.get("backend")}
    return {name: known.get(name) for name in MADE_ON}


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    if len(set(known)) == 1:
        return known[0]  # A count stays a whole number.
    return median(known) if known else None


def _shared(scales: list[dict[str, Any]]) -> dict[str, Any]:
    """What all variants' scales have in common."""
    first, *others = scales
    return {k: v for k, v in first.items() if all(other.get(k) == v for other in others)}


def _judged(claim: Claim, results: Mapping, claims: Mapping[str, Claim]) -> dict[str, Any]:
    entry = {
        "id": claim.id,
        "statement": claim.statement,
        "published": claim.published,
        "variant": claim.variant,
        "baseline": claim.baseline,
        "metric": claim.metric,
    }
    judged = judge(claim, results, claims)
    if isinstance(judged, str):
        nothing = {"verdict": "unresolved", "speaks_on": "nothing", "seeds_needed": None}
        return {**entry, **nothing, "reason": f"{judged[0].upper()}{judged[1:]}."}
    verdict, _ = judged
    return {
        **entry,
        "verdict": verdict.verdict,
        "speaks_on": verdict.speaks_on,
        "reason": verdict.reason,
        "seeds_needed": verdict.seeds_needed,
    }
