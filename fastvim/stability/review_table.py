"""The review as tables for a terminal."""

from __future__ import annotations

import os
from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from fastvim.stability.episodes import NONFINITE, Episode
from fastvim.stability.review import Review


def label(review: Review, reviews: list[Review]) -> str:
    """A short name: the part of the path that tells runs apart, and the tag where that does."""
    path = os.path.abspath(review.curve.path)
    paths = {os.path.abspath(entry.curve.path) for entry in reviews}
    name = os.path.relpath(path, os.path.commonpath(map(os.path.dirname, paths)))
    tags = {entry.curve.tag for entry in reviews}
    return name if len(tags) == 1 else f"{name} {review.curve.tag}"


def number(value: float | None) -> str:
    """Four significant digits; a dash for none."""
    return "-" if value is None or value != value else f"{value:.4g}"


def steps(value: float) -> str:
    """A step, whole where it is."""
    return f"{value:.0f}" if float(value).is_integer() else f"{value:g}"


def words(review: Review) -> str:
    """The episodes counted by class: `3 spikes, 1 divergence`, or `none`."""
    counted = [
        f"{count} {kind}{'' if count == 1 or kind == NONFINITE else 's'}"
        for kind, count in review.counts.items()
    ]
    return ", ".join(counted) or "none"


def tables(reviews: list[Review]) -> Iterator[Table]:
    """One table of runs, then one of episodes where there are any."""
    runs = _table("Runs")
    runs.add_column("log", overflow="fold")
    runs.add_column("tag", overflow="fold")
    for heading in ("values", "steps", "episodes", "spike score", "final level"):
        runs.add_column(heading, justify="left" if heading == "episodes" else "right")
    compared = any(review.comparison for review in reviews)
    if compared:
        for heading in ("episodes +/-", "final level +/-", "below from step"):
            runs.add_column(heading, justify="right")
    for review in reviews:
        runs.add_row(*_run_cells(review, compared))
    yield runs
    if any(review.episodes for review in reviews):
        yield _episodes(reviews)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))


def _run_cells(review: Review, compared: bool) -> list[str]:
    curve = review.curve
    span = f"{steps(curve.steps.min())}..{steps(curve.steps.max())}" if len(curve.steps) else "-"
    cells = [
        escape(curve.path),
        escape(curve.tag),
        str(len(curve.values)),
        span,
        words(review),
        f"{100 * review.spike_score:.3g} %",
        number(review.final_level),
    ]
    return cells + comparison_cells(review) if compared else cells


def comparison_cells(review: Review) -> list[str]:
    """Difference in episodes and final level, and the step from which the trend is lower."""
    against = review.comparison
    if not against:
        return ["baseline", "", ""]
    below, final = against["below_from_step"], against["final_level"]
    return [
        f"{against['episodes']:+d}",
        "-" if final is None else f"{final:+.4g}",
        "never" if below is None else steps(below),
    ]


def _episodes(reviews: list[Review]) -> Table:
    table = _table("Episodes")
    table.add_column("log", overflow="fold")
    table.add_column("class")
    for heading in ("start", "peak", "end", "deviations", "height", "values"):
        table.add_column(heading, justify="right")
    table.add_column("recovered")
    for review in reviews:
        for episode in review.episodes:
            table.add_row(
                escape(label(review, reviews)),
                episode.kind,
                *episode_cells(episode),
                recovered(episode),
            )
    return table


def episode_cells(episode: Episode) -> list[str]:
    """Start, peak and end; how high, in deviations and in the loss; values."""
    return [
        steps(episode.start_step),
        steps(episode.peak_step),
        steps(episode.end_step),
        f"{episode.height:.1f}",
        number(episode.height_value),
        str(episode.duration),
    ]


def recovered(episode: Episode) -> str:
    return "yes" if episode.recovered else "no"


def losses(reviews: list[Review]) -> list[str]:
    """What could not be read of the logs, one line each."""
    every = [(review.curve.path, loss) for review in reviews for loss in review.curve.lost]
    return list(dict.fromkeys(_located(path, loss) for path, loss in every))


def _located(path: str, loss: str) -> str:
    """A loss, which begins with the name of its file, with the path of its log."""
    own = f"{os.path.basename(path)}: "
    return f"{path}: {loss.removeprefix(own)}"
