"""The curves of a run, and the mean and range of several over their seeds."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fastvim.stability import Episode, detect

POINTS = 120


@dataclass(frozen=True)
class RunCurves:
    """`steps` and `loss` of training, one value a step (NaN and infinity included), and the
    validation metrics by name, each (steps, values). `episodes` are the spikes of the loss."""

    steps: np.ndarray
    loss: np.ndarray
    validation: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    episodes: tuple[Episode, ...] = ()


@dataclass(frozen=True)
class Band:
    """Mean over seeds with the lowest and highest seed, all (points,); `seeds` at each point."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: np.ndarray


def read_curves(directory: Path, problems: list[str]) -> RunCurves:
    """The curves in a run directory; a file that cannot be read is named in `problems`."""
    history = _columns(directory / "history.csv", ("step", "loss"), problems)
    evaluations = _columns(directory / "eval.csv", ("step",), problems)
    steps, loss = history.get("step", np.empty(0)), history.get("loss", np.empty(0))
    validation = {
        name: (evaluations["step"], values)
        for name, values in evaluations.items()
        if name not in ("step", "epoch")
    }
    return RunCurves(steps, loss, validation, tuple(detect(steps.tolist(), loss.tolist())))


def _columns(path: Path, needed: Sequence[str], problems: list[str]) -> dict[str, np.ndarray]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
            columns = {
                name: np.array([float(row[name]) for row in rows]) for name in (rows or [{}])[0]
            }
        # A run may diverge before its first evaluation, but not before its first step.
        if not rows and "loss" in needed:
            raise ValueError("no steps")
        if rows and not set(needed) <= set(columns):
            raise ValueError(f"no column {', '.join(set(needed) - set(columns))}")
        if rows and not np.isfinite(columns["step"]).all():
            raise ValueError("a step is no number")
    except FileNotFoundError:
        problems.append(f"{path}: missing: its curve is left out")
        return {}
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        reason = " ".join(str(error).split())[:120]
        problems.append(f"{path}: corrupt ({reason}): its curve is left out")
        return {}
    return columns


def loss_band(runs: Sequence[RunCurves]) -> tuple[Band, int] | None:
    """The training loss over seeds, and the steps that each point is the mean of.

    A run's loss is averaged over windows of equal length, at most POINTS of them, so that the
    noise of single batches does not hide the trend. None without any finite loss.
    """
    known = [run for run in runs if np.isfinite(run.loss).any()]
    if not known:
        return None
    last = max(run.steps.max() for run in known)
    window = max(1, math.ceil(last / POINTS))
    count = math.ceil(last / window)
    values = np.full((len(known), count), np.nan)
    for row, run in zip(values, known, strict=True):
        finite = np.isfinite(run.loss)
        place = ((run.steps[finite] - 1) // window).astype(int).clip(0, count - 1)
        sums = np.bincount(place, run.loss[finite], count)
        numbers = np.bincount(place, minlength=count)
        row[numbers > 0] = sums[numbers > 0] / numbers[numbers > 0]
    ends = np.minimum((np.arange(count) + 1) * window, last)
    return _band(ends, values), window


def validation_band(runs: Sequence[RunCurves], name: str) -> Band | None:
    """A validation metric over seeds, at the steps where any seed has it."""
    curves = [run.validation[name] for run in runs if name in run.validation]
    if not curves:
        return None
    steps = np.unique(np.concatenate([steps for steps, _ in curves]))
    values = np.full((len(curves), len(steps)), np.nan)
    for row, (own, metric) in zip(values, curves, strict=True):
        finite = np.isfinite(metric)
        row[np.searchsorted(steps, own[finite])] = metric[finite]
    return _band(steps, values)


def _band(steps: np.ndarray, values: np.ndarray) -> Band:
    seeds = np.isfinite(values).sum(0)
    some = seeds > 0
    values, steps = values[:, some], steps[some]
    return Band(
        steps, np.nanmean(values, 0), np.nanmin(values, 0), np.nanmax(values, 0), seeds[some]
    )
