"""The two plots of `fastvim stability`."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fastvim.experiments.stability import variant_name
from fastvim.reports.axes import number_ticks
from fastvim.reports.curves import RunCurves
from fastvim.reports.figures import MUTED, PAPER, STYLE, look, render
from fastvim.reports.stability_table import counted_loss
from fastvim.reports.study import Study

DASHED = (0, (3, 2))

# The axis of losses ends here, in losses at initialisation; what lies beyond is drawn at the edge.
HIGHEST = 100.0


def draw_losses(study: Study, results: Mapping[str, Any]) -> bytes:
    """PNG of the training loss of every run, a row a variant and a column a learning rate."""
    variants, ladder = results["variants"], results["ladder"]
    with mpl.rc_context(STYLE):
        size = (0.8 + 3.0 * len(ladder), 1.0 + 1.9 * len(variants))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(
            len(variants), len(ladder), squeeze=False, sharex=True, sharey=True
        )
        for row, variant in enumerate(variants):
            for column, multiple in enumerate(ladder):
                axes = panels[row][column]
                for run in study.runs_of(variant_name(variant["name"], multiple)):
                    _draw_run(axes, run.curves, look(row)["color"])
                axes.set_title(f"{variant['name']}, lr x{multiple:g}")
        axes = panels[0][0]
        # Losses differ by far more where training is unstable than where it is not.
        axes.set_yscale("log")
        number_ticks(axes.yaxis)
        for axes in panels[-1]:
            axes.set_xlabel("step")
        for axes in panels[:, 0]:
            axes.set_ylabel("training loss")
        marks = {"^": "peak of an episode", "X": f"no number, or beyond {HIGHEST:g} x the first"}
        handles = [
            Line2D([], [], linestyle="", marker=mark, color=MUTED, label=label)
            for mark, label in marks.items()
        ]
        start = Line2D([], [], color=MUTED, linestyle=DASHED, label="loss at initialisation")
        figure.legend(
            handles=[*handles, start], loc="outside lower center", ncols=min(3, len(ladder))
        )
    return render(figure, "png", "loss")


def _draw_run(axes: Axes, curves: RunCurves, colour: str) -> None:
    loss, steps = curves.loss, curves.steps
    top = HIGHEST * loss[0]
    shown = np.where(loss > top, top, loss)
    axes.axhline(loss[0], color=MUTED, linestyle=DASHED, linewidth=0.8)
    axes.plot(steps, shown, linewidth=0.9, color=colour)
    lost = ~(loss <= top)
    # The first of each run of them: a cross a step would be a bar.
    lost[1:] &= loss[:-1] <= top
    edge = float(np.nanmax(shown, initial=loss[0]))
    marks = [(step, edge, "X") for step in steps[lost]]
    marks += [(e.peak_step, e.baseline + e.height_value, "^") for e in curves.episodes]
    for step, height, mark in marks:
        axes.plot(
            step,
            min(height, edge),
            marker=mark,
            markersize=7,
            color=colour,
            markeredgecolor=PAPER,
            clip_on=False,
        )


def draw_sensitivity(results: Mapping[str, Any]) -> bytes:
    """PNG of the final loss against the learning rate; runs as points, their mean as a line.

    A loss above that at initialisation, or no number, is drawn at the loss at initialisation.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        for position, variant in enumerate(results["variants"]):
            points: dict[float, list[float]] = {}
            for run in variant["runs"]:
                points.setdefault(run["lr"], []).append(counted_loss(run))
            for lr, values in points.items():
                colour = look(position)["color"]
                axes.plot([lr] * len(values), values, ".", color=colour, alpha=0.5)
            means = [np.mean(values) for values in points.values()]
            axes.plot(list(points), means, marker="o", label=variant["name"], **look(position))
        initial = [run["initial_loss"] for v in results["variants"] for run in v["runs"]]
        if initial:
            axes.axhspan(min(initial), max(initial), color=MUTED, alpha=0.2, linewidth=0)
            axes.axhline(max(initial), color=MUTED, linestyle=DASHED, linewidth=1)
            axes.annotate(
                "loss at initialisation, lowest to highest run",
                (0.01, max(initial)),
                xycoords=("axes fraction", "data"),
                xytext=(0, 2),
                textcoords="offset points",
                va="bottom",
                color=MUTED,
                fontsize=8,
            )
            axes.margins(y=0.1)
        axes.set_xscale("log")
        rates = sorted({run["lr"] for v in results["variants"] for run in v["runs"]})
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.xaxis.minorticks_off()
        axes.set(xlabel="learning rate", ylabel="final training loss")
        axes.legend()
    return render(figure, "png", "sensitivity")
