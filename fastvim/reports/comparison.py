"""Any runs side by side, from whatever experiments they are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastvim.errors import UserError
from fastvim.experiments.record import RecordedPlan
from fastvim.experiments.schema import RunConfig
from fastvim.experiments.store import FINAL, BrokenRun, RunRecord, Store, read_run
from fastvim.reports.gather import assemble, variant_entry


def compare(paths: Sequence[Path], command: str, metric: str = "top1") -> dict[str, Any]:
    """results.json of the runs at `paths`, each a run directory or an output folder.

    Runs of the same settings are seeds of one variant; the first variant is the baseline. Names
    that stand for different settings are told apart by their folder. Raises UserError for a path
    that is neither, and when no run is finished.
    """
    records: list[RunRecord] = []
    problems: list[str] = []
    for path in paths:
        if (path / "runs").is_dir():
            found, broken = Store(path).all_runs()
            records += found
            problems += broken
        elif (path / "config.json").exists():
            try:
                records.append(read_run(path))
            except BrokenRun as error:
                problems.append(str(error))
        else:
            raise UserError(f"{path}: neither a run directory nor an output folder")
    unfinished = [record for record in records if record.state not in FINAL]
    problems += [f"{record.directory}: not finished ({record.state})" for record in unfinished]
    variants = _variants([record for record in records if record.state in FINAL])
    if not variants:
        raise UserError("; ".join(["no finished run to compare", *problems]))
    baseline = next(iter(variants))
    plan = RecordedPlan(
        name="comparison",
        profile="as run",
        question="",
        claim=None,
        metric=metric,
        command=command,
        baselines={name: baseline for name in variants if name != baseline},
        variants={name: seeds[min(seeds)].run.config for name, seeds in variants.items()},
        train_images={},
        runs=tuple(record.run for record in records),
    )
    entries = [
        variant_entry(name, plan.baselines.get(name), seeds, []) for name, seeds in variants.items()
    ]
    return assemble(plan, entries, list(plan.baselines.items()), problems)


def _variants(records: Sequence[RunRecord]) -> dict[str, dict[int, RunRecord]]:
    """Name -> seed -> record; a record is taken once however many paths lead to it."""
    configs: dict[str, RunConfig] = {}
    grouped: dict[str, dict[int, RunRecord]] = {}
    for record in records:
        run = record.run
        name = run.variant
        same = [known for known, config in configs.items() if config == run.config]
        if same:
            name = same[0]
        elif name in configs:
            name = f"{name} of {record.directory.resolve().parent.parent.name}"
            number = 2
            while name in configs:
                name = f"{name.partition(' #')[0]} #{number}"
                number += 1
        configs.setdefault(name, run.config)
        grouped.setdefault(name, {}).setdefault(run.seed, record)
    return grouped
