"""Any runs side by side, from whatever experiments and folders they are."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastvim.errors import UserError, nearest
from fastvim.experiments.record import FILE, RecordedPlan, read_plan
from fastvim.experiments.store import FINAL, BrokenRun, RunRecord, read_run
from fastvim.reports.gather import assemble, variant_entry
from fastvim.reports.study import Study, read_study, read_study_run
from fastvim.reports.tables import NAMES
from fastvim.training.recipe import WITHOUT_EFFECT

# Where these differ, two variants were not asked the same test questions.
TEST_SET = ("data.name", "data.test_images", "model.num_classes")
FILES = "data.files"
LONGEST_NAME = 60


def study_of(output: str | Path) -> Study:
    """The study of an output folder; from its run directories alone where experiment.json is gone.

    Raises UserError when there are no runs either.
    """
    output = Path(output)
    if (output / FILE).exists() or not (output / "runs").is_dir():
        return read_study(output)
    study = compare([output])
    study.results["problems"].insert(
        0, f"{output / FILE} is missing: question, claim and planned runs are not known"
    )
    return study


def compare(
    folders: Sequence[str | Path], metric: str | None = None, baseline: str | None = None
) -> Study:
    """The study of any runs: each of `folders` is a run directory or an output folder.

    Runs form a variant when they have its name, the same settings and the same images; of one
    name with others another variant is made, named by what differs. Each variant is compared with
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
    command = shlex.join(["fastvim", "compare", *map(str, folders)])
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
        variant_entry(name, plan.baselines.get(name), by_seed, [])
        for name, by_seed in runs_by_seed.items()
    ]
    results = assemble(plan, variants, problems)
    runs = [
        read_study_run(name, by_seed[seed], problems)
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
    differing = [name for name in TEST_SET if name in study.settings()[0]]
    # Folders of the same settings may hold other files.
    if not differing and len({_images(group[0]) for group in groups.values()}) > 1:
        differing = [FILES]
    problems += [
        f"{name} differs between the variants: they were tested on different images, so "
        "their differences do not say which is better"
        for name in differing
    ]
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
        planned = None
        if (folder / FILE).exists():
            plans.append(read_plan(folder))
            planned = {run.identity for run in plans[-1].runs}
        for directory in _run_directories(folder):
            try:
                record = read_run(directory)
            except BrokenRun as error:
                problems.append(str(error))
                continue
            if planned is not None and record.run.identity not in planned:
                continue  # Left from an earlier plan in the same folder.
            if record.state in FINAL:
                records.setdefault(record.run.identity, record)
            else:
                problems.append(f"{directory}: not finished ({record.state}), not counted")
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
    own = {name: value for name, value in flat.items() if name not in WITHOUT_EFFECT}
    return own | {FILES: _images(record)}


def _images(record: RunRecord) -> str | None:
    """The start of the data set's fingerprint, which is the same wherever the data set lies."""
    fingerprint = record.result.get("data_fingerprint")
    return fingerprint and fingerprint[:8]


def _label(variant: str, first: dict[str, Any], own: dict[str, Any]) -> str:
    changed = [
        f"{name.rpartition('.')[2]}={own.get(name)}"
        for name in dict.fromkeys([*first, *own])
        if first.get(name) != own.get(name)
    ]
    label = f"{variant} ({', '.join(changed)})"
    return label if len(label) <= LONGEST_NAME else f"{variant} ({len(changed)} settings differ)"


def _one_a_seed(group: Sequence[RunRecord], problems: list[str]) -> list[RunRecord]:
    """Of runs with the same settings, images and seed but other code, the latest."""
    latest: dict[int, RunRecord] = {}
    for record in sorted(group, key=lambda r: (r.directory / "result.json").stat().st_mtime_ns):
        older = latest.get(record.run.seed)
        if older is not None:
            problems.append(
                f"{older.directory}: left out: {record.directory} has the same settings and seed "
                "and is newer; the code changed between them"
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
