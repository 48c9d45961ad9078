"""table.md of `fastvim stability`: a row a variant, and what must be known beside it."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from fastvim.reports.tables import markdown_row, number
from fastvim.stability.alternatives import SCORE_DEVIATIONS, SCORE_LEAST, SCORE_WINDOW
from fastvim.stability.settings import Settings

# The final loss is the mean over the last tenth of the steps, at least this many.
LAST_STEPS = 5
# A loss so many times that at initialisation is worse than knowing nothing.
THROWN_BACK = 2.0
UNSTABLE = (
    "A run is unstable where its loss was no number, ended no lower than it began, or ended in a "
    f"divergence, where it rose above {THROWN_BACK:g} times the loss at initialisation, or where "
    "the detector finds an episode of any class in it."
)


def counted_loss(run: Mapping[str, Any]) -> float:
    """A run's final loss; that at initialisation where it ended above it, or as no number.

    Wortsman et al. 2023 (arXiv 2309.14322), section 2.2.
    """
    initial, final = run["initial_loss"], run["final_loss"]
    return initial if final is None else min(final, initial)


def markdown(results: Mapping[str, Any]) -> str:
    """table.md."""
    ladder = results["ladder"]
    heads = ["variant", *(f"final loss, lr x{m:g}" for m in ladder), "episodes", "spike score %"]
    heads += [
        "highest loss",
        "largest gradient norm",
        "diverged",
        "unstable",
        "highest stable lr",
        "lr sensitivity",
    ]
    heads += ["train img/s", *(["norm's cost"] if results["norm_costs"] else [])]
    lines = [f"# Stability of {results['profile']}", "", markdown_row(heads)]
    lines.append(markdown_row(["---"] + ["---:"] * (len(heads) - 1)))
    lines += [markdown_row(_row(variant, results)) for variant in results["variants"]]
    lines += ["", *(f"- {answer['sentence']}" for answer in results["factors"])]
    lines += [f"- {note}" for note in notes(results)]
    said = [
        f"- {variant['name']} at lr {run['lr']:g}, seed {run['seed']}, step {step}: {summary}."
        for variant in results["variants"]
        for run in variant["runs"]
        for step, summary in run["attributions"].items()
    ]
    if said:
        lines += ["", "What left its own past first, as the recorder saw it:", "", *said]
    done = [
        f"- {variant['name']} at lr {run['lr']:g}, seed {run['seed']}, {response['sentence']}."
        for variant in results["variants"]
        for run in variant["runs"]
        for response in run["responses"]
    ]
    if done:
        lines += ["", "What training did about it, as `training.response` asks:", "", *done]
    lines += ["", "Made by", "", f"    {results['command']}", ""]
    return "\n".join(lines)


def _row(variant: Mapping[str, Any], results: Mapping[str, Any]) -> list[str]:
    runs = variant["runs"]
    at = {m: [r["final_loss"] for r in runs if r["lr_multiple"] == m] for m in results["ladder"]}
    norm = number(variant["largest_grad_norm"], ".3g")
    cost = results["norm_costs"].get(variant["name"])
    score = variant["spike_score"]
    return [
        variant["name"],
        *(_losses(values) for values in at.values()),
        str(variant["spikes"]),
        number(None if score is None else 100 * score, ".2f"),
        number(variant["highest_loss"], ".3g"),
        norm if variant["grad_norm_finite"] else f"{norm}, then no number",
        f"{variant['diverged']} of {len(runs)} runs{_diverged(runs)}",
        f"{variant['unstable']} of {len(runs)}",
        number(variant["highest_stable_lr"], "g") if variant["highest_stable_lr"] else "none",
        number(variant["lr_sensitivity"], ".3f"),
        number(variant["cost"]["train_images_per_second"], ".4g"),
        *(["-" if cost is None else f"{cost:+.1f} %"] if results["norm_costs"] else []),
    ]


def _diverged(runs: Sequence[Mapping[str, Any]]) -> str:
    """` (lr 0.016: seeds 0, 1)`; nothing where none did."""
    seeds: dict[float, list[str]] = {}
    for run in runs:
        if run["diverged"]:
            seeds.setdefault(run["lr"], []).append(str(run["seed"]))
    parts = [f"lr {lr:g}: seed{'s' * (len(n) > 1)} {', '.join(n)}" for lr, n in seeds.items()]
    return f" ({'; '.join(parts)})" if parts else ""


def _losses(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "NaN" if values else "-"
    lost = len(values) - len(known)
    return f"{mean(known):.3f}" + f" ({lost} NaN)" * bool(lost)


def notes(results: Mapping[str, Any]) -> list[str]:
    """What must be known beside the table."""
    verdict = results["verdict"]
    steps = results["scale"].get("steps")
    lines = []
    if verdict is not None:
        lines.append(f"Claim {verdict['claim']}: {verdict['verdict']}. {verdict['reason']}")
    lines += [
        f"Runs of {steps} steps. The final loss is the mean training loss of the last tenth of "
        f"the steps (at least {LAST_STEPS}), averaged over the seeds that kept a number.",
        "Episodes are of every class, NaN and infinity too, over all runs of a variant; runs at "
        f"several learning rates share their seeds. The first {Settings().young} steps are too few "
        "to tell an episode by; the highest loss of all runs shows what happened there.",
        f"Spike score: the share of steps at least {SCORE_DEVIATIONS:g} standard deviations from "
        f"the mean of the last {SCORE_WINDOW:,} (OLMo 2, arXiv 2501.00656). {_scored(results)}",
        f"{UNSTABLE} It diverged in the first three cases. The highest stable rate is the last on "
        "the ladder up to which no run was unstable.",
        "Learning-rate sensitivity: mean over the ladder and seeds of min(final loss, loss at "
        "initialisation) minus the best final loss of all variants (Wortsman et al. 2023, arXiv "
        "2309.14322, who take the best over the ladder).",
        "Throughput is that of the fastest run, as a busy machine only slows.",
        "Checkpoints of these runs are not kept.",
    ]
    if results["norm_costs"]:
        lines.append(
            "The norm's cost is the throughput lost by it; the runs were not interleaved, and "
            "`fastvim profile` measures it better."
        )
    if results["emulated_float16"]:
        lines.append(
            "float16 was emulated on the CPU: linear layers, convolutions and products round "
            "inputs, weights and outputs to float16; sums are float32."
        )
    lines += [f"No result: {missing}" for missing in results["missing"]]
    return lines + [f"Skipped: {problem}" for problem in results["problems"]]


def _scored(results: Mapping[str, Any]) -> str:
    """Which runs have a spike score, and why the others have none."""
    lengths = {run["steps"] for variant in results["variants"] for run in variant["runs"]}
    if lengths and max(lengths) <= SCORE_LEAST:
        return (
            f"No run here has one (-): a step is judged by {SCORE_LEAST} before it or more, and "
            f"the longest run has {max(lengths)}."
        )
    return f"Runs of {SCORE_LEAST} steps or less have none."
