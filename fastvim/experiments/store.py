"""Run directories: found by identity, locked while in use, believed only when whole.

A run lives in `<output>/runs/<variant>-seed<k>-<identity's first 8 digits>/`. Its `config.json`
says what it is and its `result.json`, written last, what came out.
"""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastvim.errors import UserError
from fastvim.experiments.forced import other_backend
from fastvim.experiments.locks import held, is_held
from fastvim.experiments.schema import RunConfig
from fastvim.files import delete_unfinished, write_atomic
from fastvim.tasks import TASKS

FORMAT = 1
# `fastvim.training.state.WEIGHTS_FILE`, which needs torch.
CHECKPOINT = "checkpoint.safetensors"
FINAL = ("done", "diverged")


@dataclass(frozen=True)
class Run:
    """One run of a plan, or of a directory that was read."""

    variant: str
    seed: int
    config: RunConfig
    identity: str
    # The run whose encoder this one starts from.
    pretraining: "Run | None" = None
    # Whether others start from its weights: without its checkpoint it is not done.
    starts_others: bool = field(default=False, compare=False)

    @property
    def name(self) -> str:
        """`<variant>-seed<k>`, as people call it."""
        return f"{self.variant}-seed{self.seed}"

    @property
    def directory_name(self) -> str:
        """Its folder's name under `runs/`."""
        return f"{self.name}-{self.identity[:8]}"


@dataclass(frozen=True)
class RunRecord:
    """A run directory as read. `state`: done, diverged, failed, started (has begun, no result).

    `adopted_from`: the sibling output folder that it has just been taken over from.
    """

    directory: Path
    run: Run
    state: str
    result: dict[str, Any] = field(default_factory=dict)
    adopted_from: Path | None = None


class BrokenRun(UserError):
    """A run directory that is corrupt or that a newer version wrote; it is never counted."""


def read_run(directory: Path) -> RunRecord:
    """Read a run directory; BrokenRun, with the reason, when it cannot be believed."""
    config = read_json(directory / "config.json")
    if config is None:
        raise BrokenRun(f"{directory}: not a run: it has no config.json")
    check_format(directory / "config.json", config)
    try:
        values = {key: config[key] for key in ("task", "data", "model", "training")}
        values |= {key: config[key] for key in ("masking", "pretrained") if key in config}
        run = Run(
            str(config["variant"]),
            int(config["seed"]),
            RunConfig.from_nested(values),
            str(config["hash"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BrokenRun(f"{directory / 'config.json'}: not a run's settings: {reason}") from None
    result = read_json(directory / "result.json")
    if result is None:
        return RunRecord(directory, run, "started")
    check_format(directory / "result.json", result)
    state = result.get("status")
    if state not in (*FINAL, "failed"):
        raise BrokenRun(f"{directory / 'result.json'}: unknown status {state!r}")
    if state == "done":
        _check_numbers(directory / "result.json", result, TASKS[run.config.task])
    return RunRecord(directory, run, state, result)


def read_json(path: Path) -> dict | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BrokenRun(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise BrokenRun(f"{path}: corrupt: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(content, dict):
        raise BrokenRun(f"{path}: corrupt: not a JSON object")
    return content


def check_format(path: Path, content: dict) -> None:
    version = content.get("format", FORMAT)
    if not isinstance(version, int) or version > FORMAT:
        raise BrokenRun(f"{path}: written by a newer fastvim (format {version}, this is {FORMAT})")


def _check_numbers(path: Path, result: dict, measured: Iterable[str]) -> None:
    for part in ("metrics", "cost"):
        values = result.get(part)
        if not isinstance(values, dict):
            raise BrokenRun(f"{path}: corrupt: no {part}")
    for name, value in result["metrics"].items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise BrokenRun(f"{path}: corrupt: {name} = {value!r} is not a number")
    for name in measured:
        if name not in result["metrics"]:
            raise BrokenRun(f"{path}: corrupt: no {name}")


class Store:
    """The runs under an output folder."""

    def __init__(self, output: Path):
        self.output = Path(output)
        self.runs = self.output / "runs"

    def lookup(self, run: Run) -> tuple[RunRecord | None, list[str]]:
        """The directory that holds this run, and what is wrong with those that only look so.

        Raises BrokenRun where the folder of the runs may not be read.
        """
        self._check_readable()
        problems: list[str] = []
        for directory in self._candidates(run, self.runs):
            if not _has_files(directory):
                continue
            try:
                record = read_run(directory)
            except BrokenRun as error:
                problems.append(str(error))
                continue
            if record.run.identity == run.identity:
                lost = record.state == "done" and not _has_weights(run, directory)
                return (replace(record, state="started") if lost else record), problems
        return None, problems

    def _candidates(self, run: Run, folder: Path) -> list[Path]:
        digits = run.identity[:8]
        found = [*folder.glob(f"*-{digits}"), *folder.glob(f"*-{digits}-[0-9]*")]
        return sorted(path for path in found if path.is_dir())

    def state(self, run: Run) -> str:
        """done, diverged, failed, running (someone holds it), interrupted, or new."""
        record, _ = self.lookup(run)
        if record is not None and record.state in FINAL:
            return record.state
        if self.is_locked(run):
            return "running"
        if record is None:
            return "new"
        return "interrupted" if record.state == "started" else record.state

    def open(self, run: Run) -> Path:
        """The directory to train `run` in, with its config.json; call with the lock held."""
        record, _ = self.lookup(run)
        if record is not None:
            delete_unfinished(record.directory)
            return record.directory
        directory = self.runs / run.directory_name
        for number in range(2, 1000):
            if not _has_files(directory):
                break
            # A broken directory is left as it is, for its owner to look at.
            directory = self.runs / f"{run.directory_name}-{number}"
        delete_unfinished(directory)
        content = {
            "format": FORMAT,
            "variant": run.variant,
            "seed": run.seed,
            "hash": run.identity,
            **run.config.nested(),
        }
        write_atomic(directory / "config.json", json.dumps(content, indent=2) + "\n")
        return directory

    def adopt(self, run: Run) -> RunRecord | None:
        """Take over a finished run of a sibling output folder, by hard links where they work.

        Finished files are replaced, never changed, so links are safe to share.
        """
        record = self.elsewhere(run)
        return None if record is None else self._copy(run, record)

    def elsewhere(self, run: Run) -> RunRecord | None:
        """The same run, finished, in a sibling output folder; None where this one has begun it.

        Of another backend than FASTVIM_KERNELS forces it is not the same.
        """
        if self.lookup(run)[0] is not None:
            return None
        for folder in self.siblings():
            for directory in self._candidates(run, folder):
                try:
                    record = read_run(directory)
                except BrokenRun:
                    continue
                usable = record.state == "diverged" or _has_weights(run, directory)
                same = record.run.identity == run.identity and record.state in FINAL
                if same and usable and other_backend(record.result) is None:
                    return record
        return None

    def _copy(self, run: Run, record: RunRecord) -> RunRecord | None:
        target = self.runs / run.directory_name
        if target.exists():
            return None
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(dir=self.runs, prefix=".adopt-"))
            try:
                shutil.copytree(record.directory, scratch / "run", copy_function=_link_or_copy)
                (scratch / "run").rename(target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        except (OSError, shutil.Error) as error:
            raise UserError(f"cannot write {target}: {error}") from error
        return replace(read_run(target), adopted_from=record.directory.parent.parent)

    def siblings(self) -> list[Path]:
        """The `runs` folders of the output folders beside this one that may be read."""
        output = self.output.resolve()
        folders = sorted(output.parent.glob("*/runs"))
        return [folder for folder in folders if folder.parent != output and _is_readable(folder)]

    def lock(self, run: Run) -> AbstractContextManager[bool]:
        """Try to hold `run`; yields whether it worked. The kernel lets go when the owner dies."""
        return held(self._lock_path(run))

    def is_locked(self, run: Run) -> bool:
        """Whether a living process holds `run`. Creates nothing."""
        return is_held(self._lock_path(run))

    def _lock_path(self, run: Run) -> Path:
        return self.runs / ".locks" / f"{run.identity[:32]}.lock"

    def all_runs(self) -> tuple[list[RunRecord], list[str]]:
        """Every run directory, and what is wrong with those that cannot be read.

        Raises BrokenRun where the folder that they are in may not be read.
        """
        self._check_readable()
        records, problems = [], []
        for directory in sorted(self.runs.glob("*")):
            if not directory.is_dir() or directory.name.startswith(".") or _is_board(directory):
                continue
            try:
                records.append(read_run(directory))
            except BrokenRun as error:
                problems.append(str(error))
        return records, problems

    def _check_readable(self) -> None:
        """Else it would look as if it were empty."""
        if os.path.exists(self.runs) and not _is_readable(self.runs):
            raise BrokenRun(f"{self.runs}: cannot be read: Permission denied")


def _has_weights(run: Run, directory: Path) -> bool:
    """Whether those that start from `run` find its weights in `directory`."""
    return not run.starts_others or (directory / CHECKPOINT).exists()


def _is_readable(folder: Path) -> bool:
    return os.access(folder, os.R_OK | os.X_OK, effective_ids=True)


def _has_files(directory: Path) -> bool:
    try:
        return directory.is_dir() and any(not f.name.startswith(".") for f in directory.iterdir())
    except PermissionError:  # Someone has put it there; reading it tells what is wrong.
        return True


def _is_board(directory: Path) -> bool:
    """Whether it holds what TensorBoard shows and nothing else, such as a review's findings."""
    try:
        names = [file.name for file in directory.iterdir()]
    except PermissionError:
        return False
    return bool(names) and all("tfevents" in name for name in names)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
