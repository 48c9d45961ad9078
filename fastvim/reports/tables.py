"""The comparison as a table: Markdown, CSV, and rows for the terminal."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fastvim.files import write_atomic

PERCENT = ("top1", "top5", "knn_top1")
# What is kept of where a run was made.
MADE_ON = ("device", "cpu", "threads", "precision", "backend", "revision")
NAMES = {"top1": "top-1 %", "top5": "top-5 %", "loss": "loss", "knn_top1": "kNN %"}


def write_tables(output: str | Path, results: Mapping[str, Any]) -> None:
    """Write results.json, table.csv and table.md; UserError where `output` cannot be written."""
    output = Path(output)
    text = json.dumps(results, indent=2, allow_nan=False)
    write_atomic(output / "results.json", text + "\n")
    write_atomic(output / "table.csv", csv_table(results))
    write_atomic(output / "table.md", markdown(results))


def columns(results: Mapping[str, Any]) -> list[str]:
    """The heads of the table; all but the first and the last are numbers."""
    metric = NAMES[results["metric"]]
    own = [] if results["metric"] in PERCENT else [metric]
    return [
        "variant",
        *own,
        "top-1 %",
        "top-5 %",
        *([NAMES["knn_top1"]] if _has_neighbours(results) else []),
        f"{metric.removesuffix(' %')} difference [95 % CI]",
        "params M",
        "GFLOPs",
        "train img/s",
        "peak MB",
        "spikes",
        "diverged",
        "claim",
    ]


def _has_neighbours(results: Mapping[str, Any]) -> bool:
    """Whether a variant was probed by the nearest neighbours of its features."""
    found = (variant["metrics"].get("knn_top1", []) for variant in results["variants"])
    return any(value is not None for values in found for value in values)


def rows(results: Mapping[str, Any]) -> list[list[str]]:
    """A row a variant, as text, in the order of `columns`."""
    contrasts = {contrast["variant"]: contrast for contrast in results["contrasts"]}
    return [
        _row(variant, contrasts.get(variant["name"]), results) for variant in results["variants"]
    ]


def _row(variant: Mapping, contrast: Mapping | None, results: Mapping[str, Any]) -> list[str]:
    metrics, cost = variant["metrics"], variant["cost"]
    own = [] if results["metric"] in PERCENT else [spread(metrics[results["metric"]], 3)]
    runs = len(variant["seeds"])
    name = variant["name"]
    if variant["missing"]:
        name += f" ({runs} of {runs + len(variant['missing'])} runs)"
    diverged = f"{variant['diverged']} of {runs}" if variant["diverged"] else "no"
    parameters = cost["parameters"]
    return [
        name,
        *own,
        spread(metrics["top1"], 2),
        spread(metrics["top5"], 2),
        *([spread(metrics.get("knn_top1", []), 2)] if _has_neighbours(results) else []),
        difference(contrast) if contrast else "baseline",
        number(None if parameters is None else parameters / 1e6, ".4g"),
        number(cost["gflops"], ".4g"),
        number(cost["train_images_per_second"], ".0f"),
        number(cost["peak_memory_mb"], ".0f"),
        str(variant["spikes"]),
        diverged if runs else "-",
        _verdict(variant["name"], results),
    ]


def spread(values: list[float | None], digits: int) -> str:
    """`mean ± standard deviation` over the seeds that did not diverge (divisor n - 1)."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    text = f"{mean(known):.{digits}f}"
    return f"{text} ± {stdev(known):.{digits}f}" if len(known) > 1 else text


def difference(contrast: Mapping) -> str:
    """`+1.20 [+0.30, +2.10]`."""
    digits = 2 if contrast["metric"] in PERCENT else 3
    if contrast["difference"] is None:
        return "-"
    text = signed(contrast["difference"], digits)
    if contrast["interval"] is None:
        return f"{text} [no interval]"
    low, high = (signed(end, digits) for end in contrast["interval"])
    return f"{text} [{low}, {high}]"


def signed(value: float, digits: int) -> str:
    """`+1.20`; what rounds to nothing is `0.00`, without a sign."""
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"


def _verdict(name: str, results: Mapping[str, Any]) -> str:
    """What the evidence says of the claims about this variant."""
    said = [claim["verdict"] for claim in spoken_on(results) if claim["variant"] == name]
    return ", ".join(dict.fromkeys(said)) or "-"


def number(value: float | None, form: str) -> str:
    """A number for people, in a form as of `format`."""
    return "-" if value is None else format(value, form)


def notes(results: Mapping[str, Any]) -> list[str]:
    """What a reader must know beside the table, a sentence or two each."""
    lines = []
    baselines = {c["variant"]: c["baseline"] for c in results["contrasts"]}
    if not baselines:
        lines.append("No variant has its baseline in this table, so no differences are given.")
    elif len(set(baselines.values())) == 1:
        lines.append(f"Differences are from {next(iter(baselines.values()))}, paired by seed.")
    else:
        lines += [
            f"{name} is compared with {base}, paired by seed." for name, base in baselines.items()
        ]
    lines += _differently_made(results["variants"])
    lines += [
        f"{claim_words(claim)} The evidence here: {claim['verdict']}. {claim_reason(claim)}"
        for claim in spoken_on(results)
    ]
    others = len(results["claims"]) - len(spoken_on(results))
    if others:
        lines.append(
            f"{others} further claim{'s' * (others > 1)} of the paper about these variants "
            f"hold{'s' * (others == 1)} at another scale only; `fastvim claims` lists them."
        )
    lines += contrast_notes(results)
    for variant in results["variants"]:
        lines += [f"{variant['name']}, {line}" for line in response_lines(variant["responses"])]
        if variant["missing"]:
            seeds = ", ".join(map(str, variant["missing"]))
            lines.append(f"{variant['name']}: seed {seeds} has no result and is not counted.")
    lines += [f"Skipped: {problem}" for problem in results["problems"]]
    return lines


def contrast_notes(results: Mapping[str, Any]) -> list[str]:
    """What could not be computed and why; variants with the same note share a line."""
    said: dict[str, list[str]] = {}
    for contrast in results["contrasts"]:
        for note in contrast["notes"]:
            said.setdefault(note, []).append(contrast["variant"])
    return [f"{', '.join(names)}: {note}." for note, names in said.items()]


def decides_speed(made_on: Mapping[str, Any]) -> dict[str, Any]:
    """Of an entry of `made_on`, what runs must share for their speed and memory to be compared.

    The revision is not of it: most change neither, and a table would lose both with each.
    """
    names = ["device", "precision", "backend"]
    if made_on["device"] == "cpu":  # Beside a GPU its processor matters less.
        names[1:1] = ["cpu", "threads"]
    return {name: made_on[name] for name in names}


def _differently_made(variants: Sequence[Mapping[str, Any]]) -> list[str]:
    made_on = [place for variant in variants for place in variant["made_on"]]
    deciding = [decides_speed(place) for place in made_on]
    values = {
        name: dict.fromkeys(str(place[name]) for place in deciding if name in place)
        for name in MADE_ON
    }
    differing = [f"{name} ({'; '.join(found)})" for name, found in values.items() if len(found) > 1]
    revisions = dict.fromkeys(str(place["revision"]) for place in made_on)
    lines = []
    if differing:
        lines.append(
            f"The runs were not all made alike: {', '.join(differing)}. Speed and memory compare "
            "only between those that were, and are left out where a variant's own runs were not."
        )
    if len(revisions) > 1:
        lines.append(
            f"The runs are of several revisions of the code ({'; '.join(revisions)}), between "
            "which speed and memory may have changed, too."
        )
    return lines


def response_lines(responses: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each seed's training did about spikes, a line a seed, from entries of `responses`."""
    steps: dict[tuple[int, str], list[str]] = {}
    for response in responses:
        key = response["seed"], response["response"]
        steps.setdefault(key, []).append(str(response["step"]))
    return [
        f"seed {seed}: training answered spikes by {response}, in step{'s' * (len(found) > 1)} "
        f"{', '.join(found)}."
        for (seed, response), found in steps.items()
    ]


def spoken_on(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The experiment's own claim, and those on which evidence from its scale can speak."""
    return [
        claim
        for claim in results["claims"]
        if claim["id"] == results["claim"] or claim["speaks_on"] != "nothing"
    ]


def claim_words(claim: Mapping[str, Any]) -> str:
    """The claim, and what was published."""
    statement = claim["statement"].strip().rstrip(".")
    return f"Claim {claim['id']}: {statement} (published: {claim['published']})."


def claim_reason(claim: Mapping[str, Any]) -> str:
    """Why the verdict is what it is, and the seeds that would settle it."""
    needed = claim["seeds_needed"]
    more = f" About {needed} seeds of each variant would settle it." if needed else ""
    return f"{claim['reason']}{more}"


def markdown(results: Mapping[str, Any]) -> str:
    """table.md: the question, the table, and what must be known beside it."""
    heads = columns(results)
    text = [f"# {_cell(results['experiment'])}, profile {_cell(results['profile'])}", ""]
    text += [_cell(results["question"]), ""] if results["question"] else []
    text += [markdown_row(heads), markdown_row(["---"] + ["---:"] * (len(heads) - 2) + ["---"])]
    text += [markdown_row(row) for row in rows(results)]
    text += [""] + [f"- {_cell(note)}" for note in notes(results)]
    text += ["", "Made by", "", f"    {' '.join(results['command'].split())}", ""]
    return "\n".join(text)


def markdown_row(cells: Iterable[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    # A name from a foreign run may hold anything; Markdown would take tags as HTML.
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def csv_table(results: Mapping[str, Any]) -> str:
    """table.csv: a line a variant, with full precision; empty where there is nothing."""
    contrasts = {contrast["variant"]: contrast for contrast in results["contrasts"]}
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    metrics = ("top1", "top5", "loss", *(["knn_top1"] if _has_neighbours(results) else []))
    heads = ["variant", "seeds"]
    for metric in metrics:
        heads += [f"{metric}_mean", f"{metric}_sd"]
    costs = list(results["variants"][0]["cost"])
    heads += ["baseline", "metric", "difference", "low", "high", "verdict", *costs]
    writer.writerow([*heads, "spikes", "diverged", "missing"])
    for variant in results["variants"]:
        row: list[Any] = [variant["name"], " ".join(map(str, variant["seeds"]))]
        for metric in metrics:
            known = [value for value in variant["metrics"][metric] if value is not None]
            row += [mean(known) if known else None, stdev(known) if len(known) > 1 else None]
        contrast = contrasts.get(variant["name"])
        if contrast is None:
            row += [None] * 6
        else:
            low, high = contrast["interval"] or (None, None)
            row += [contrast["baseline"], contrast["metric"], contrast["difference"], low, high]
            row.append(contrast["verdict"])
        row += [variant["cost"][cost] for cost in costs]
        row += [variant["spikes"], variant["diverged"], len(variant["missing"])]
        # Python 3.10 writes no NUL, which a foreign run's name may hold.
        writer.writerow([c.replace("\0", "\ufffd") if isinstance(c, str) else c for c in row])
    return stream.getvalue()
