"""The resolution study as files: Markdown, CSV, JSON, plots, and results for the claims ledger."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from fastvim.files import write_atomic
from fastvim.profiling.machine import in_words
from fastvim.profiling.measurement import Measurement
from fastvim.reports import profile_tables as tables
from fastvim.reports.profile_figures import write_plots
from fastvim.reports.tables import markdown_row


def results(measurements: Sequence[Measurement], environment: dict) -> dict:
    """The study in the form of results.json, for the ledger of claims.

    A variant is a model at a size, `fastvim_tiny@2048`; its costs are one value a repeat, so
    that ratios are paired by round.
    """
    variants, device = [], environment.get("device")
    if device == "cpu":
        device = environment.get("cpu")
    for m in measurements:
        cost: dict[str, object] = {"parameters": m.parameters, "gflops": m.gflops}
        if m.literature_gflops is not None:
            cost["literature_gflops"] = m.literature_gflops
        if "forward" in m.seconds:
            cost["images_per_second"] = [m.batch / t for t in m.seconds["forward"].calls]
        if "training" in m.seconds:
            cost["train_images_per_second"] = [m.batch / t for t in m.seconds["training"].calls]
        seeds, metrics = [0], {}
        scan = m.scan_timing()
        if scan is not None:
            cost["ssm_seconds"] = [seconds / m.batch for seconds in scan.calls]
            if "broadcast" in m.stages:
                # A value by round, not by seed: nothing here is trained.
                metrics["repeat_share"] = tables.repeat_shares(m)
                seeds = list(range(len(metrics["repeat_share"])))
        variant = {"name": f"{m.model}@{m.resolution}", "seeds": seeds, "metrics": metrics}
        variants.append(variant | {"cost": cost, "scale": {"device": device, **m.scale}})
    return {
        "experiment": "profile",
        "command": environment.get("command"),
        "scale": {"device": device},
        "variants": variants,
        "contrasts": [],
    }


def machine(measurements: Sequence[Measurement], environment: dict) -> str:
    """In one line: what the figures were measured on."""
    return in_words(environment, [m.clock_mhz for m in measurements])


def write(
    measurements: Sequence[Measurement],
    compared: list[dict],
    environment: dict,
    settings: dict,
    complete: bool,
    folder: Path,
) -> list[Path]:
    """The plots, profile.csv, .md, results.json and profile.json, in `folder`; their paths.

    `settings` are what decided the figures, and `complete` whether all of them are there: see
    `read_unfinished`.
    """
    figures = tables.figures(measurements)
    text = io.StringIO()
    writer = csv.DictWriter(text, figures[0])
    writer.writeheader()
    writer.writerows(figures)
    content = {
        "environment": environment,
        "settings": settings,
        "complete": complete,
        "measurements": [m.to_dict() for m in measurements],
        "claims": compared,
    }
    files = {
        "profile.csv": text.getvalue(),
        "profile.md": _markdown(measurements, compared, environment),
        "results.json": json.dumps(results(measurements, environment), indent=2) + "\n",
        # The last: with it the others are there.
        "profile.json": json.dumps(content, indent=2) + "\n",
    }
    paths = write_plots(measurements, folder)
    for name, data in files.items():
        write_atomic(folder / name, data)
        paths.append(folder / name)
    return paths


def _markdown(measurements: Sequence[Measurement], compared: list[dict], environment: dict) -> str:
    beside = [row.values() for row in compared]
    sections = (
        ("Models", tables.MODELS, tables.model_rows(measurements)),
        ("Parts of a block, unfused", tables.BLOCKS, tables.block_rows(measurements)),
        ("The paper's figures (on a GPU) and ours", tables.CLAIMS, beside),
    )
    lines = ["# Cost over image sizes", "", machine(measurements, environment), ""]
    for title, heads, rows in sections:
        shown = [heads, ["---"] * len(heads), *rows]
        lines += [f"## {title}", "", *map(markdown_row, shown), ""]
    return "\n".join([*lines, *(f"- {note}" for note in tables.NOTES)]) + "\n"


def read_unfinished(
    folder: Path, environment: dict, settings: dict
) -> tuple[list[Measurement], str | None]:
    """What a study that was stopped had measured, if its settings and the machine are the same.

    Otherwise nothing, and why what is there is of no use; None where nothing is there.
    """
    try:
        stored = json.loads((folder / "profile.json").read_text())
        before = stored["environment"] | stored["settings"]
        now = environment | settings
        differ = [key for key in now if key != "command" and before.get(key) != now[key]]
        if differ:
            return [], "differs in " + ", ".join(differ)
        if stored["complete"]:
            return [], "is complete"
        return [Measurement.from_dict(values) for values in stored["measurements"]], None
    except FileNotFoundError:
        return [], None
    except (OSError, ValueError, KeyError, TypeError):
        return [], "is of another version of fastvim, or damaged"
