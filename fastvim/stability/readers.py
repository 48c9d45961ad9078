"""Find logs in files and folders, and read their curves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fastvim.errors import UserError, nearest
from fastvim.files import files_below
from fastvim.stability.curves import LoggedCurve, choose_tags, is_loss
from fastvim.stability.events import EventReader
from fastvim.stability.tables import (
    UTF16,
    CsvLines,
    DocumentReader,
    HistoryReader,
    JsonLines,
    TextReader,
)

EVENTS = "tfevents"
# How event files end that a review wrote, or a report: they are findings, not logs.
REVIEWED, REPORTED = "fastvim-review", ".fastvim"
# What a report or a profile writes, and how it begins: a row is a variant or a model, no step.
REPORT_TABLES = {"table.csv": b"variant,seeds,", "profile.csv": b"model,pixels,"}
# The table that a run of ours has beside its event files, and how it begins.
HISTORY, HISTORY_HEADER = "history.csv", b"step,epoch,loss,lr,grad_norm\n"
CSV_ENDINGS = {".csv", ".tsv", ".txt"}
LINES_ENDINGS = {".jsonl", ".ndjson"}
# MAE's code and what came of it write JSON lines by this name; other text of it is none.
LINES_TEXT = "log.txt"
# In a folder only these JSON documents are logs by their name; others are configurations.
DOCUMENTS = {"trainer_state.json", "metrics.json", "history.json", "log_history.json"}

Reader = EventReader | TextReader | DocumentReader


@dataclass
class Log:
    """A run's log: the files that make it up, in the order they were written, with readers.

    `searched` says that it was found in a folder, not named, so it may hold no loss; `unread` of
    such a log why files of it could not be read at all.
    """

    path: Path
    readers: list[Reader]
    searched: bool = False
    unread: list[str] = field(default_factory=list)

    def poll(self, patient: bool = False) -> None:
        """Read what was added to every file; a `patient` one waits for a JSON file half written.

        Raises UserError where a file cannot be read, but for a log that was found by searching.
        """
        self.unread = []
        for reader in self.readers:
            try:
                reader.poll()
            except OSError as error:
                self.unread.append(f"cannot read {reader.path}: {error.strerror}")
            except ValueError as error:
                if not patient:
                    self.unread.append(f"{reader.path} is not JSON: {error}")
        if self.unread and not self.searched:
            raise UserError("; ".join(self.unread))

    def finish(self) -> None:
        """The log is over: take last lines without an end."""
        for reader in self.readers:
            if isinstance(reader, TextReader):
                reader.finish()

    @property
    def tags(self) -> list[str]:
        """Every tag with values, in the order met."""
        return list(dict.fromkeys(tag for reader in self.readers for tag in reader.curves))

    @property
    def lost(self) -> list[str]:
        """What could not be read of it so far, one line each."""
        return self.unread + [loss for reader in self.readers for loss in reader.lost]

    @property
    def without_values(self) -> str:
        """That it holds no value, and what of it could not be read; empty where it holds some."""
        reasons = f" ({'; '.join(self.lost)})" if self.lost else ""
        return "" if self.tags else f"{self.path}: no values in it{reasons}"

    def length(self, tag: str) -> int:
        """How many values a tag has so far."""
        return sum(len(values) for _, values in self._parts(tag))

    def curve(self, tag: str) -> LoggedCurve:
        """The values of a tag over all files so far."""
        parts = self._parts(tag)
        steps = np.array([step for part in parts for step in part[0]], dtype=np.float64)
        values = np.array([value for part in parts for value in part[1]], dtype=np.float64)
        return LoggedCurve(str(self.path), tag, steps, values, self.lost)

    def _parts(self, tag: str) -> list[tuple[list[float], list[float]]]:
        """(steps, values) of a tag in each file that is to be read for it."""
        having = [reader for reader in self.readers if tag in reader.curves]
        # Of what a history has, the event files beside it have some of the steps, and no NaN.
        histories = [reader for reader in having if isinstance(reader, HistoryReader)]
        return [reader.curves[tag] for reader in histories or having]


def find_logs(paths: Iterable[Path]) -> list[Log]:
    """The logs at `paths`: files as they are, folders searched. Raises UserError where none is."""
    logs: list[Log] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = _search(path)
            if not found:
                raise UserError(
                    f"{path}: no log in this folder (looked for TensorBoard event files, .csv, "
                    f".tsv, .jsonl, .ndjson, {LINES_TEXT} of JSON lines, "
                    f"{', '.join(sorted(DOCUMENTS))})"
                )
            logs += found
        elif path.is_file():
            logs.append(Log(path, [_reader(path)]))
        elif path.exists():
            raise UserError(f"{path}: a pipe is not read; write what comes out of it to a file")
        else:
            raise UserError(f"{path}: no such file or folder{_beside(path)}")
    return logs


def log_files(paths: Iterable[Path]) -> list[Path]:
    """Every file that would be read at `paths`; none of a folder without a log, as yet."""
    files = []
    for path in map(Path, paths):
        logs = _search(path) if path.is_dir() else []
        files += [reader.path for log in logs for reader in log.readers] or [path]
    return files


def read_logs(paths: Iterable[Path]) -> list[Log]:
    """The logs at `paths`, read to their ends. Raises UserError on a path or a log that is none."""
    logs = find_logs(paths)
    for log in logs:
        log.poll()
        log.finish()
    return logs


def curves_of(logs: list[Log], tags: tuple[str, ...] = ()) -> list[LoggedCurve]:
    """The curves to review of logs that were read: those of `tags`, or every loss found.

    tags: names or shell patterns. Raises UserError on an empty log, and where no tag fits; a log
    found by searching a folder may lack the tag, or any value, if another has it.
    """
    curves, empty, available = [], [], []
    for log in logs:
        chosen = tags_of(log, tags)
        curves += [log.curve(tag) for tag in chosen]
        if not chosen:
            empty.append(log)
            available += log.tags
    if not curves and not available:
        raise UserError("; ".join(log.without_values for log in empty))
    if not curves:
        choose_tags(sorted(set(available)), tags, ", ".join(str(log.path) for log in empty))
    return curves


def read_curves(paths: Iterable[Path], tags: tuple[str, ...] = ()) -> list[LoggedCurve]:
    """`curves_of` the logs at `paths`."""
    return curves_of(read_logs(paths), tags)


def tags_of(log: Log, tags: tuple[str, ...]) -> list[str]:
    """The tags to review of a log that was polled; none only for a log found by searching."""
    if not log.tags and not log.searched:
        raise UserError(log.without_values)
    if log.searched and not tags and not any(map(is_loss, log.tags)):
        return []
    try:
        return choose_tags(log.tags, tags, str(log.path))
    except UserError:
        if log.searched:
            return []
        raise


def _search(folder: Path) -> list[Log]:
    """One log for each folder with event files, else one for each table in it."""
    files: dict[Path, list[Path]] = {}
    for path in sorted(files_below(folder)):
        if path.is_file() and _is_log(path):
            files.setdefault(path.parent, []).append(path)
    logs = []
    for parent, members in files.items():
        events = [path for path in members if EVENTS in path.name]
        if events:
            # A run that was resumed writes another file; the name holds the time of its start.
            events.sort(key=_written)
            histories = [HistoryReader(path) for path in members if _is_history(path)]
            logs.append(Log(parent, [*histories, *map(EventReader, events)], True))
        else:
            logs += [Log(path, [_reader(path)], True) for path in members]
    return _without_checkpoints(logs)


def _without_checkpoints(logs: list[Log]) -> list[Log]:
    """Of the trainer_state.json in checkpoint-N folders only the last, which holds the others."""
    last: dict[Path, tuple[int, Log]] = {}
    kept = []
    for log in logs:
        number = re.fullmatch(r"checkpoint-(\d+)", log.path.parent.name)
        if log.path.name != "trainer_state.json" or not number:
            kept.append(log)
            continue
        run, step = log.path.parent.parent, int(number[1])
        if run not in last or step > last[run][0]:
            last[run] = (step, log)
    finished = {log.path.parent for log in kept if log.path.name == "trainer_state.json"}
    return kept + [log for run, (_, log) in last.items() if run not in finished]


def _is_log(path: Path) -> bool:
    if EVENTS in path.name and path.name.endswith((REVIEWED, REPORTED)):
        return False
    if path.name in REPORT_TABLES and _begins(path, REPORT_TABLES[path.name]):
        return False
    ending = path.suffix.lower()
    if path.name == LINES_TEXT:
        start = _start_of(path)
        return start is None or _is_object(start)
    known = ending in CSV_ENDINGS - {".txt"} or ending in LINES_ENDINGS or path.name in DOCUMENTS
    return EVENTS in path.name or known


def _is_history(path: Path) -> bool:
    return path.name == HISTORY and _begins(path, HISTORY_HEADER)


def _begins(path: Path, start: bytes) -> bool:
    return (_start_of(path) or b"").startswith(start)


def _written(path: Path) -> tuple[int, str]:
    stamp = re.search(r"tfevents\.(\d+)", path.name)
    return (int(stamp[1]) if stamp else 0, path.name)


def _reader(path: Path) -> Reader:
    """The reader for a file, by its name, or by its content where the name says nothing."""
    # Where it cannot be read any reader will do: `Log.poll` says so.
    start = _start_of(path) or b""
    ending = path.suffix.lower()
    if EVENTS in path.name:
        return EventReader(path)
    if ending in LINES_ENDINGS:
        return TextReader(path, JsonLines)
    if ending in CSV_ENDINGS:
        return TextReader(path, JsonLines if _is_object(start) else CsvLines)
    if b"\0" in start:
        return EventReader(path)
    if start.lstrip()[:1] in (b"{", b"["):
        return TextReader(path, JsonLines) if _has_rows(start) else DocumentReader(path)
    return TextReader(path, CsvLines)


def _start_of(path: Path) -> bytes | None:
    """The first bytes of a file, of UTF-16 as UTF-8; None where it cannot be read."""
    try:
        with open(path, "rb") as file:
            start = file.read(4096)
    except OSError:
        return None
    return start.decode("utf-16", "replace").encode() if start.startswith(UTF16) else start


def _is_object(start: bytes) -> bool:
    return start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")


def _has_rows(start: bytes) -> bool:
    """Whether the first line is a JSON object by itself: then the file is JSON lines."""
    try:
        return isinstance(json.loads(start.split(b"\n")[0]), dict) and b"\n" in start.strip()
    except (ValueError, RecursionError):
        return False


def _beside(path: Path) -> str:
    """A hint at the nearest name in the folder of a missing path."""
    if not path.parent.is_dir():
        return ""
    return nearest(path.name, [other.name for other in path.parent.iterdir()])
