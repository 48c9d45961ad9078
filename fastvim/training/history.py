"""What a run writes while it trains: history.csv, eval.csv and TensorBoard events.

A step is numbered by the optimiser steps done with it, an epoch by the pass it belongs to, both
from one. Nothing in the CSV files depends on the clock, so equal runs have equal files.
"""

import math
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path

from fastvim.training.board import Board

HISTORY_FILE = "history.csv"
EVAL_FILE = "eval.csv"
HISTORY_COLUMNS = ("step", "epoch", "loss", "lr", "grad_norm")


class UnreadableHistory(Exception):
    """A CSV file that is shorter than the saved state says."""


class CsvLog:
    """A CSV file that grows by rows and goes on from a byte position."""

    def __init__(self, path: Path, columns: tuple[str, ...], position: int) -> None:
        """Open at `position` bytes, dropping what follows; 0 starts a new file."""
        if position:
            if not path.exists() or path.stat().st_size < position:
                raise UnreadableHistory(f"{path.name} is shorter than when the state was saved")
            self._file = path.open("r+b")
            self._file.truncate(position)
            self._file.seek(position)
        else:
            # A finished run's file may be shared by hard links, so it is replaced.
            path.unlink(missing_ok=True)
            self._file = path.open("wb")
            self._file.write((",".join(columns) + "\n").encode())
            # Who follows the run knows the file by its header, before there is a row.
            self._file.flush()
        self._columns = columns

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row; floats keep the nine digits that tell float32 numbers apart."""
        cells = (row[column] for column in self._columns)
        text = ",".join(f"{cell:.9g}" if isinstance(cell, float) else str(cell) for cell in cells)
        self._file.write(f"{text}\n".encode())

    def flush(self) -> int:
        """Hand the rows to the operating system; the file's length in bytes."""
        self._file.flush()
        return self._file.tell()

    def close(self) -> None:
        """Flush and close."""
        self._file.close()


class History:
    """The records of a run in `directory`, continued from the byte positions of a saved state."""

    def __init__(
        self,
        directory: Path,
        eval_columns: tuple[str, ...],
        *,
        step: int = 0,
        history_bytes: int = 0,
        eval_bytes: int = 0,
    ) -> None:
        eval_columns = ("step", "epoch", *eval_columns)
        with ExitStack() as files:
            self._steps = files.enter_context(
                closing(CsvLog(directory / HISTORY_FILE, HISTORY_COLUMNS, history_bytes))
            )
            self._evaluations = files.enter_context(
                closing(CsvLog(directory / EVAL_FILE, eval_columns, eval_bytes))
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

    def flush(self) -> tuple[int, int]:
        """Hand everything to the operating system; lengths of history.csv and eval.csv."""
        self._board.flush()
        return self._steps.flush(), self._evaluations.flush()

    def close(self) -> None:
        """Flush and close all files, also those that come after one that fails."""
        self._files.close()
