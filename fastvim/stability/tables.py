"""Text logs, read line by line: CSV in the dialects frameworks write, and JSON lines.

Known by test: plain CSV with or without a header, wandb's export (a column a run), TensorBoard's
download, Lightning's metrics.csv with empty cells, Keras's CSVLogger, detectron2's and MMEngine's
JSON lines, transformers' trainer_state.json, a history as lists.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from pathlib import Path

from fastvim.stability.curves import is_loss
from fastvim.stability.rows import Curves, Rows

MISSING = {"", "none", "null", "na", "n/a", "-"}
NOT_FINITE = {"nan", "inf", "infinity"}
DELIMITERS = ",\t;"
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class CsvLines:
    """Lines of a CSV file; the first tells the delimiter and whether there is a header."""

    def __init__(self):
        self.rows = Rows()
        self.header: list[str] | None = None
        self.delimiter = ","

    def take(self, line: str) -> bool:
        """Take a line; False if it cannot be read."""
        if self.header is None:
            self.delimiter = max(DELIMITERS, key=line.count)
        try:
            cells = self._cells(line)
        except csv.Error:  # A cell of more than 131,072 characters, say.
            return False
        if self.header is None:
            if any(_number(cell) is None and cell.lower() not in MISSING for cell in cells):
                self.header = cells
                return True
            self.header = _names(len(cells))
        if cells == self.header:
            # A resumed run wrote its header again.
            return True
        if len(cells) != len(self.header):
            return False
        row = {}
        for name, cell in zip(self.header, cells, strict=True):
            number = _number(cell)
            if number is not None:
                row[name] = number
            elif cell.lower() not in MISSING and name in self.rows.curves:
                # Text in a column of numbers is damage; a column of text is none.
                return False
        return not self.rows.add(row)

    def _cells(self, line: str) -> list[str]:
        if '"' in line:
            cells = next(csv.reader([line], delimiter=self.delimiter))
        else:
            cells = line.split(self.delimiter)
        return [cell.strip() for cell in cells]


class JsonLines:
    """Lines of JSON objects; nested objects are named with slashes, other than numbers ignored."""

    def __init__(self):
        self.rows = Rows()

    def take(self, line: str) -> bool:
        """Take a line; False if it is not a JSON object, or as `take_object` says."""
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            return False
        return isinstance(document, dict) and self.take_object(document)

    def take_object(self, document: dict) -> bool:
        """Take an object that is a row; False if it has a loss that could not be taken, or a number
        beyond all bounds or depth.

        A summary at the end of a log has no step either, and is no damage.
        """
        try:
            row = dict(_flat(document))
        except (OverflowError, RecursionError):
            return False
        return not any(map(is_loss, self.rows.add(row)))


class TextReader:
    """Reads a text log bit by bit: `poll()` takes the whole lines added since the last time.

    `finish()` takes a last line that lacks its line end.
    """

    def __init__(self, path: Path, kind: type[CsvLines] | type[JsonLines]):
        self.path = path
        self.kind = kind
        self._start()

    def _start(self) -> None:
        self.lines = self.kind()
        self.position = 0
        self.line_number = 0
        self.pending = b""
        self.utf16: codecs.IncrementalDecoder | None = None
        self.bad_lines: list[int] = []
        self.torn = False

    @property
    def curves(self) -> Curves:
        """Column or key to (steps, values) so far."""
        return self.lines.rows.curves

    def poll(self) -> None:
        """Read the whole lines behind the last position. Raises OSError."""
        if self.path.stat().st_size < self.position:
            # Written anew: what was read is gone.
            self._start()
        with open(self.path, "rb") as file:
            file.seek(self.position)
            data = file.read()
        if self.position == 0 and data.startswith(UTF16):
            self.utf16 = codecs.getincrementaldecoder("utf-16")("replace")
        self.position += len(data)
        if self.utf16:
            data = self.utf16.decode(data).encode()
        whole, end, self.pending = (self.pending + data).rpartition(b"\n")
        if end:
            self._take_lines(whole.split(b"\n"))

    def finish(self) -> None:
        """The log is over: its last line counts without its end, if it can be read."""
        before = len(self.bad_lines)
        self._take_lines([self.pending])
        if len(self.bad_lines) > before:
            self.bad_lines.pop()
            self.torn = True
        self.pending = b""

    @property
    def lost(self) -> list[str]:
        """What could not be read, in words."""
        losses = []
        if self.bad_lines:
            losses.append(
                f"{self.path.name}: {len(self.bad_lines)} line(s) skipped, the first is line "
                f"{self.bad_lines[0]}"
            )
        if self.torn:
            losses.append(f"{self.path.name}: ends inside a line, cut off or being written")
        return losses

    def _take_lines(self, lines: list[bytes]) -> None:
        for line in lines:
            self.line_number += 1
            text = line.decode("utf-8-sig", errors="replace").rstrip("\r")
            if text.strip() and not self.lines.take(text):
                self.bad_lines.append(self.line_number)


class HistoryReader(TextReader):
    """Reads the history.csv of a run of ours, its columns named as in the run's event files."""

    def __init__(self, path: Path):
        super().__init__(path, CsvLines)

    @property
    def curves(self) -> Curves:
        """Tag to (steps, values) so far, a value for every step."""
        return {f"train/{name}": curve for name, curve in self.lines.rows.curves.items()}


class DocumentReader:
    """Reads a JSON file that is one document, whole each time it changes.

    Either rows (a list of objects, or an object with one, like `log_history`) or columns (an
    object of lists).
    """

    def __init__(self, path: Path):
        self.path = path
        self.curves: Curves = {}
        self.lost: list[str] = []
        self.stamp: tuple[int, int] | None = None

    def poll(self) -> None:
        """Read the file again if it changed. Raises OSError, and ValueError while it is no JSON."""
        status = self.path.stat()
        stamp = (status.st_mtime_ns, status.st_size)
        if stamp != self.stamp:
            try:
                document = json.loads(self.path.read_bytes())
            except RecursionError:
                raise ValueError("it is nested too deeply") from None
            self.curves, bad = document_curves(document)
            first = f"{self.path.name}: {len(bad)} row(s) skipped, the first is row"
            self.lost = [f"{first} {bad[0]}"] if bad else []
            self.stamp = stamp


def document_curves(document: object) -> tuple[Curves, list[int]]:
    """Curves of a parsed JSON document, none where it holds none; the rows that were not taken."""
    if isinstance(document, dict):
        for key in ("log_history", "history", "logs"):
            if isinstance(document.get(key), list | dict):
                return document_curves(document[key])
        columns = {key: value for key, value in document.items() if isinstance(value, list)}
        length = max(map(len, columns.values()), default=0)
        document = [
            {key: column[i] for key, column in columns.items() if i < len(column)}
            for i in range(length)
        ]
    lines, bad = JsonLines(), []
    for place, row in enumerate(document if isinstance(document, list) else [], 1):
        if isinstance(row, dict) and not lines.take_object(row):
            bad.append(place)
    return lines.rows.curves, bad


def _names(columns: int) -> list[str]:
    """Names of a table without a header: the value, the step before it, or bare numbers."""
    if columns <= 2:
        return ["step", "value"][-columns:]
    return [f"column {i + 1}" for i in range(columns)]


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _flat(document: dict, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Numbers of nested objects by path; NaN and infinity also as the words some writers use."""
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}/")
            continue
        word = isinstance(value, str) and value.lower().lstrip("+-") in NOT_FINITE
        if word or (isinstance(value, int | float) and not isinstance(value, bool)):
            yield f"{prefix}{key}", float(value)
