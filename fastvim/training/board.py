"""TensorBoard events, written by TensorBoard's own record writer in the thread that trains.

`torch.utils.tensorboard` writes from a thread of its own, which prints a traceback when the disk
is full and may hold back what a killed process has recorded.
"""

import struct
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class Board:
    """An events file in `directory`, a new one for each session of a run."""

    def __init__(self, directory: Path, first_step: int) -> None:
        """TensorBoard drops what earlier files hold from `first_step` on."""
        # TensorBoard reads the files of a folder in the order of their names.
        path = directory / f"events.out.tfevents.{time.time_ns()}"
        self._file = path.open("xb")
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers at `step`."""
        summary = Summary(
            value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        )
        self._write(step=step, summary=summary)

    def add_picture(self, step: int, tag: str, png: bytes) -> None:
        """Record a PNG file's bytes at `step`."""
        width, height = struct.unpack(">II", png[16:24])
        image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=png)
        self._write(step=step, summary=Summary(value=[Summary.Value(tag=tag, image=image)]))

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Flush and close."""
        self._file.close()

    def _write(self, **content) -> None:
        self._records.write(Event(wall_time=time.time(), **content).SerializeToString())
