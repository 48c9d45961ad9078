"""The annotated plot of a review, for files and for the page."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastvim.errors import UserError
from fastvim.stability.curves import envelope
from fastvim.stability.review import Review
from fastvim.stability.review_table import label, words

# The colours of the classes tell apart also without colour vision, and on dark and light.
COLOURS = {
    "spike": "#d1495b",
    "shift": "#b07d12",
    "divergence": "#8f3fb0",
    "nonfinite": "#d1495b",
    "plateau": "#2a7f9e",
}
LINE, TREND, INK, BASE = "#4c78a8", "#222222", "#333333", "#999999"
FORMATS = ("png", "svg", "pdf")
# A logarithmic axis where a positive curve spans more than this.
LOGARITHMIC = 30.0
# More curves than this in one file are unreadable.
MOST = 40


def plot(reviews: list[Review], kind: str, baselines: list[Review] | None = None) -> bytes:
    """One panel a curve, its trend and episodes marked, as a `png`, `svg` or `pdf` file.

    Raises UserError on another format or more than MOST curves.
    """
    if kind not in FORMATS:
        raise UserError(f"a plot is .{', .'.join(FORMATS)}; got .{kind}")
    if len(reviews) > MOST:
        several = len({entry.curve.tag for entry in reviews}) > 1
        raise UserError(
            f"{len(reviews)} curves are too many for one plot, which holds {MOST}; review fewer "
            f"logs{' or choose with --tag' if several else ''}, or write a page (--html) of all"
        )
    figure = Figure(figsize=(9, 2.9 * len(reviews) + 0.3), layout="constrained")
    axes = figure.subplots(len(reviews), 1, squeeze=False)[:, 0]
    for panel, entry in zip(axes, reviews, strict=True):
        base = baseline_of(entry, baselines or [])
        draw(panel, entry, base)
        title = f"{label(entry, reviews)}: {words(entry)}"
        panel.set_title(title, loc="left", fontsize=10, parse_math=False)
    return save(figure, kind)


def save(figure: Figure, kind: str) -> bytes:
    """The bytes of the figure's file, the same each time."""
    buffer = io.BytesIO()
    stamp = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    figure.savefig(buffer, format=kind, dpi=120, metadata=stamp)
    return buffer.getvalue()


def baseline_of(entry: Review, baselines: list[Review]) -> Review | None:
    """The review that `entry` was compared with."""
    against = entry.comparison
    for base in baselines:
        if (base.curve.path, base.curve.tag) == (against.get("baseline"), against.get("tag")):
            return base
    return None


def draw(panel: Axes, entry: Review, base: Review | None = None) -> None:
    """Draw a curve, its trend, its episodes with class and height, and a baseline's trend."""
    steps, values = entry.curve.steps, entry.curve.values
    finite = np.isfinite(values)
    panel.plot(*envelope(steps[finite], values[finite]), color=LINE, linewidth=0.7)
    panel.plot(*entry.trend, color=TREND, linewidth=1.0)
    if base is not None:
        at, levels = base.trend
        # A longer baseline would press the curve together.
        near = at <= steps.max() if len(steps) else at > -np.inf
        panel.plot(
            at[near], levels[near], color=BASE, linewidth=1.2, linestyle="--", label="baseline"
        )
        panel.legend(loc="upper right", fontsize=8, frameon=False)
    positive = finite.any() and values[finite].min() > 0
    if positive and values[finite].max() > LOGARITHMIC * values[finite].min():
        panel.set_yscale("log")
    _mark(panel, entry, steps, values)
    panel.set_xlabel("step", fontsize=9)
    # A name with dollars is no formula; the ticks of a logarithmic axis are.
    panel.set_ylabel(entry.curve.tag, fontsize=9, parse_math=False)
    panel.tick_params(labelsize=8)
    panel.margins(x=0.01, y=0.12)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _mark(panel: Axes, entry: Review, steps: np.ndarray, values: np.ndarray) -> None:
    """A band from start to end and the class with its height above the peak."""
    finite = np.isfinite(values)
    for episode in entry.episodes:
        colour = COLOURS[episode.kind]
        panel.axvspan(episode.start_step, episode.end_step, color=colour, alpha=0.18, linewidth=0)
        if not np.isfinite(episode.height):
            panel.axvline(episode.peak_step, color=colour, linewidth=1, linestyle=":")
            top = values[finite].max() if finite.any() else 1.0
            panel.annotate("NaN/inf", (episode.peak_step, top), color=colour, fontsize=8)
            continue
        peak = episode.baseline + episode.height_value
        panel.plot([episode.peak_step], [peak], "v", color=colour, markersize=5, gid="peak")
        text = f"{episode.height:.0f}" if episode.kind == "spike" else episode.kind
        panel.annotate(
            text,
            (episode.peak_step, peak),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            color=colour,
            fontsize=8,
        )
