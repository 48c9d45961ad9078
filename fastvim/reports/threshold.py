"""The results of `fastvim stability threshold`: the smallest unstable models and the boundary."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastvim.analysis.boundary import Boundary, Trial, fit_boundary
from fastvim.experiments.stability import FACTORS, variant_name
from fastvim.experiments.threshold import Body, ThresholdRequest, group_name
from fastvim.files import write_atomic
from fastvim.reports.stability import measure
from fastvim.reports.stability_table import UNSTABLE
from fastvim.reports.study import Study
from fastvim.reports.tables import markdown_row
from fastvim.reports.threshold_figure import draw_grid

FORMAT = 1


def write_threshold(
    study: Study, request: ThresholdRequest, output: Path
) -> tuple[str, list[Path]]:
    """Write table.md, results.json and grid.png to `output`; the table and the paths written."""
    norms = FACTORS["norm"]
    found = [_side(study, request, name, norm) for name in request.backbones for norm in norms]
    sides = [side for side, _ in found]
    boundaries = {side["name"]: boundary for side, boundary in found}
    results = {
        "format": FORMAT,
        "experiment": "stability-threshold",
        "vary": request.vary,
        "profile": request.profile,
        "command": study.plan.command,
        "definition": UNSTABLE,
        "sides": sides,
        "verdict": verdict(sides, request),
        "problems": study.results["problems"],
        "missing": [f"{name}-seed{seed}: {state}" for name, seed, state in study.states],
    }
    text = markdown(results)
    files: dict[str, str | bytes] = {
        "table.md": text,
        "results.json": json.dumps(results, indent=2, allow_nan=False) + "\n",
        "grid.png": draw_grid(sides, boundaries, request.vary),
    }
    for name, content in files.items():
        write_atomic(output / name, content)
    return text, [output / name for name in files]


def _side(
    study: Study, request: ThresholdRequest, backbone: str, norm: str
) -> tuple[dict[str, Any], Boundary | None]:
    """One backbone with or without the norm, and its boundary."""
    runs = []
    for body in request.bodies:
        for multiple in request.ladder:
            for run in study.runs_of(variant_name(group_name(backbone, norm, body), multiple)):
                found = measure(run, multiple)
                runs.append({"width": body[0], "depth": body[1], **found})
    trials = [Trial(run["width"], run["depth"], run["lr"], run["unstable"]) for run in runs]
    boundary = fit_boundary(trials)
    rates = sorted({run["lr"] for run in runs})
    side = {
        "name": f"{backbone}, {norm} norm",
        "backbone": backbone,
        "norm": norm,
        "unstable_runs": sum(run["unstable"] for run in runs),
        "smallest_unstable": {f"{lr:g}": _smallest(runs, lr) for lr in rates},
        "boundary": boundary and _plain(asdict(boundary)),
        "critical_lr": {
            f"w{width}-d{depth}": boundary and boundary.critical_lr(width, depth)
            for width, depth in request.bodies
        },
        "follows": {k: boundary.follows(k) if boundary else "no fit" for k in ("width", "depth")},
        "runs": runs,
    }
    return side, boundary


def _smallest(runs: Sequence[Mapping[str, Any]], lr: float) -> Body | None:
    """Of the bodies with an unstable run at `lr`, the one of the fewest weights, about
    depth x width^2."""
    found = [(run["width"], run["depth"]) for run in runs if run["lr"] == lr and run["unstable"]]
    return min(found, key=lambda body: (body[1] * body[0] ** 2, body), default=None)


def _plain(value: Any) -> Any:
    """With None for infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def verdict(sides: Sequence[Mapping[str, Any]], request: ThresholdRequest) -> str:
    """What the runs say, in sentences; each rests on intervals, or says that it does not."""
    said = []
    for side in sides:
        total = len(side["runs"])
        if not side["unstable_runs"]:
            said.append(f"{side['name']}: not reached, none of {total} runs was unstable.")
            continue
        lr, body = next((lr, body) for lr, body in side["smallest_unstable"].items() if body)
        sentence = (
            f"{side['name']}: {side['unstable_runs']} of {total} runs unstable, the smallest model "
            f"at the lowest such rate ({lr}) has width {body[0]} and depth {body[1]}"
        )
        if side["boundary"] is None:
            said.append(f"{sentence}; every run was, so the boundary lies below this grid.")
            continue
        varied = [name for name in ("width", "depth") if name in side["boundary"]["coefficients"]]
        grows = [name for name in varied if side["follows"][name] == "yes"]
        falls = [name for name in varied if side["follows"][name] == "no"]
        parts = []
        if grows:
            parts.append(f"instability grows with {' and '.join(grows)}")
        if falls:
            parts.append(f"it falls with {' and '.join(falls)}")
        rest = [name for name in varied if name not in grows + falls]
        if rest:
            parts.append(f"whether it follows {' or '.join(rest)} is unresolved")
        said.append(f"{sentence}; {', '.join(parts)}.")
    return " ".join(said)


def markdown(results: Mapping[str, Any]) -> str:
    """table.md: a row a side."""
    sides = results["sides"]
    rates = list(sides[0]["smallest_unstable"])
    heads = [
        "model",
        "unstable runs",
        *(f"smallest unstable at lr {rate}" for rate in rates),
        *(f"log-odds a doubling of {name} [95 % CI]" for name in ("width", "depth", "lr")),
    ]
    lines = [f"# Threshold of instability over {results['vary']}, {results['profile']}", ""]
    lines += [markdown_row(heads), markdown_row(["---"] * len(heads))]
    for side in sides:
        smallest = (side["smallest_unstable"].get(rate) for rate in rates)
        lines.append(
            markdown_row(
                [
                    side["name"],
                    f"{side['unstable_runs']} of {len(side['runs'])}",
                    *(f"w{b[0]} d{b[1]}" if b else "not reached" for b in smallest),
                    *(_coefficient(side["boundary"], name) for name in ("width", "depth", "lr")),
                ]
            )
        )
    seeds = len({run["seed"] for side in sides for run in side["runs"]})
    lines += [
        "",
        results["verdict"],
        "",
        f"- {results['definition']}",
        "- Smallest: fewest weights, about depth x width^2.",
        "- The boundary is a logistic regression on log2 of width, depth and learning rate with "
        "Firth's penalty (1993) and profile intervals (Heinze and Schemper 2002). Runs count as "
        "independent, though the runs of a seed share their data "
        f"({seeds} seed{'s' * (seeds != 1)} here).",
        *(f"- No result: {missing}" for missing in results["missing"]),
        *(f"- Skipped: {problem}" for problem in results["problems"]),
        "",
        "Made by",
        "",
        f"    {results['command']}",
        "",
    ]
    return "\n".join(lines)


def _coefficient(boundary: Mapping[str, Any] | None, name: str) -> str:
    if boundary is None:
        return "no fit"
    if name not in boundary["coefficients"]:
        return "not varied"
    low, high = boundary["intervals"][name]
    ends = (
        "-inf" if low is None else f"{low:+.2f}",
        "inf" if high is None else f"{high:+.2f}",
    )
    return f"{boundary['coefficients'][name]:+.2f} [{ends[0]}, {ends[1]}]"
