"""Write a review back as TensorBoard runs that lie over the curves they speak of."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event as EventProto
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.record_writer import RecordWriter

from fastvim.files import write_atomic
from fastvim.stability.curves import current
from fastvim.stability.readers import REVIEWED
from fastvim.stability.review import Review
from fastvim.stability.review_table import label, number, steps, words

# Values of an episode that an overlay draws at most.
EPISODE_POINTS = 300


def write_overlay(reviews: list[Review], folder: Path) -> list[Path]:
    """A run below `folder` for each log: the trend, the episodes' own values, and a table.

    The scalars have the tags of the log, so TensorBoard draws them in the same charts when
    `folder` is below its `--logdir`. Returns the files. Raises UserError if one cannot be written.
    """
    files: dict[Path, list[Review]] = {}
    for entry in reviews:
        log = label(entry, reviews).removesuffix(f" {entry.curve.tag}")
        name = re.sub(r"[^\w.-]+", "_", log).strip("_.") or "log"
        files.setdefault(folder / f"{name}-episodes", []).append(entry)
    written = []
    for place, entries in files.items():
        now = time.time()
        path = place / f"events.out.tfevents.{int(now)}.{REVIEWED}"
        write_atomic(path, _records(entries, now))
        written.append(path)
    return written


def _records(entries: list[Review], now: float) -> bytes:
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    writer.write(EventProto(wall_time=now, file_version="brain.Event:2").SerializeToString())
    for entry in entries:
        for step, value in zip(*overlay_points(entry), strict=True):
            scalar = Summary.Value(tag=entry.curve.tag, simple_value=value)
            writer.write(_event(now, step, scalar))
        writer.write(_event(now, 0, _text(entry)))
    return buffer.getvalue()


def _event(now: float, step: float, value: Summary.Value) -> bytes:
    # TensorBoard's steps are whole numbers.
    event = EventProto(wall_time=now, step=round(step), summary=Summary(value=[value]))
    return event.SerializeToString()


def overlay_points(entry: Review) -> tuple[np.ndarray, np.ndarray]:
    """The trend outside episodes and the values inside them, by step; (n,) each."""
    trend_steps, trend = current(*entry.trend)
    logged_steps, logged = current(entry.curve.steps, entry.curve.values)
    outside = np.isfinite(trend)
    at, values = [trend_steps[outside]], [trend[outside]]
    for episode in entry.episodes:
        inside = np.flatnonzero(
            (logged_steps >= episode.start_step) & (logged_steps <= episode.end_step)
        )
        stride = max(-(-len(inside) // EPISODE_POINTS), 1)
        peak = inside[logged_steps[inside] == episode.peak_step][:1]
        drawn = np.unique(np.concatenate([inside[::stride], peak]))
        at.append(logged_steps[drawn])
        values.append(logged[drawn])
    order = np.argsort(np.concatenate(at), kind="stable")
    return np.concatenate(at)[order], np.concatenate(values)[order]


def _text(entry: Review) -> Summary.Value:
    """The table of episodes as TensorBoard text (Markdown)."""
    lines = [
        f"`{entry.curve.path}` {entry.curve.tag}: {words(entry)}",
        "",
        "| class | start | peak | end | deviations | height | recovered |",
        "|---|---|---|---|---|---|---|",
    ]
    for episode in entry.episodes:
        lines.append(
            f"| {episode.kind} | {steps(episode.start_step)} | {steps(episode.peak_step)} "
            f"| {steps(episode.end_step)} | {episode.height:.1f} | {number(episode.height_value)} "
            f"| {'yes' if episode.recovered else 'no'} |"
        )
    tensor = TensorProto(
        dtype=DT_STRING,
        string_val=["\n".join(lines).encode()],
        tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
    )
    plugin = SummaryMetadata.PluginData(plugin_name="text")
    return Summary.Value(
        tag=f"episodes/{entry.curve.tag}",
        tensor=tensor,
        metadata=SummaryMetadata(plugin_data=plugin),
    )
