"""The two plots of `fastvim stability`."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from fastvim.experiments.stability import variant_name
from fastvim.reports.figures import MUTED, PAPER, STYLE, look, render
from fastvim.reports.study import Study
from fastvim.stability.episodes import NONFINITE

# The axis of losses ends here, in losses at initialisation; a spike beyond is drawn at the edge.
HIGHEST = 2.0


def draw_losses(study: Study, results: Mapping[str, Any]) -> bytes:
    """PNG of the training loss of every run, a row a variant and a column a learning rate.

    A triangle marks the peak of an episode, a cross a loss that was no number.
    """
    variants, ladder = results["variants"], results["ladder"]
    with mpl.rc_context(STYLE):
        size = (0.8 + 3.0 * len(ladder), 0.6 + 1.9 * len(variants))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(
            len(variants), len(ladder), squeeze=False, sharex=True, sharey=True
        )
        highest = 1.0
        for row, variant in enumerate(variants):
            for column, multiple in enumerate(ladder):
                axes = panels[row][column]
                for run in study.runs_of(variant_name(variant["name"], multiple)):
                    loss, steps = run.curves.loss, run.curves.steps
                    top = HIGHEST * loss[0]
                    highest = max(highest, min(top, np.nanmax(loss)))
                    axes.plot(steps, np.minimum(loss, top), linewidth=0.9, color=look(row)["color"])
                    for episode in run.curves.episodes:
                        value = loss[min(np.searchsorted(steps, episode.peak_step), len(loss) - 1)]
                        axes.plot(
                            episode.peak_step,
                            min(value, top) if np.isfinite(value) else top,
                            marker="X" if episode.kind == NONFINITE else "^",
                            markersize=7,
                            color=look(row)["color"],
                            markeredgecolor=PAPER,
                            clip_on=False,
                        )
                axes.set_title(f"{variant['name']}, lr x{multiple:g}")
        panels[0][0].set_ylim(0, 1.05 * highest)
        for axes in panels[-1]:
            axes.set_xlabel("step")
        for axes in panels[:, 0]:
            axes.set_ylabel("training loss")
    return render(figure, "png", "loss")


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
                final = np.inf if run["final_loss"] is None else run["final_loss"]
                points.setdefault(run["lr"], []).append(min(final, run["initial_loss"]))
            for lr, values in points.items():
                colour = look(position)["color"]
                axes.plot([lr] * len(values), values, ".", color=colour, alpha=0.5)
            means = [np.mean(values) for values in points.values()]
            axes.plot(list(points), means, marker="o", label=variant["name"], **look(position))
        initial = [run["initial_loss"] for v in results["variants"] for run in v["runs"]]
        if initial:
            axes.axhline(np.mean(initial), color=MUTED, linestyle=(0, (3, 2)), linewidth=1)
            axes.annotate(
                "loss at initialisation",
                (0.01, np.mean(initial)),
                xycoords=("axes fraction", "data"),
                va="bottom",
                color=MUTED,
                fontsize=8,
            )
        axes.set_xscale("log")
        rates = sorted({run["lr"] for v in results["variants"] for run in v["runs"]})
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.xaxis.minorticks_off()
        axes.set(xlabel="learning rate", ylabel="final training loss")
        axes.legend()
    return render(figure, "png", "sensitivity")
