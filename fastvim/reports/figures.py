"""The three plots of a study, drawn once for files and for the page.

The page replaces the colours below by its own (`page.inline_svg`), so every colour that a plot
uses is named here.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fastvim.analysis.costs import pareto_front
from fastvim.reports.axes import side_by_side
from fastvim.reports.curves import loss_band, validation_band
from fastvim.reports.study import Study
from fastvim.reports.tables import NAMES, PERCENT
from fastvim.stability.episodes import NONFINITE

# Eight hues that stay apart for the colour-blind and have the contrast of text on white.
COLOURS = (
    "#1f6fb4",
    "#c24e00",
    "#1a7f4b",
    "#8a3fb0",
    "#b0286f",
    "#0b7a86",
    "#7d5a00",
    "#55606b",
)
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)))
INK, MUTED, GRID, PAPER = "#14181d", "#59626c", "#d9dee3", "#ffffff"

# Parsed as mathematics, a dollar in a variant's name would be an error.
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.unicode_minus": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "legend.frameon": False,
}
COSTS = (
    ("gflops", "GFLOPs an image, forward", lambda value: value),
    ("train_images_per_second", "ms of training an image", lambda value: 1000 / value),
    ("peak_memory_mb", "peak training memory, MB", lambda value: value),
)


def plain(text: object, limit: int = 40) -> str:
    """Text that any font and XML can hold, cut when longer than `limit`."""
    shown = "".join(c if c.isprintable() else " " for c in str(text))
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."


def look(position: int) -> dict[str, Any]:
    """Colour and dashes of the variant at `position`."""
    return {
        "color": COLOURS[position % len(COLOURS)],
        "linestyle": DASHES[position // len(COLOURS) % len(DASHES)],
    }


@mpl.rc_context(STYLE)
def draw_curves(study: Study, narrow: bool = False) -> Figure | None:
    """Training loss and a validation metric over steps: mean, and range over seeds; spikes."""
    if not any(np.isfinite(run.curves.loss).any() for run in study.runs):
        return None
    metric = f"val_{study.plan.metric}"
    both = any(metric in run.curves.validation for run in study.runs)
    figure, panels = _panels(1 + both, narrow, height=3.6)
    window = _draw_loss(panels[0], study)
    unit = f", mean of {window} steps" if window > 1 else ""
    panels[0].set(title=f"Training loss{unit}", xlabel="step")
    if both:
        for position, variant in enumerate(study.variants):
            band = validation_band([run.curves for run in study.runs_of(variant)], metric)
            if band is not None:
                _draw_band(panels[1], band, position, marker="o", markersize=3)
        panels[1].set(title=f"Validation {NAMES[study.plan.metric]}", xlabel="step")
    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(5 if narrow else 7, integer=True))
    marks = _mark_handles(study)
    _legend(figure, study.variants, narrow, marks)
    return figure


def _draw_loss(axes: Axes, study: Study) -> int:
    """The loss panel; returns the steps that a point is the mean of."""
    highest, lowest, window = -np.inf, np.inf, 1
    for position, variant in enumerate(study.variants):
        found = loss_band([run.curves for run in study.runs_of(variant)])
        if found is None:
            continue
        band, window = found
        _draw_band(axes, band, position)
        highest = max(highest, np.nanpercentile(band.high, 99))
        lowest = min(lowest, band.low.min())
    top = highest + 0.08 * (highest - lowest)
    for position, variant in enumerate(study.variants):
        for run in study.runs_of(variant):
            _mark_episodes(axes, run.curves, position, top)
    if top > lowest:
        axes.set_ylim(lowest - 0.05 * (top - lowest), top + 0.05 * (top - lowest))
    return window


def _draw_band(axes: Axes, band, position: int, **line) -> None:
    style = look(position)
    axes.fill_between(
        band.steps, band.low, band.high, color=style["color"], alpha=0.16, linewidth=0
    )
    axes.plot(band.steps, band.mean, linewidth=1.6, **style, **line)


def _mark_episodes(axes: Axes, curves, position: int, top: float) -> None:
    """A triangle at the peak of a spike, a cross where the loss was no number."""
    for episode in curves.episodes:
        at = np.searchsorted(curves.steps, episode.peak_step)
        value = curves.loss[min(at, len(curves.loss) - 1)]
        marker = "X" if episode.kind == NONFINITE else "^"
        height = min(value, top) if np.isfinite(value) else top
        axes.plot(
            episode.peak_step,
            height,
            marker=marker,
            markersize=7,
            color=look(position)["color"],
            markeredgecolor=PAPER,
            markeredgewidth=0.8,
            clip_on=False,
            zorder=5,
        )


def _mark_handles(study: Study) -> list[Line2D]:
    kinds = {e.kind == NONFINITE for run in study.runs for e in run.curves.episodes}
    names = {False: ("^", "loss spike"), True: ("X", "loss no number")}
    return [
        Line2D([], [], linestyle="", marker=names[kind][0], color=MUTED, label=names[kind][1])
        for kind in sorted(kinds)
    ]


@mpl.rc_context(STYLE)
def draw_differences(study: Study, narrow: bool = False) -> Figure | None:
    """Paired differences: every seed, the mean, and its interval; zero is no difference."""
    contrasts = [c for c in study.results["contrasts"] if c["difference"] is not None]
    if not contrasts:
        return None
    rows = len(contrasts)
    size = (4.6, 0.9 + 0.78 * rows) if narrow else (9.6, 0.9 + 0.52 * rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.spines["left"].set_visible(False)
    axes.axvline(0, color=MUTED, linewidth=1)
    axes.grid(visible=False, axis="y")
    places = {name: position for position, name in enumerate(study.variants)}
    labels = []
    for row, contrast in enumerate(contrasts):
        colour = look(places.get(contrast["variant"], 0))["color"]
        axes.plot(
            contrast["differences"],
            [row] * len(contrast["differences"]),
            linestyle="",
            marker="|",
            markersize=11,
            markeredgewidth=1.3,
            color=colour,
            alpha=0.75,
        )
        if contrast["interval"] is not None:
            axes.plot(contrast["interval"], [row, row], color=colour, linewidth=2)
        axes.plot(contrast["difference"], row, marker="D", markersize=6, color=colour)
        labels.append(_row_label(contrast, narrow))
    axes.set_yticks(range(rows), labels)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(rows - 0.4, -0.6)
    unit = "percentage points" if study.plan.metric in PERCENT else ""
    name = NAMES[study.plan.metric].removesuffix(" %")
    axes.set_xlabel(f"test {name}, variant - baseline{', ' * bool(unit)}{unit}")
    return figure


def _row_label(contrast: Mapping, narrow: bool) -> str:
    variant, baseline = plain(contrast["variant"], 26), plain(contrast["baseline"], 26)
    return f"{variant}\n- {baseline}" if narrow else f"{variant} - {baseline}"


@mpl.rc_context(STYLE)
def draw_costs(study: Study, narrow: bool = False) -> Figure | None:
    """Test metric against each cost; the line joins the variants that no other one beats."""
    metric = study.plan.metric
    points = {c: _cost_points(study, c, convert) for c, _, convert in COSTS}
    shown = [(cost, label) for cost, label, _ in COSTS if points[cost]]
    if not shown:
        return None
    figure, panels = _panels(len(shown), narrow, height=3.3)
    for axes, (cost, label) in zip(panels, shown, strict=True):
        places = side_by_side(axes, {name: x for name, (x, _, _) in points[cost].items()})
        for position, variant in enumerate(study.variants):
            if variant in points[cost]:
                _, y, values = points[cost][variant]
                x = places[variant]
                colour = look(position)["color"]
                axes.plot([x, x], [min(values), max(values)], color=colour, linewidth=1.2)
                marker = "osD"[position // len(COLOURS) % 3]
                axes.plot(x, y, marker=marker, markersize=7, color=colour)
        # A front is of what is cheap and accurate; a loss is better when it is lower.
        sign = -1 if metric == "loss" else 1
        front = pareto_front({n: (x, sign * y) for n, (x, y, _) in points[cost].items()})
        if len(front) > 1:
            x = [places[name] for name in front]
            y = [points[cost][name][1] for name in front]
            axes.plot(x, y, color=MUTED, linewidth=1, linestyle=(0, (3, 2)), zorder=0)
        axes.margins(y=0.1)
        axes.set_xlabel(label)
    for axes in panels if narrow else panels[:1]:
        axes.set_ylabel(f"test {NAMES[metric]}")
    _legend(figure, study.variants, narrow, [])
    return figure


def _cost_points(study: Study, cost: str, convert: Callable) -> dict[str, tuple]:
    """Variant -> (cost, mean of the metric, its values over seeds), where both are known."""
    found = {}
    for variant in study.results["variants"]:
        value = variant["cost"].get(cost)
        values = [v for v in variant["metrics"][study.plan.metric] if v is not None]
        if value and values:
            found[variant["name"]] = (convert(value), float(np.mean(values)), values)
    return found


def _panels(count: int, narrow: bool, height: float) -> tuple[Figure, Sequence[Axes]]:
    """`count` panels: side by side, or one above the other when narrow."""
    size = (4.6, 2.7 * count + 0.6) if narrow else (9.6, height)
    figure = Figure(figsize=size, layout="constrained")
    shape = (count, 1) if narrow else (1, count)
    return figure, figure.subplots(*shape, squeeze=False).flatten().tolist()


def _legend(figure: Figure, variants: Sequence[str], narrow: bool, more: list) -> None:
    handles = [
        Line2D([], [], linewidth=2.5, label=plain(name), **look(position))
        for position, name in enumerate(variants)
    ]
    handles += more
    longest = max(len(handle.get_label()) for handle in handles)
    columns = max(1, min(len(handles), (52 if narrow else 115) // (longest + 7)))
    figure.legend(handles=handles, loc="outside upper left", ncols=columns)


FIGURES: dict[str, Callable[..., Figure | None]] = {
    "curves": draw_curves,
    "differences": draw_differences,
    "costs": draw_costs,
}


def render(figure: Figure, form: str, name: str) -> bytes:
    """The file of a figure, `png` or `svg`; the same figure gives the same bytes.

    It is laid out once: by itself it would be again for each file, which takes longer than drawing.
    """
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": "fastvim"} if form == "svg" else {"Software": "fastvim"}
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        if (engine := figure.get_layout_engine()) is not None:
            engine.execute(figure)
            figure.set_layout_engine(None)
        figure.savefig(buffer, format=form, dpi=150, metadata=metadata)
    return buffer.getvalue()
