"""The plot of `fastvim stability threshold`: runs on a grid, and the fitted boundary."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from fastvim.analysis.boundary import Boundary
from fastvim.reports.figures import MUTED, STYLE, look, render

STABLE, UNSTABLE = look(0)["color"], look(1)["color"]


def draw_grid(
    sides: Sequence[Mapping[str, Any]], boundaries: Mapping[str, Boundary | None], vary: str
) -> bytes:
    """PNG: the sides next to each other, a row a learning rate where width and depth both vary.

    A disc is the runs of a model, filled by the share of unstable ones; the line is where the fit
    gives one half.
    """
    grid = vary == "size"
    rates = sorted({run["lr"] for side in sides for run in side["runs"]})
    rows = rates if grid else [None]
    with mpl.rc_context(STYLE):
        size = (1.0 + 2.6 * len(sides), 1.2 + 2.2 * len(rows))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(rows), len(sides), squeeze=False, sharex=True, sharey=True)
        for i, rate in enumerate(rows):
            for j, side in enumerate(sides):
                axes = panels[i][j]
                _draw_panel(axes, side, boundaries[side["name"]], vary, rate)
                axes.set_title(side["name"] + (f", lr {rate:g}" if grid else ""))
        for axes in panels[-1]:
            axes.set_xlabel("width" if grid else vary)
        for axes in panels[:, 0]:
            axes.set_ylabel("depth" if grid else "learning rate")
        marks = [
            mpl.lines.Line2D([], [], linestyle="", marker="o", color=colour, label=label)
            for colour, label in ((STABLE, "stable"), (UNSTABLE, "unstable"))
        ]
        line = mpl.lines.Line2D([], [], color=MUTED, linestyle="--", label="fitted boundary")
        figure.legend(handles=[*marks, line], loc="outside lower center", ncols=3)
    return render(figure, "png", "threshold")


def _draw_panel(
    axes, side: Mapping[str, Any], boundary: Boundary | None, vary: str, rate: float | None
) -> None:
    across, up = ("width", "depth") if rate is not None else (vary, "lr")
    runs = [run for run in side["runs"] if rate is None or run["lr"] == rate]
    points: dict[tuple, list[bool]] = {}
    for run in runs:
        points.setdefault((run[across], run[up]), []).append(run["unstable"])
    for (x, y), unstable in points.items():
        share = float(np.mean(unstable))
        axes.plot(x, y, "o", markersize=13, color=STABLE, clip_on=False)
        axes.plot(x, y, "o", markersize=13 * share**0.5, color=UNSTABLE, clip_on=False)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2 if up == "depth" else 10)
    xs, ys = sorted({x for x, _ in points}), sorted({y for _, y in points})
    axes.set_xticks(xs, map(str, xs))
    axes.set_yticks(ys, [f"{y:g}" for y in ys])
    axes.minorticks_off()
    if boundary is None or not xs:
        return
    # Half of the runs are unstable where the log-odds are zero.
    x = np.geomspace(xs[0] / 1.3, xs[-1] * 1.3, 100)
    y = np.geomspace(ys[0] / 1.6, ys[-1] * 1.6, 100)
    fixed = {"width": runs[0]["width"], "depth": runs[0]["depth"], "lr": runs[0]["lr"]}
    odds = np.full((len(y), len(x)), boundary.intercept)
    for name, slope in boundary.coefficients.items():
        values = {across: x[None, :], up: y[:, None]}.get(name, np.array([[fixed[name]]]))
        odds = odds + slope * np.log2(values)
    if odds.min() < 0 < odds.max():
        axes.contour(x, y, odds, levels=[0.0], colors=[MUTED], linestyles="--")
