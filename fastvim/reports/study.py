"""What a report is made of: results, the runs behind them, and how their settings differ.

A study is read from an output folder, or from any runs at all. Runs that are missing, unfinished
or cannot be believed are named in `results` and count nowhere.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastvim.errors import UserError, nearest
from fastvim.experiments.identity import WITHOUT_EFFECT
from fastvim.experiments.record import FILE, RecordedPlan, read_plan
from fastvim.experiments.store import FINAL, BrokenRun, RunRecord, Store, read_run
from fastvim.reports.curves import RunCurves, read_curves
from fastvim.reports.gather import assemble, gather, variant_results
from fastvim.reports.tables import NAMES

# Where these differ, two variants were not asked the same test questions.
TEST_SET = ("data.name", "data.test_images", "model.num_classes")


@dataclass(frozen=True)
class StudyRun:
    """A run that counts: done, or diverged. `variant` is its name in the study."""

    variant: str
    record: RunRecord
    curves: RunCurves
    environment: dict[str, Any]

    @property
    def seed(self) -> int:
        return self.record.run.seed


@dataclass(frozen=True)
class Study:
    """`results` is results.json; `runs` in the order of its variants and their seeds.

    `states` has every planned run that does not count: (variant, seed, state). `folders` are
    where the runs were found; `commands` make them again.
    """

    results: dict[str, Any]
    plan: RecordedPlan
    runs: tuple[StudyRun, ...]
    states: tuple[tuple[str, int, str], ...]
    folders: tuple[Path, ...]
    commands: tuple[str, ...]

    @property
    def variants(self) -> list[str]:
        return [variant["name"] for variant in self.results["variants"]]

    def runs_of(self, variant: str) -> list[StudyRun]:
        """The variant's runs, by seed."""
        return [run for run in self.runs if run.variant == variant]

    def settings(self) -> tuple[dict[str, list], dict[str, Any]]:
        """Settings that differ, name -> a value a variant in their order; and those they share."""
        flat = [config.flat() for config in self.plan.variants.values()]
        names = list(dict.fromkeys(name for values in flat for name in values))
        differing, shared = {}, {}
        for name in names:
            values = [each.get(name, "") for each in flat]
            if any(value != values[0] for value in values):
                differing[name] = values
            else:
                shared[name] = values[0]
        return differing, shared


def read_study(output: str | Path) -> Study:
    """The study of the experiment in `output`.

    Without experiment.json it is read from the run directories alone, as `compare_runs` does.
    Raises UserError when there is neither.
    """
    output = Path(output)
    if not (output / FILE).exists():
        study = compare_runs([output])
        study.results["problems"].insert(
            0, f"{output / FILE} is missing: the question, the claim and the plan are not known"
        )
        return study
    plan, store = read_plan(output), Store(output)
    results = gather(output)
    names = {variant["name"]: variant["runs"] for variant in results["variants"]}
    runs = [
        _read_study_run(name, read_run(store.runs / directory), results["problems"])
        for name, directories in names.items()
        for directory in directories
    ]
    counted = {(run.variant, run.seed) for run in runs}
    states = [
        (run.variant, run.seed, store.state(run))
        for run in plan.runs
        if (run.variant, run.seed) not in counted
    ]
    return Study(results, plan, tuple(runs), tuple(states), (output,), (plan.command,))


def compare_runs(
    folders: Sequence[str | Path], metric: str | None = None, baseline: str | None = None
) -> Study:
    """The study of any runs: each of `folders` is a run directory or an output folder.

    Runs form a variant when they have its name and the same settings; of one name with other
    settings another variant is made, named by what differs. Each variant is compared with
    `baseline`, by default the one that the experiments name, else the first. Raises UserError
    when no run can be used, and for an unknown metric or baseline.
    """
    records, states, problems, plans = _collect([Path(folder) for folder in folders])
    if not records:
        reasons = "".join(f"\n  {problem}" for problem in problems)
        raise UserError(f"no finished run in {', '.join(map(str, folders))}{reasons}")
    groups = _groups(records, problems)
    metric = metric or (plans[0].metric if plans else "top1")
    if metric not in NAMES:
        raise UserError(f"no metric {metric!r}{nearest(metric, NAMES)}; there are top1, top5, loss")
    base = _baseline(groups, baseline, plans)
    command = " ".join(["fastvim compare", *map(str, folders)])
    runs_by_seed = {
        name: {record.run.seed: record for record in group} for name, group in groups.items()
    }
    plan = RecordedPlan(
        name="comparison",
        profile=", ".join(dict.fromkeys(plan.profile for plan in plans)) or "unknown",
        question="",
        claim=None,
        metric=metric,
        command=command,
        baselines={name: base for name in groups if name != base},
        variants={name: group[0].run.config for name, group in groups.items()},
        train_images={},
        runs=tuple(record.run for group in groups.values() for record in group),
    )
    variants = [
        variant_results(name, plan.baselines.get(name), by_seed, [])
        for name, by_seed in runs_by_seed.items()
    ]
    results = assemble(plan, variants, list(plan.baselines.items()), problems)
    runs = [
        _read_study_run(name, by_seed[seed], problems)
        for name, by_seed in runs_by_seed.items()
        for seed in sorted(by_seed)
    ]
    study = Study(
        results,
        plan,
        tuple(runs),
        tuple(states),
        tuple(dict.fromkeys(record.directory.parent for record in records)),
        tuple(dict.fromkeys([*(plan.command for plan in plans), command])),
    )
    differing, _ = study.settings()
    for name in TEST_SET:
        if name in differing:
            problems.append(
                f"{name} differs between the variants: they were tested on different images, so "
                "their differences do not say which is better"
            )
    return study


def _collect(
    folders: Sequence[Path],
) -> tuple[list[RunRecord], list[tuple[str, int, str]], list[str], list[RecordedPlan]]:
    """Finished runs, the state of the others, what cannot be read, and recorded plans."""
    records: dict[str, RunRecord] = {}
    states: list[tuple[str, int, str]] = []
    problems: list[str] = []
    plans = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give runs or output folders")
        if (folder / FILE).exists():
            plans.append(read_plan(folder))
        for directory in _run_directories(folder):
            try:
                record = read_run(directory)
            except BrokenRun as error:
                problems.append(str(error))
                continue
            if record.state in FINAL:
                records.setdefault(record.run.identity, record)
            else:
                states.append((record.run.variant, record.run.seed, record.state))
    return list(records.values()), states, problems, plans


def _run_directories(folder: Path) -> list[Path]:
    if (folder / "config.json").exists():
        return [folder]
    inside = folder / "runs" if (folder / "runs").is_dir() else folder
    found = [path for path in inside.iterdir() if path.is_dir() and path.name[0] != "."]
    return sorted(found)


def _groups(records: Sequence[RunRecord], problems: list[str]) -> dict[str, list[RunRecord]]:
    """Name of a variant in the study -> its runs, one a seed."""
    by_settings: dict[str, dict[str, list[RunRecord]]] = {}
    for record in records:
        key = json.dumps(_effective(record), sort_keys=True)
        by_settings.setdefault(record.run.variant, {}).setdefault(key, []).append(record)
    groups: dict[str, list[RunRecord]] = {}
    for variant, settings in by_settings.items():
        first = _effective(next(iter(settings.values()))[0])
        for number, group in enumerate(settings.values(), 1):
            name = variant if number == 1 else _label(variant, first, _effective(group[0]))
            while name in groups:
                name = f"{variant} #{number}" if name != f"{variant} #{number}" else f"{name}'"
            groups[name] = _one_a_seed(group, problems)
    return groups


def _effective(record: RunRecord) -> dict[str, Any]:
    flat = record.run.config.flat()
    return {name: value for name, value in flat.items() if name not in WITHOUT_EFFECT}


def _label(variant: str, first: dict[str, Any], own: dict[str, Any]) -> str:
    changed = [
        f"{name.rpartition('.')[2]}={own.get(name)}"
        for name in dict.fromkeys([*first, *own])
        if first.get(name) != own.get(name)
    ]
    label = f"{variant} ({', '.join(changed)})"
    return label if len(label) <= 60 else f"{variant} ({len(changed)} settings differ)"


def _one_a_seed(group: Sequence[RunRecord], problems: list[str]) -> list[RunRecord]:
    """Of runs with the same settings and seed but other code or data, the latest."""
    latest: dict[int, RunRecord] = {}
    for record in sorted(group, key=lambda r: (r.directory / "result.json").stat().st_mtime_ns):
        older = latest.get(record.run.seed)
        if older is not None:
            problems.append(
                f"{older.directory}: left out: {record.directory} has the same settings and seed "
                "and is newer; code or data changed between them"
            )
        latest[record.run.seed] = record
    return [latest[seed] for seed in sorted(latest)]


def _baseline(
    groups: dict[str, list[RunRecord]], asked: str | None, plans: Sequence[RecordedPlan]
) -> str:
    if asked is not None:
        if asked not in groups:
            raise UserError(
                f"no variant {asked!r}{nearest(asked, groups)}; there are {', '.join(groups)}"
            )
        return asked
    recorded = [name for plan in plans for name in plan.baselines.values() if name in groups]
    return max(recorded, key=recorded.count) if recorded else next(iter(groups))


def _read_study_run(variant: str, record: RunRecord, problems: list[str]) -> StudyRun:
    curves = read_curves(record.directory, problems)
    path = record.directory / "environment.json"
    environment: dict[str, Any] = {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            environment = content
    except (OSError, ValueError, RecursionError):
        problems.append(f"{path}: cannot be read: this run's environment is not known")
    return StudyRun(variant, record, curves, environment)


def predictions(run: StudyRun) -> tuple[np.ndarray, np.ndarray] | None:
    """(labels, predicted classes) of the test set, int arrays (examples,); None without them."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(run.record.directory / "predictions.safetensors")
        return arrays["label"], arrays["predicted"]
    except (OSError, KeyError, SafetensorError):
        return None
