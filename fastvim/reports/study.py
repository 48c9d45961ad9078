"""What a report is made of: results, the runs behind them, and how their settings differ.

`read_study` reads an output folder, `fastvim.reports.comparison` any runs at all. Runs that are
missing, unfinished or cannot be believed are named in `results` and count nowhere.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvim.experiments.record import RecordedPlan, read_plan
from fastvim.experiments.store import Run, RunRecord, Store, read_run
from fastvim.reports.curves import RunCurves, read_curves
from fastvim.reports.gather import ENVIRONMENT, gather, read_environment


@dataclass(frozen=True)
class StudyRun:
    """A run that counts: done, or diverged. `variant` is its name in the study."""

    variant: str
    record: RunRecord
    curves: RunCurves
    environment: dict[str, Any]

    @property
    def seed(self) -> int:
        """The run's seed."""
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
        """Names in the order of the table."""
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


def read_study(output: str | Path, plan: RecordedPlan | None = None) -> Study:
    """The study of the experiment in `output`, an output folder of `fastvim ablate`: of `plan`,
    or else of the plan that it records, which another process may have replaced.

    Raises UserError when it holds no experiment.
    """
    output = Path(output)
    plan, store = plan or read_plan(output), Store(output)
    results = gather(output, plan)
    runs = [
        read_study_run(variant["name"], read_run(store.runs / directory), results["problems"])
        for variant in results["variants"]
        for directory in variant["runs"]
    ]
    counted = {(run.variant, run.seed) for run in runs}
    states = [
        (run.variant, run.seed, _state(store, run))
        for run in plan.runs
        if (run.variant, run.seed) not in counted
    ]
    return Study(results, plan, tuple(runs), tuple(states), (output,), (plan.command,))


def _state(store: Store, run: Run) -> str:
    """As `Store.state`, but damaged where there is only a directory that cannot be believed."""
    state, (record, broken) = store.state(run), store.lookup(run)
    return "damaged" if state == "new" and record is None and broken else state


def read_study_run(variant: str, record: RunRecord, problems: list[str]) -> StudyRun:
    """The run with its curves and environment; files that cannot be read go to `problems`."""
    curves = read_curves(record.directory, problems)
    environment = read_environment(record.directory)
    if environment is None:
        path = record.directory / ENVIRONMENT
        problems.append(f"{path}: cannot be read: this run's environment is not known")
        environment = {}
    return StudyRun(variant, record, curves, environment)
