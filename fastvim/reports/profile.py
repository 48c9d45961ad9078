"""The resolution study as a table, CSV, JSON and plots, with the paper's claims beside it."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from fastvim.files import write_atomic
from fastvim.profiling.stages import BLOCK_STAGES
from fastvim.profiling.study import Measurement

COLUMNS = ("model", "pixels", "batch", "tokens L", "steps h", "GFLOPs fvcore", "GFLOPs own")
COLUMNS += ("forward img/s", "train img/s", "graph img/s", "forward MB", "train MB")
COLUMNS += ("scan ms", "scan growth", "fused block", "parts / whole", "problem")
NOTES = (
    "img/s: median over interleaved repeats (quartiles); `graph`: the forward as one CUDA graph.",
    "GFLOPs are of one image's forward, a multiply-add is one. fvcore reads a trace, the own count "
    "takes the operator's from the model's sizes and the rest as PyTorch dispatches it; fvcore "
    "adds layer norms outside the operator and does not see fused attention (timm).",
    "scan ms: all selective scans of one forward pass of a batch; growth: of an image, since the "
    "model's first size.",
    "fused block: time of a block as the models run it over that of the unfused chain. parts / "
    "whole: the sum of the chain's parts, timed alone, over the chain timed in one go.",
)


def rows(measurements: Sequence[Measurement]) -> list[list[str]]:
    """Cells of the table, a row a model and size; a range is the quartiles over repeats."""
    first = {m.model: m.scan_seconds for m in reversed(measurements) if m.scan_seconds}
    table = []
    for m in measurements:
        scan = growth = ""
        if m.scan_seconds:
            scan = f"{m.scan_seconds * 1e3:.3g}"
            growth = f"{m.scan_seconds / first[m.model] * first_batch(measurements, m):.3g}x"
        rates = [_rate(m, mode) for mode in ("forward", "training", "graph")]
        memory = [_number(m.peak_memory_mb.get(mode), ".0f") for mode in ("forward", "training")]
        counts = [str(m.tokens or ""), str(m.steps or "")]
        counts += [_number(count, ".4g") for count in (m.gflops, m.own_gflops)]
        place = [m.model, str(m.resolution), str(m.batch)]
        block = [_number(ratio, ".2f") for ratio in _block_ratios(m)]
        table.append([*place, *counts, *rates, *memory, scan, growth, *block, m.problem or ""])
    return table


def first_batch(measurements: Sequence[Measurement], row: Measurement) -> float:
    """How many times smaller the batch of `row` is than at its model's first size.

    A scan's growth is for an image, whatever the batch was.
    """
    first = next(m for m in measurements if m.model == row.model and m.scan_seconds)
    return first.batch / row.batch


def _rate(m: Measurement, mode: str) -> str:
    timing = m.seconds.get(mode)
    if timing is None:
        return ""
    middle, low, high = (m.batch / t for t in (timing.median, timing.upper, timing.lower))
    spread = f"{low:.3g}-{high:.3g}" if len(timing.calls) > 1 else "one round"
    return f"{middle:.3g} ({spread})"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _block_ratios(m: Measurement) -> tuple[float | None, float | None]:
    """The block as it runs, and the sum of the parts, over the unfused chain in one go."""
    if not m.stages:
        return None, None
    whole = m.stages["unfused"].median
    parts = sum(m.stages[name].median for name in BLOCK_STAGES if name in m.stages)
    return m.stages["block"].median / whole, parts / whole


def shares(m: Measurement) -> dict[str, float]:
    """Each part's share of the sum of the parts of an unfused block, forward."""
    parts = {name: m.stages[name].median for name in BLOCK_STAGES if name in m.stages}
    return {name: value / sum(parts.values()) for name, value in parts.items()}


def _repeat_shares(m: Measurement) -> list[float]:
    """The repeat's share of an unfused block in percent, round by round."""
    parts = [m.stages[name].calls for name in BLOCK_STAGES if name in m.stages]
    wholes = map(sum, zip(*parts, strict=True))
    repeats = m.stages["broadcast"].calls
    return [100 * part / whole for part, whole in zip(repeats, wholes, strict=True)]


def claims(
    measurements: Sequence[Measurement], pooled: str, unpooled: str, plain: str
) -> list[dict[str, str]]:
    """The paper's figures of cost beside ours: `claim`, `published`, `ours`, `where`.

    `pooled`, `unpooled` and `plain` name the FastVim, the Vim and the FastVim without the
    post-SSM norm among the measured models. The published figures are of a GPU.
    """
    at = {(m.model, m.resolution): m for m in measurements}
    sizes = sorted({m.resolution for m in measurements})
    found = []

    def add(claim: str, published: str, ours: str, where: str) -> None:
        found.append({"claim": claim, "published": published, "ours": ours, "where": where})

    for size in sizes:
        fast, vim, bare = (at.get((name, size)) for name in (pooled, unpooled, plain))
        if fast and vim and fast.gflops and vim.gflops:
            fewer = 1 - fast.gflops / vim.gflops
            add("FLOPs fewer than Vim", "about 35 %", f"{fewer:.1%}", f"{size} pixels")
        for mode in ("forward", "training"):
            if fast and vim and mode in fast.seconds and mode in vim.seconds:
                gain = fast.images_per_second(mode) / vim.images_per_second(mode) - 1
                published = "72.5 % at 2048" if mode == "forward" else ""
                add(f"faster than Vim, {mode}", published, f"{gain:+.1%}", f"{size} pixels")
            if fast and bare and mode in fast.seconds and mode in bare.seconds:
                cost = 1 - fast.images_per_second(mode) / bare.images_per_second(mode)
                add(f"post-SSM norm's cost, {mode}", "5 to 10 %", f"{cost:.1%}", f"{size} pixels")
    for name, published in ((unpooled, "about 74x (224 to 2048)"), (pooled, "nearly constant")):
        measured = [at[name, s] for s in sizes if (name, s) in at and at[name, s].scan_seconds]
        if len(measured) > 1:
            first, last = measured[0], measured[-1]
            growth = last.scan_seconds / first.scan_seconds * first.batch / last.batch
            where = f"{first.resolution} to {last.resolution} pixels, an image"
            add(f"SSM time grows, {name}", published, f"{growth:.1f}x", where)
    for size in sizes:
        row = at.get((pooled, size))
        if row and row.stages:
            share = shares(row)["broadcast"]
            place = f"{size} pixels"
            add("repeat's share of a block, unfused", "up to 25 %", f"{share:.1%}", place)
    return found


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
        if "forward" in m.seconds:
            cost["images_per_second"] = [m.batch / t for t in m.seconds["forward"].calls]
        if "training" in m.seconds:
            cost["train_images_per_second"] = [m.batch / t for t in m.seconds["training"].calls]
        seeds, metrics = [0], {}
        if m.stages:
            cost["ssm_seconds"] = [
                t * m.scan_seconds / m.stages["scan"].median / m.batch
                for t in m.stages["scan"].calls
            ]
            if "broadcast" in m.stages:
                # A value by round, not by seed: nothing here is trained.
                metrics["repeat_share"] = _repeat_shares(m)
                seeds = list(range(len(metrics["repeat_share"])))
        variant = {"name": f"{m.model}@{m.resolution}", "seeds": seeds, "metrics": metrics}
        variants.append(variant | {"cost": cost, "scale": {"device": device, **m.scale}})
    return {
        "experiment": "profile",
        "scale": {"device": device},
        "variants": variants,
        "contrasts": [],
    }


def machine(measurements: Sequence[Measurement], environment: dict) -> str:
    """In one line: what the figures were measured on."""
    clocks = [m.clock_mhz for m in measurements if m.clock_mhz]
    clock = f", {min(clocks)} to {max(clocks)} MHz" if clocks else ""
    device = environment["device"]
    name = environment["cpu"] if device == "cpu" else f"{device}, {environment['cpu']}"
    threads = f"{environment['threads']} of {environment['cores']} cores used"
    return f"{name}{clock}, {threads}, torch {environment['packages']['torch']}, float32"


def write(
    measurements: Sequence[Measurement],
    compared: list[dict],
    environment: dict,
    settings: dict,
    complete: bool,
    folder: Path,
) -> list[Path]:
    """profile.csv, .json, .md, results.json and the plots, in `folder`; their paths.

    `settings` are what decided the figures, and `complete` whether all of them are there: see
    `read_unfinished`.
    """
    table = rows(measurements)
    text = io.StringIO()
    csv.writer(text).writerows([COLUMNS, *table])
    lines = [COLUMNS, ["---"] * len(COLUMNS), *table]
    markdown = f"{machine(measurements, environment)}\n\n"
    markdown += "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n"
    markdown += "\n".join(f"- {note}" for note in NOTES) + "\n\n"
    heads = ("claim", "published", "ours", "where")
    lines = [heads, ["---"] * 4, *([row[head] for head in heads] for row in compared)]
    markdown += "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
    content = {
        "environment": environment,
        "settings": settings,
        "complete": complete,
        "measurements": [m.to_dict() for m in measurements],
        "claims": compared,
    }
    files = {
        "profile.csv": text.getvalue(),
        "profile.md": markdown,
        "profile.json": json.dumps(content, indent=2) + "\n",
        "results.json": json.dumps(results(measurements, environment), indent=2) + "\n",
    }
    for name, data in files.items():
        write_atomic(folder / name, data)
    return [folder / name for name in files] + _plots(measurements, folder)


def read_unfinished(folder: Path, environment: dict, settings: dict) -> list[Measurement]:
    """What a study that was stopped had measured, if its settings and the machine are the same."""
    try:
        stored = json.loads((folder / "profile.json").read_text())
        same = all(
            stored["environment"].get(key) == value
            for key, value in environment.items()
            if key != "command"
        )
        if stored["complete"] or not same or stored["settings"] != settings:
            return []
        return [Measurement.from_dict(values) for values in stored["measurements"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # None, or of another version: measured anew.


def _plots(measurements: Sequence[Measurement], folder: Path) -> list[Path]:
    from matplotlib.figure import Figure

    paths = []
    for name, draw in (("growth", _draw_growth), ("shares", _draw_shares)):
        figure = Figure(figsize=(11, 5.5), layout="constrained")
        draw(figure, measurements)
        for kind in ("png", "svg"):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=150)
            paths.append(folder / f"{name}.{kind}")
            write_atomic(paths[-1], buffer.getvalue())
    return paths


def _draw_growth(figure, measurements: Sequence[Measurement]) -> None:
    """Seconds an image against image size, log-log: the whole model, and the scan alone."""
    whole, scan = figure.subplots(1, 2)
    for model in dict.fromkeys(m.model for m in measurements):
        mine = [m for m in measurements if m.model == model]
        timed = [m for m in mine if "forward" in m.seconds]
        whole.plot(
            [m.resolution for m in timed],
            [m.seconds["forward"].median / m.batch for m in timed],
            "o-",
            label=model,
        )
        scanned = [m for m in mine if m.scan_seconds]
        if scanned:
            sizes = [m.resolution for m in scanned]
            scan.plot(sizes, [m.scan_seconds / m.batch for m in scanned], "o-", label=model)
    for axes, title in ((whole, "forward pass of the model"), (scan, "selective scans alone")):
        axes.set(xscale="log", yscale="log", xlabel="pixels a side", ylabel="seconds an image")
        ticks = sorted({m.resolution for m in measurements})
        axes.set_xticks(ticks, [str(size) for size in ticks], minor=False)
        axes.minorticks_off()
        axes.set_title(title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")


def _draw_shares(figure, measurements: Sequence[Measurement]) -> None:
    """Stacked shares of an unfused block's forward; a mark where the block as it runs ends."""
    import matplotlib as mpl

    axes = figure.subplots()
    staged = [m for m in measurements if m.stages]
    labels = [f"{m.model.replace(':', chr(10))}\n{m.resolution}" for m in staged]
    bottoms = [0.0] * len(staged)
    colours = mpl.colormaps["tab20"].colors
    for stage, colour in zip(BLOCK_STAGES, colours, strict=False):
        heights = [shares(m).get(stage, 0.0) for m in staged]
        axes.bar(labels, heights, bottom=bottoms, label=stage, color=colour)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    fused = [_block_ratios(m)[0] for m in staged]
    axes.plot(labels, fused, "k_", markersize=28, markeredgewidth=2, label="as the model runs it")
    axes.set_ylabel("share of the unfused block's time")
    axes.tick_params(axis="x", labelsize="x-small", rotation=60)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
