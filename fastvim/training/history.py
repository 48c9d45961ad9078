"""What a run writes while it trains: history.csv, eval.csv and TensorBoard events.

A step is numbered by the optimiser steps done with it, an epoch by the pass it belongs to, both
from one. Nothing in the CSV files depends on the clock, so equal runs have equal files.
"""

import math
import os
import zlib
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

from fastvim.training.board import Board

HISTORY_FILE = "history.csv"
EVAL_FILE = "eval.csv"
HISTORY_COLUMNS = ("step", "epoch", "loss", "lr", "grad_norm")


class UnreadableHistory(Exception):
    """A CSV file that does not begin with what it held when the state was saved."""


class Position(NamedTuple):
    """How far a CSV file had been written when a state was saved."""

    length: int = 0  # Bytes; 0 is a new file.
    checksum: int | None = None  # CRC-32 of them, but where an earlier version saved the state.


class CsvLog:
    """A CSV file that grows by rows and goes on from a position."""

    def __init__(self, path: Path, columns: tuple[str, ...], position: Position) -> None:
        """Open at `position`, dropping what follows; raises UnreadableHistory."""
        self._columns = columns
        if position.length:
            if not path.exists() or path.stat().st_size < position.length:
                raise UnreadableHistory(f"{path.name} is shorter than when the state was saved")
            self._file = path.open("r+b")
            self._checksum = zlib.crc32(self._file.read(position.length))
            if position.checksum not in (self._checksum, None):
                self._file.close()
                raise UnreadableHistory(f"{path.name} has changed since the state was saved")
            self._file.truncate(position.length)
            self._file.seek(position.length)
        else:
            # A finished run's file may be shared by hard links, so it is replaced.
            path.unlink(missing_ok=True)
            self._file = path.open("wb")
            self._checksum = 0
            self._append(",".join(columns))
            # Who follows the run knows the file by its header, before there is a row.
            self._file.flush()

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row; floats keep the nine digits that tell float32 numbers apart."""
        cells = (row[column] for column in self._columns)
        text = ",".join(f"{cell:.9g}" if isinstance(cell, float) else str(cell) for cell in cells)
        self._append(text)

    def flush(self) -> None:
        """Hand the rows to the operating system."""
        self._file.flush()

    def sync(self) -> Position:
        """Have the rows on the disk, where they outlast a loss of power; how far they go."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return Position(self._file.tell(), self._checksum)

    def close(self) -> None:
        """Flush and close."""
        self._file.close()

    def _append(self, line: str) -> None:
        content = f"{line}\n".encode()
        self._file.write(content)
        self._checksum = zlib.crc32(content, self._checksum)


class History:
    """The records of a run in `directory`, continued from the positions of a saved state.

    Raises UnreadableHistory where the files do not hold what they did at those.
    """

    def __init__(
        self,
        directory: Path,
        eval_columns: tuple[str, ...],
        *,
        step: int = 0,
        steps: Position,
        evaluations: Position,
    ) -> None:
        eval_columns = ("step", "epoch", *eval_columns)
        with ExitStack() as files:
            self._steps = files.enter_context(
                closing(CsvLog(directory / HISTORY_FILE, HISTORY_COLUMNS, steps))
            )
            self._evaluations = files.enter_context(
                closing(CsvLog(directory / EVAL_FILE, eval_columns, evaluations))
            )
            if step == 0:
                for stale in directory.glob("events.out.tfevents.*"):
                    stale.unlink()
            self._board = files.enter_context(closing(Board(directory, first_step=step + 1)))
            self._files = files.pop_all()

    def add_step(self, row: Mapping[str, float]) -> None:
        """Record one optimiser step in history.csv."""
        self._steps.write(row)

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record values that are finite in TensorBoard."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._board.add_scalars(step, finite)

    def add_evaluation(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Record an evaluation in eval.csv and TensorBoard."""
        self._evaluations.write({"step": step, "epoch": epoch, **metrics})
        self.add_scalars(step, {f"validation/{name}": value for name, value in metrics.items()})

    def add_picture(self, step: int, png: bytes) -> None:
        """Record a picture, a PNG file's bytes, in TensorBoard."""
        self._board.add_picture(step, "validation/picture", png)

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self._board.flush()
        self._steps.flush()
        self._evaluations.flush()

    def sync(self) -> tuple[Position, Position]:
        """Have history.csv and eval.csv on the disk; how far they go."""
        self._board.flush()
        return self._steps.sync(), self._evaluations.sync()

    def close(self) -> None:
        """Flush and close all files, also those that come after one that fails."""
        self._files.close()
