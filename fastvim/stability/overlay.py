"""Write a review back as TensorBoard runs that lie over the curves they speak of."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event as EventProto
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from fastvim.files import write_atomic
from fastvim.stability.curves import envelope
from fastvim.stability.readers import EVENTS, REVIEWED
from fastvim.stability.review import Review
from fastvim.stability.review_table import episode_cells, label, recovered, words

# TensorBoard keeps so many points of a curve, chosen at random where there are more.
MOST_POINTS = 1000
# How the run of a log's findings is named, after the log's own.
EPISODES = "-episodes"


def write_overlay(reviews: list[Review], folder: Path) -> list[Path]:
    """A run below `folder` for each log: above what a value is an outlier, the values of the
    episodes, and a table of them.

    The scalars have the tags of the log, so TensorBoard draws them in the same charts when
    `folder` is below its `--logdir`; the order in which it draws is its own, and a line above the
    noise is seen in any. A log that is no event file gets a run for its curve too. An earlier
    review's files are replaced. Returns the files. Raises UserError if one cannot be written.
    """
    logs: dict[str, list[Review]] = {}
    for entry in reviews:
        logs.setdefault(entry.curve.path, []).append(entry)
    written: list[Path] = []
    taken: set[str] = set()
    for entries in logs.values():
        place = folder / _free_name(entries[0], reviews, taken)
        path = Path(entries[0].curve.path)
        if not path.is_dir() and EVENTS not in path.name:
            curves = [(entry.curve.tag, *_curve(entry)) for entry in entries]
            written.append(_write(place, _scalars(curves)))
        overlay = _scalars([(entry.curve.tag, *overlay_points(entry)) for entry in entries])
        overlay += [(0, _text(entry)) for entry in entries]
        written.append(_write(place.with_name(f"{place.name}{EPISODES}"), overlay))
    return written


def _free_name(entry: Review, reviews: list[Review], taken: set[str]) -> str:
    """A folder's name for the log of `entry`, whose runs no other log has; it is then taken."""
    log = label(entry, reviews).removesuffix(f" {entry.curve.tag}")
    plain = name = re.sub(r"[^\w.-]+", "_", log).strip("_.") or "log"
    number = 1
    while {name, name + EPISODES} & taken:
        number += 1
        name = f"{plain}-{number}"
    taken |= {name, name + EPISODES}
    return name


def _write(place: Path, records: list[tuple[float, Summary.Value]]) -> Path:
    buffer, now = io.BytesIO(), time.time()
    writer = RecordWriter(buffer)
    writer.write(EventProto(wall_time=now, file_version="brain.Event:2").SerializeToString())
    for step, value in records:
        writer.write(_event(now, step, value))
    older = list(place.glob(f"*{EVENTS}*{REVIEWED}"))
    path = place / f"events.out.{EVENTS}.{time.time_ns()}.{REVIEWED}"
    write_atomic(path, buffer.getvalue())
    for each in older:
        each.unlink(missing_ok=True)
    return path


def _scalars(curves) -> list[tuple[float, Summary.Value]]:
    """Of (tag, steps, values) each."""
    return [
        (step, Summary.Value(tag=tag, simple_value=value))
        for tag, steps, values in curves
        for step, value in zip(steps, values, strict=True)
    ]


def _curve(entry: Review) -> tuple[np.ndarray, np.ndarray]:
    """The curve as far as it is finite, with every peak; (n,) each."""
    at, values = entry.curve.steps, entry.curve.values
    finite = np.isfinite(values)
    return envelope(at[finite], values[finite], MOST_POINTS // 2)


def _event(now: float, step: float, value: Summary.Value) -> bytes:
    # TensorBoard's steps are whole numbers.
    event = EventProto(wall_time=now, step=round(step), summary=Summary(value=[value]))
    return event.SerializeToString()


def overlay_points(entry: Review) -> tuple[np.ndarray, np.ndarray]:
    """The limits outside episodes and the values inside them, by step; (n,) each, MOST_POINTS at
    most: of many episodes the highest, and of each its peak."""
    logged_steps, logged = entry.curve.steps, entry.curve.values
    highest = sorted(entry.episodes, key=lambda episode: episode.height)[-MOST_POINTS // 2 :]
    at, values = [], []
    for episode in highest:
        inside = np.flatnonzero(
            (logged_steps >= episode.start_step) & (logged_steps <= episode.end_step)
        )
        peak = inside[logged_steps[inside] == episode.peak_step][:1]
        others = _thinned(inside, MOST_POINTS // 2 // len(highest) - len(peak))
        drawn = np.unique(np.concatenate([others, peak]))
        at.append(logged_steps[drawn])
        values.append(logged[drawn])
    limit_steps, limits = entry.trend[0], entry.limits
    outside = np.flatnonzero(np.isfinite(limits))
    drawn = _thinned(outside, MOST_POINTS - sum(map(len, at)))
    at.append(limit_steps[drawn])
    values.append(limits[drawn])
    order = np.argsort(np.concatenate(at), kind="stable")
    return np.concatenate(at)[order], np.concatenate(values)[order]


def _thinned(places: np.ndarray, most: int) -> np.ndarray:
    """`most` of `places`, evenly, with the first and the last; all where there are no more."""
    if len(places) <= most:
        return places
    return places[np.linspace(0, len(places) - 1, max(most, 0)).round().astype(int)]


def _text(entry: Review) -> Summary.Value:
    """The table of episodes as TensorBoard text (Markdown)."""
    lines = [f"`{entry.curve.path}` {entry.curve.tag}: {words(entry)}"]
    if entry.episodes:
        lines += [
            "",
            "| class | start | peak | end | deviations | height | recovered |",
            "|---|---|---|---|---|---|---|",
        ]
    for episode in entry.episodes:
        lines.append(
            f"| {' | '.join([episode.kind, *episode_cells(episode)[:-1], recovered(episode)])} |"
        )
    return text_pb(f"episodes/{entry.curve.tag}", "\n".join(lines)).value[0]
