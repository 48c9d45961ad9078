"""`experiment.json`: what an output folder was asked to hold, so that it explains itself."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from fastvim.errors import UserError
from fastvim.experiments.plan import Plan, loaded
from fastvim.experiments.schema import RunConfig
from fastvim.experiments.stability import RUNS_FOLDER
from fastvim.experiments.store import FORMAT, Run, check_format, read_json
from fastvim.files import write_atomic

FILE = "experiment.json"


@dataclass(frozen=True)
class RecordedPlan:
    """A plan as its output folder tells it; `baselines`: variant -> what it is compared with."""

    name: str
    profile: str
    question: str
    claim: str | None
    metric: str
    command: str
    baselines: dict[str, str]
    variants: dict[str, RunConfig]
    # Images of the training split, by variant.
    train_images: dict[str, int]
    runs: tuple[Run, ...]


def write_plan(output: Path, plan: Plan, runs: list[Run], command: str) -> RecordedPlan:
    """Write experiment.json, and give what it says; UserError when the folder cannot be written."""
    experiment = plan.experiment
    content = {
        "format": FORMAT,
        "experiment": experiment.name,
        "profile": plan.profile,
        "question": experiment.question,
        "claim": experiment.claim,
        "metric": experiment.metric,
        "command": command,
        "variants": [
            {
                "name": v.name,
                "baseline": v.baseline,
                "train_images": loaded(v.config.data).split_sizes["train"],
                "config": v.config.nested(),
            }
            for v in plan.variants
        ],
        "runs": [_described(run) for run in runs],
    }
    text = json.dumps(content, indent=2) + "\n"
    write_atomic(Path(output) / FILE, text)
    return _recorded(json.loads(text))


def replaced_by(output: Path, plan: RecordedPlan) -> str | None:
    """The command of another process that has written another plan than `plan` to `output` since;
    None where there is none."""
    try:
        now = read_plan(output)
    except UserError:
        return None
    return None if replace(now, command=plan.command) == plan else now.command


def _described(run: Run) -> dict:
    content = {"variant": run.variant, "seed": run.seed, "hash": run.identity}
    if run.pretraining is not None:
        before = run.pretraining
        content["pretraining"] = {"variant": before.variant, "hash": before.identity}
    return content


def _run(described: dict, config: RunConfig) -> Run:
    before = described.get("pretraining")
    seed = described["seed"]
    if before is not None:
        before = Run(before["variant"], seed, config.pretrained.run, before["hash"])
    return Run(described["variant"], seed, config, described["hash"], before)


def folder_of_runs(output: Path) -> Path:
    """`output`, or where a stability study keeps its runs, a folder below its tables."""
    study = output / RUNS_FOLDER
    return study if not (output / FILE).exists() and (study / FILE).exists() else output


def read_plan(output: Path) -> RecordedPlan:
    """Read experiment.json; UserError when there is none, or it cannot be believed."""
    path = Path(output) / FILE
    content = read_json(path)
    if content is None:
        raise UserError(
            f"{output}: no experiment here (no {FILE}); give the output folder of `fastvim ablate`"
        )
    check_format(path, content)
    try:
        return _recorded(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not an experiment's record: {reason}") from None


def _recorded(content: dict) -> RecordedPlan:
    variants = {item["name"]: RunConfig.from_nested(item["config"]) for item in content["variants"]}
    runs = [_run(item, variants[item["variant"]]) for item in content["runs"]]
    return RecordedPlan(
        name=content["experiment"],
        profile=content["profile"],
        question=content["question"],
        claim=content["claim"],
        metric=content["metric"],
        command=content["command"],
        baselines={
            item["name"]: item["baseline"] for item in content["variants"] if item["baseline"]
        },
        variants=variants,
        train_images={item["name"]: item["train_images"] for item in content["variants"]},
        runs=tuple(runs),
    )
