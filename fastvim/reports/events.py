"""TensorBoard's protocol buffers and event files, without TensorFlow."""

import io
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import struct_pb2
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub import dtypes
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as layout_metadata
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

from fastvim.files import write_atomic

# TensorBoard reads any file with `tfevents` in its name, in the order of the names.
PREFIX, SUFFIX = "events.out.tfevents.", ".fastvim"
Record = tuple[int, Summary]
"""A step and what belongs to it."""


def scalar(tag: str, value: float) -> Summary:
    """A point of a curve."""
    return scalar_pb(tag, float(value))


def text(tag: str, markdown: str) -> Summary:
    """A text; TensorBoard cleans the HTML that its Markdown gives."""
    return text_pb(tag, markdown)


def image(tag: str, width: int, height: int, png: bytes) -> Summary:
    """An RGB image."""
    content = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=tag, image=content)])


def session(hyperparameters: Mapping[str, str | float | bool], finished: bool) -> list[Summary]:
    """Hyperparameters of a run and how it ended, for the hparams plugin."""
    start = plugin_data_pb2.SessionStartInfo()
    for name, value in hyperparameters.items():
        kind = {str: "string_value", bool: "bool_value"}.get(type(value), "number_value")
        start.hparams[name].CopyFrom(struct_pb2.Value(**{kind: value}))
    status = api_pb2.STATUS_SUCCESS if finished else api_pb2.STATUS_FAILURE
    end = plugin_data_pb2.SessionEndInfo(status=status)
    parts = {
        hparams_metadata.SESSION_START_INFO_TAG: {"session_start_info": start},
        hparams_metadata.SESSION_END_INFO_TAG: {"session_end_info": end},
    }
    return [Summary(value=[_hparams_value(tag, part)]) for tag, part in parts.items()]


def _hparams_value(tag: str, part: dict) -> Summary.Value:
    content = plugin_data_pb2.HParamsPluginData(**part)
    metadata = hparams_metadata.create_summary_metadata(content)
    # A mapping has no order of its own, and the same run must give the same file.
    metadata.plugin_data.content = content.SerializeToString(deterministic=True)
    return Summary.Value(tag=tag, metadata=metadata, tensor=hparams_metadata.NULL_TENSOR)


def layout(categories: Mapping[str, list[layout_pb2.Chart]]) -> Summary:
    """The page of custom scalars: title of a category -> its charts."""
    content = layout_pb2.Layout(
        category=[
            layout_pb2.Category(title=title, chart=charts) for title, charts in categories.items()
        ]
    )
    value = Summary.Value(
        tag=layout_metadata.CONFIG_SUMMARY_TAG,
        metadata=layout_metadata.create_summary_metadata(),
        tensor=make_tensor_proto(content.SerializeToString(), dtype=dtypes.string),
    )
    return Summary(value=[value])


def lines_chart(title: str, tags: list[str]) -> layout_pb2.Chart:
    """A line for each run and each tag that matches one of the regular expressions `tags`."""
    return layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=tags))


def bands_chart(title: str, tags: tuple[str, str, str]) -> layout_pb2.Chart:
    """A line with a band for each run that has the tags: value, lower end, upper end."""
    series = layout_pb2.MarginChartContent.Series(value=tags[0], lower=tags[1], upper=tags[2])
    return layout_pb2.Chart(title=title, margin=layout_pb2.MarginChartContent(series=[series]))


def write_events(directory: Path, records: list[Record], wall_time: float) -> None:
    """Make `directory` hold one file of ours with `records`; untouched if it does already.

    `wall_time`, in seconds, is given to all records: the clock would make every rebuilding
    another file. Raises UserError where it cannot be written.
    """
    events = [Event(wall_time=wall_time, file_version="brain.Event:2")]
    events += [Event(wall_time=wall_time, step=step, summary=found) for step, found in records]
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for event in events:
        writer.write(event.SerializeToString(deterministic=True))
    named = sorted(directory.glob(f"{PREFIX}*{SUFFIX}"))
    older = [path for path in named if path.is_symlink() or not path.is_dir()]
    if len(older) == 1 and _content(older[0]) == buffer.getvalue():
        return
    # Its name is later than all others': a TensorBoard that is running goes on to it.
    latest = max([int(time.time()), *(_time_in(path) + 1 for path in named)])
    write_atomic(directory / f"{PREFIX}{latest:010d}{SUFFIX}", buffer.getvalue())
    for path in older:
        path.unlink(missing_ok=True)


def _content(path: Path) -> bytes | None:
    """None where it cannot be read, such as a link that leads nowhere: it will be replaced."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def _time_in(path: Path) -> int:
    digits = path.name.removeprefix(PREFIX).removesuffix(SUFFIX)
    return int(digits) if digits.isdigit() else 0


def finite(value: Any) -> bool:
    """Whether `value` is a number that TensorBoard can plot."""
    return isinstance(value, (int, float)) and math.isfinite(value)
