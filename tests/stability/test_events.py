"""TensorBoard event files: whole, cut off, corrupt in the middle, and still being written."""

import struct

import numpy as np
import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

from fastvim.stability.events import EventReader
from fastvim.stability.tfrecord import masked_crc, scan


def event(step, value, tag="train/loss"):
    summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
    return Event(wall_time=1e9 + step, step=step, summary=summary)


def write(path, events):
    """An event file; the place of each record in it."""
    places = []
    with open(path, "wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=1e9, file_version="brain.Event:2").SerializeToString())
        for one in events:
            places.append(file.tell())
            writer.write(one.SerializeToString())
    return places


def read(path):
    reader = EventReader(path)
    reader.poll()
    return reader


def steps(reader):
    return reader.curves["train/loss"][0]


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "events.out.tfevents.1.host"
    return path, write(path, [event(step, step / 100) for step in range(100)])


def test_checksums_agree_with_tensorboard():
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, 5000).astype(np.uint8)
    starts = rng.integers(0, 4000, 50)
    lengths = rng.integers(0, 1000, 50)
    expected = [
        masked_crc32c(data[a : a + n].tobytes()) for a, n in zip(starts, lengths, strict=True)
    ]
    assert masked_crc(data, starts, lengths).tolist() == expected


def test_whole_file(log):
    reader = read(log[0])
    assert steps(reader) == list(range(100))
    assert reader.curves["train/loss"][1] == pytest.approx(np.arange(100) / 100)
    assert reader.lost == []


def test_cut_off_anywhere_gives_what_is_whole(log):
    path, places = log
    whole = path.read_bytes()
    for end in (places[50], places[50] + 3, places[50] + 12, places[51] - 1):
        path.write_bytes(whole[:end])
        reader = read(path)
        assert steps(reader) == list(range(50))
        expected = [] if end == places[50] else [f"{end - places[50]} bytes"]
        assert len(reader.lost) == len(expected)
        assert all(words in loss for words, loss in zip(expected, reader.lost, strict=True))


def test_a_corrupt_record_costs_itself(log):
    path, places = log
    damaged = bytearray(path.read_bytes())
    damaged[places[30] + 20] ^= 0x40
    path.write_bytes(damaged)
    reader = read(path)
    assert steps(reader) == [step for step in range(100) if step != 30]
    assert "1 corrupt record" in reader.lost[0]


@pytest.mark.parametrize("byte", [0, 3, 7, 9])
def test_a_corrupt_length_is_searched_past(log, byte):
    path, places = log
    damaged = bytearray(path.read_bytes())
    damaged[places[30] + byte] ^= 0x40
    path.write_bytes(damaged)
    reader = read(path)
    assert steps(reader) == [step for step in range(100) if step != 30]
    assert f"{places[31] - places[30]} bytes skipped" in reader.lost[0]


def test_garbage_in_the_middle_and_at_the_end(log):
    path, places = log
    whole = path.read_bytes()
    garbage = np.random.default_rng(0).integers(0, 256, 100_000).astype(np.uint8).tobytes()
    path.write_bytes(whole[: places[40]] + garbage + whole[places[60] :] + garbage)
    reader = read(path)
    assert steps(reader) == [*range(40), *range(60, 100)]
    assert "200000 bytes skipped" in reader.lost[0]


def test_no_event_file_at_all(tmp_path):
    path = tmp_path / "events.out.tfevents.2.host"
    path.write_bytes(b"")
    assert read(path).curves == {} and read(path).lost == []
    path.write_bytes(b"not an event file, but longer than a header")
    assert read(path).curves == {} and "bytes skipped" in read(path).lost[0]


def test_still_being_written(log):
    path, places = log
    whole = path.read_bytes()
    path.write_bytes(whole[: places[10] + 5])
    reader = read(path)
    assert steps(reader) == list(range(10))
    for end in (places[10] + 13, places[20], len(whole) - 1, len(whole)):
        path.write_bytes(whole[:end])
        reader.poll()
    assert steps(reader) == list(range(100)) and reader.lost == []
    # Written anew and shorter: start again.
    path.write_bytes(whole[: places[5]])
    reader.poll()
    assert steps(reader) == list(range(5))


def test_scalars_as_tensors(tmp_path):
    path = tmp_path / "events.out.tfevents.3.host"
    packed = TensorProto(dtype=2, tensor_content=struct.pack("<d", 0.1))
    tensors = [
        make_tensor_proto(np.float32(0.5)),
        packed,
        make_tensor_proto(np.int64(7)),
        make_tensor_proto(np.zeros(3, np.float32)),
        make_tensor_proto("text"),
    ]
    values = [Summary.Value(tag="loss", tensor=tensor) for tensor in tensors]
    values.append(Summary.Value(tag="loss", simple_value=float("nan")))
    write(path, [Event(step=i, summary=Summary(value=[v])) for i, v in enumerate(values)])
    steps_, numbers = read(path).curves["loss"]
    assert steps_ == [0, 1, 2, 5]
    assert numbers[:3] == [0.5, 0.1, 7.0] and np.isnan(numbers[3])


def test_records_longer_than_are_checked(tmp_path):
    path = tmp_path / "events.out.tfevents.4.host"
    picture = Summary(value=[Summary.Value(tag="loss", tensor=make_tensor_proto("x" * 100_000))])
    write(path, [event(0, 1.0), Event(step=1, summary=picture), event(2, 3.0)])
    assert scan(path.read_bytes()).lengths.max() > 1 << 16
    assert steps(read(path)) == [0, 2]
