"""Scalars of TensorBoard event files, also of one that is still being written."""

from __future__ import annotations

import math
import struct
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event as EventProto

from fastvim.stability.tfrecord import scan

DT_FLOAT, DT_DOUBLE, DT_INT32, DT_INT64 = 1, 2, 3, 9
# dtype: (the field that may hold the number, how the bytes of tensor_content are packed)
NUMBERS = {
    DT_FLOAT: ("float_val", "<f"),
    DT_DOUBLE: ("double_val", "<d"),
    DT_INT32: ("int_val", "<i"),
    DT_INT64: ("int64_val", "<q"),
}


class EventReader:
    """Reads an event file bit by bit: `poll()` takes what was added since the last time.

    `curves` maps a tag to its (steps, values) so far, in the order of the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self._start()

    def _start(self) -> None:
        self.curves: dict[str, tuple[list[float], list[float]]] = {}
        self.position = 0
        self.pending = 0
        self.bad_records = 0
        self.skipped_bytes = 0

    def poll(self) -> None:
        """Read the whole records behind the last position. Raises OSError."""
        if self.path.stat().st_size < self.position:
            # Written anew: what was read is gone.
            self._start()
        with open(self.path, "rb") as file:
            file.seek(self.position)
            data = file.read()
        records = scan(data)
        for start, length in zip(records.starts.tolist(), records.lengths.tolist(), strict=True):
            self._take(data[start : start + length])
        self.position += records.end
        self.pending = len(data) - records.end
        self.bad_records += records.bad_records
        self.skipped_bytes += records.skipped_bytes

    @property
    def lost(self) -> list[str]:
        """What could not be read, in words."""
        name, losses = self.path.name, []
        if self.bad_records:
            losses.append(f"{name}: {self.bad_records} corrupt record(s) skipped")
        if self.skipped_bytes:
            losses.append(f"{name}: {self.skipped_bytes} bytes skipped to the next whole record")
        if self.pending:
            losses.append(
                f"{name}: ends inside a record ({self.pending} bytes), cut off or being written"
            )
        return losses

    def _take(self, record: bytes) -> None:
        try:
            event = EventProto.FromString(record)
        except Exception:
            # protobuf's DecodeError class differs between its implementations.
            self.bad_records += 1
            return
        for value in event.summary.value:
            number = _number(value)
            if number is not None:
                curve = self.curves.get(value.tag)
                if curve is None:
                    curve = self.curves[value.tag] = ([], [])
                curve[0].append(event.step)
                curve[1].append(number)


def _number(value) -> float | None:
    """The scalar of a summary value, from either way of writing it; None for anything else."""
    which = value.WhichOneof("value")
    if which == "simple_value":
        return value.simple_value
    if which != "tensor" or value.tensor.dtype not in NUMBERS:
        return None
    tensor = value.tensor
    if math.prod(axis.size for axis in tensor.tensor_shape.dim) != 1:
        return None
    field, packing = NUMBERS[tensor.dtype]
    if len(tensor.tensor_content) == struct.calcsize(packing):
        return struct.unpack(packing, tensor.tensor_content)[0]
    numbers = getattr(tensor, field)
    return float(numbers[0]) if len(numbers) == 1 else None
