"""The plots of the resolution study: growth over image sizes, and what a block's time goes to."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from fastvim.files import write_atomic
from fastvim.profiling.measurement import Measurement
from fastvim.reports.axes import number_ticks
from fastvim.reports.figures import INK, MUTED, PAPER, STYLE, look, render
from fastvim.reports.profile_tables import SHARES, block_ratios, shares

# Neighbours in pairs of a dark and a light hue; the greys are products. With them, of the text.
SHARE_COLOURS = {
    "matrix products": ("#a3adb7", INK),
    "projections": ("#6b7680", PAPER),
    "convolution": ("#1f6fb4", PAPER),
    "pooling": ("#7db4e0", INK),
    "scan": ("#c24e00", PAPER),
    "broadcast": ("#f0a05a", INK),
    "norm": ("#1a7f4b", PAPER),
    "gate": ("#7fc49b", INK),
    "rest": ("#d9cbe3", INK),
}
Points = list[tuple[int, float, float, float]]


def write_plots(measurements: Sequence[Measurement], folder: Path) -> list[Path]:
    """growth and shares as PNG and SVG in `folder`; their paths."""
    paths = []
    for name, draw in (("growth", draw_growth), ("shares", draw_shares)):
        with mpl.rc_context(STYLE):
            figure = draw(measurements)
        for form in ("png", "svg"):
            paths.append(folder / f"{name}.{form}")
            write_atomic(paths[-1], render(figure, form, name))
    return paths


def draw_growth(measurements: Sequence[Measurement]) -> Figure:
    """Milliseconds an image over image sizes, log-log: forward, forward and backward, scans."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    panels = figure.subplots(1, 3)
    names = list(dict.fromkeys(m.model for m in measurements))
    kinds: tuple[tuple[str, Callable], ...] = (
        ("forward", lambda m: m.seconds.get("forward")),
        ("forward and backward", lambda m: m.seconds.get("training")),
        ("selective scans of a forward pass", lambda m: m.scan_timing()),
    )
    ticks = sorted({m.resolution for m in measurements})
    for axes, (title, timing) in zip(panels, kinds, strict=True):
        for position, name in enumerate(names):
            mine = [m for m in measurements if m.model == name]
            _draw_line(axes, position, name, _points(mine, timing))
        axes.set(xscale="log", yscale="log", title=title, xlabel="pixels a side")
        axes.set_xticks(ticks, [str(size) for size in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        number_ticks(axes.yaxis)
    panels[0].set_ylabel("ms an image")
    _draw_guides(panels[2])
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _points(measurements: Sequence[Measurement], timing: Callable) -> Points:
    """Pixels; median and quartiles in ms an image."""
    found = []
    for m in measurements:
        seconds = timing(m)
        if seconds is not None:
            spread = (seconds.median, seconds.lower, seconds.upper)
            found.append((m.resolution, *(1e3 * value / m.batch for value in spread)))
    return found


def _draw_line(axes: Axes, position: int, name: str, points: Points) -> None:
    if points:
        sizes, middles, lows, highs = zip(*points, strict=True)
        style = look(position)
        axes.fill_between(sizes, lows, highs, color=style["color"], alpha=0.16, linewidth=0)
        axes.plot(sizes, middles, marker="o", markersize=4, linewidth=1.6, label=name, **style)


def _draw_guides(axes: Axes) -> None:
    """From the lowest and the highest first point: as a side of the grid grows, and all of it."""
    lines = [np.column_stack(line.get_data()) for line in axes.get_lines()]
    if not lines or min(len(line) for line in lines) < 2:
        return
    low, high = min(lines, key=lambda line: line[0, 1]), max(lines, key=lambda line: line[0, 1])
    for line, power, label in ((low, 1, "as steps h"), (high, 2, "as tokens L")):
        (x0, y0), x1 = line[0], line[-1, 0]
        y1 = y0 * (x1 / x0) ** power
        axes.plot([x0, x1], [y0, y1], color=MUTED, linewidth=1, linestyle=(0, (1, 2)), zorder=0)
        axes.annotate(label, (x1, y1), color=MUTED, fontsize=8, ha="right", va="top")


def draw_shares(measurements: Sequence[Measurement]) -> Figure:
    """Stacked shares of an unfused block's forward; a mark where the block as it runs ends."""
    staged = [m for m in measurements if m.stages]
    names = list(dict.fromkeys(m.model for m in staged))
    staged.sort(key=lambda m: (names.index(m.model), m.resolution))
    places = [i + 0.7 * names.index(m.model) for i, m in enumerate(staged)]
    figure = Figure(figsize=(max(6.0, 2.6 + 0.62 * len(staged)), 5), layout="constrained")
    axes = figure.subplots()
    bottoms = [0.0] * len(staged)
    for part in SHARES:
        fill, ink = SHARE_COLOURS[part]
        heights = [100 * shares(m).get(part, 0.0) for m in staged]
        bars = axes.bar(
            places, heights, 0.8, bottoms, label=part, color=fill, edgecolor=PAPER, linewidth=0.6
        )
        labels = [f"{height:.0f}" if height >= 4 else "" for height in heights]
        axes.bar_label(bars, labels, label_type="center", fontsize=7, color=ink)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    marks = [100 * block_ratios(m)["block"] for m in staged]
    right = [place + 0.45 for place in places]
    axes.plot(right, marks, "<", color="black", markersize=6, label="the block as it runs")
    axes.set_xticks(places, [str(m.resolution) for m in staged])
    for name in names:
        mine = [place for place, m in zip(places, staged, strict=True) if m.model == name]
        middle = (mine[0] + mine[-1]) / 2
        axes.annotate(
            name.replace(":", "\n"), (middle, 0), (0, -22), ha="center", va="top",
            xycoords=("data", "axes fraction"), textcoords="offset points",
        )  # fmt: skip
    axes.grid(visible=False, axis="x")
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", length=0)
    axes.set(ylabel="% of the unfused block's time, forward", xlabel=" \n ")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
