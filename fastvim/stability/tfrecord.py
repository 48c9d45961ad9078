"""TFRecord files, as TensorBoard writes its events: records with checksums, read as far as they go.

A record is its length (8 bytes, little endian), the masked CRC-32C of the length, the data, and
the masked CRC-32C of the data (tensorflow/core/lib/io/record_writer.h). A bad length checksum
loses the place: the next place whose 12 bytes agree is searched. A bad data checksum loses that
record only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

HEADER, FOOTER = 12, 4
# Longer records hold pictures and graphs, no scalars; their data is not worth checking.
CHECKED = 1 << 16
POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected


def _table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(POLYNOMIAL), np.uint32(0))
    return table


TABLE = _table()


@dataclass
class Records:
    """Places of the whole records of a buffer, how far it was read, and what was lost on the way.

    starts, lengths: (n,) int64, of the data in the buffer. `end`: where the next record starts;
    beyond it lies the beginning of a record that is not all there.
    """

    starts: np.ndarray
    lengths: np.ndarray
    end: int
    bad_records: int
    skipped_bytes: int


def masked_crc(buffer: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Masked CRC-32C of the spans `buffer[starts : starts + lengths]`; (n,) uint32.

    All spans at once, a byte of each in turn, the longest first so that the active ones are a
    slice: the loop is as long as the longest span, not as the file.
    """
    order = np.argsort(-lengths, kind="stable")
    starts, lengths = starts[order], lengths[order]
    crc = np.full(len(starts), 0xFFFFFFFF, dtype=np.uint32)
    longest = int(lengths[0]) if len(lengths) else 0
    active = np.searchsorted(-lengths, -np.arange(longest), side="left")
    for byte in range(longest):
        part = crc[: active[byte]]
        data = buffer[starts[: active[byte]] + byte]
        crc[: active[byte]] = TABLE[(part ^ data) & 0xFF] ^ (part >> 8)
    crc ^= np.uint32(0xFFFFFFFF)
    masked = ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)
    result = np.empty_like(masked)
    result[order] = masked
    return result


def scan(data: bytes) -> Records:
    """Find the whole records of `data`."""
    buffer = np.frombuffer(data, dtype=np.uint8)
    starts, lengths, skipped = [], [], 0
    position = 0
    while True:
        headers, end = _walk(data, position)
        good = _checked_headers(buffer, headers)
        bad = np.flatnonzero(~good)
        kept = headers if not len(bad) else headers[: bad[0]]
        kept_lengths = _lengths(buffer, kept)
        starts.append(kept + HEADER)
        lengths.append(kept_lengths)
        if not len(bad):
            # The header at the end may be whole, its record not; a wrong one is not waited for.
            if len(data) - end >= HEADER and not _checked_headers(buffer, np.array([end]))[0]:
                lost = end
            else:
                break
        else:
            lost = int(headers[bad[0]])
        position = _next_header(buffer, lost + 1)
        skipped += position - lost
        if position == len(data):
            end = position
            break
    all_starts, all_lengths = np.concatenate(starts), np.concatenate(lengths)
    intact = _intact(buffer, all_starts, all_lengths)
    return Records(all_starts[intact], all_lengths[intact], end, int((~intact).sum()), skipped)


def _walk(data: bytes, position: int) -> tuple[np.ndarray, int]:
    """Places of the headers from `position` on, if the lengths are to be trusted, and the end."""
    places = []
    size = len(data)
    while position + HEADER + FOOTER <= size:
        length = int.from_bytes(data[position : position + 8], "little")
        after = position + HEADER + length + FOOTER
        if after > size:
            break
        places.append(position)
        position = after
    return np.array(places, dtype=np.int64), position


def _words(buffer: np.ndarray, places: np.ndarray, width: int) -> np.ndarray:
    """Little-endian unsigned numbers of `width` bytes at `places`; (n,)."""
    spans = buffer[places[:, None] + np.arange(width)]
    return np.ascontiguousarray(spans).view(f"<u{width}")[:, 0]


def _lengths(buffer: np.ndarray, places: np.ndarray) -> np.ndarray:
    if not len(places):
        return np.zeros(0, dtype=np.int64)
    return _words(buffer, places, 8).astype(np.int64)


def _checked_headers(buffer: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(n,) bool: whether the length at each place has the checksum that follows it."""
    if not len(places):
        return np.zeros(0, dtype=bool)
    crc = masked_crc(buffer, places, np.full(len(places), 8))
    return crc == _words(buffer, places + 8, 4)


def _intact(buffer: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(n,) bool: whether the data has the checksum that follows it."""
    intact = np.ones(len(starts), dtype=bool)
    checked = np.flatnonzero(lengths <= CHECKED)
    if len(checked):
        begin, length = starts[checked], lengths[checked]
        intact[checked] = masked_crc(buffer, begin, length) == _words(buffer, begin + length, 4)
    return intact


def _next_header(buffer: np.ndarray, position: int) -> int:
    """The next place that looks like a header, or the end of the buffer."""
    block = 1 << 16
    last = len(buffer) - HEADER
    while position <= last:
        places = np.arange(position, min(position + block, last + 1))
        found = np.flatnonzero(_checked_headers(buffer, places))
        if len(found):
            return int(places[found[0]])
        position += block
    return len(buffer)
