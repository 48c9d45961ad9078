"""What a comparison says, in sentences that claim no more than its interval does."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastvim.analysis.power import seeds_needed
from fastvim.reports.tables import NAMES, PERCENT, claim_reason, claim_words, signed, spoken_on

HIGHER, LOWER, UNCLEAR, UNKNOWN = "higher", "lower", "unclear", "unknown"
POWER = 0.8


def amount(value: float, metric: str) -> str:
    """A difference without its sign: `1.20 points`, `0.031`."""
    return f"{abs(value):.2f} points" if metric in PERCENT else f"{abs(value):.3f}"


def p_text(p_value: float | None) -> str:
    """`p = 0.012`, `p < 0.001`, `no p-value`."""
    if p_value is None:
        return "no p-value"
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def side(contrast: Mapping[str, Any]) -> str:
    """Whether the variant is shown to be higher or lower after Holm's correction, or not.

    Where the better one diverged in some seed nothing is shown: its survivors are no fair sample.
    """
    excluded = _excluded(contrast)
    return UNCLEAR if excluded in (HIGHER, LOWER) and _better_diverged(contrast) else excluded


def _excluded(contrast: Mapping[str, Any]) -> str:
    """On which side of no difference the Holm interval lies."""
    interval = contrast["holm_interval"]
    if interval is None:
        return UNKNOWN
    if interval[0] > 0:
        return HIGHER
    return LOWER if interval[1] < 0 else UNCLEAR


def _better_diverged(contrast: Mapping[str, Any]) -> str | None:
    """The name of the better one, if it diverged in some seed."""
    variant_is = (contrast["difference"] > 0) != (contrast["metric"] == "loss")
    better = "variant" if variant_is else "baseline"
    return contrast[better] if contrast["diverged"][better] else None


def contrast_sentence(contrast: Mapping[str, Any]) -> str:
    """A contrast of results.json as one or two sentences."""
    metric = contrast["metric"]
    what = NAMES[metric].removesuffix(" %")
    pair = f"{contrast['variant']} against {contrast['baseline']}"
    difference = contrast["difference"]
    if difference is None:
        return f"{pair}: no seed was finished by both, so nothing can be compared."
    digits = 2 if metric in PERCENT else 3
    direction = "higher" if difference > 0 else "lower"
    nothing = round(difference, digits) == 0
    seen = "the same" if nothing else f"{amount(difference, metric)} {direction}"
    seeds = len(contrast["seeds"])
    if contrast["interval"] is None:
        reason = contrast["notes"][0] if contrast["notes"] else "no interval can be given"
        return f"{pair}: {what} is {seen} here. {reason[0].upper()}{reason[1:]}."
    low, high = (signed(end, digits) for end in contrast["interval"])
    family = f", Holm-corrected over {contrast['family']}" if contrast["family"] > 1 else ""
    evidence = (
        f"{100 * contrast['confidence']:g} % interval [{low}, {high}], "
        f"{contrast['method']} over {seeds} seeds; {p_text(contrast['p_holm'])}{family}, "
        f"judged at {100 * (1 - contrast['verdict_level']):g} %"
    )
    if _excluded(contrast) in (HIGHER, LOWER):
        if survivor := _better_diverged(contrast):
            return (
                f"{pair}: {what} is {seen} over the seeds that both survived ({evidence}). But "
                f"{survivor} diverged in others: the survivors alone cannot show that it is better."
            )
        return f"{pair}: {what} is {seen} ({evidence}). Chance alone seldom does this."
    return (
        f"{pair}: {what} is {seen} in the mean ({evidence}). That cannot be told from chance"
        f"{'' if nothing else _more_seeds(contrast)}."
    )


def _more_seeds(contrast: Mapping[str, Any]) -> str:
    if not contrast["sd"] or not contrast["difference"]:
        return ""
    level = contrast["verdict_level"] / contrast["family"]
    needed = seeds_needed(contrast["sd"], contrast["difference"], POWER, level)
    return (
        f"; if the true difference is as large as the one seen, {needed.note} would show it "
        f"({100 * POWER:g} % power)"
    )


@dataclass(frozen=True)
class Answer:
    """A `word` (a claim's verdict, else higher, lower, unclear or unknown), the `sentence` that
    gives the reason, and the claim in words, empty where none is tested."""

    word: str
    sentence: str
    claim: str = ""


def answers(results: Mapping[str, Any]) -> list[Answer]:
    """The verdict on each claim that the evidence speaks on; without any, on each contrast."""
    said = [
        Answer(claim["verdict"], claim_reason(claim), claim_words(claim))
        for claim in spoken_on(results)
    ]
    return said or [Answer(side(c), contrast_sentence(c)) for c in results["contrasts"]]


def spike_sentence(results: Mapping[str, Any]) -> str:
    """How training behaved: loss spikes and divergences by variant."""
    parts = []
    for variant in results["variants"]:
        count, runs = variant["spikes"], len(variant["seeds"])
        if count:
            parts.append(
                f"{variant['name']}: {count} loss spike{'s' * (count != 1)} in {runs} runs"
            )
        if variant["diverged"]:
            parts.append(f"{variant['name']}: {variant['diverged']} of {runs} runs diverged")
    return "; ".join(parts) + "." if parts else "No run had a loss spike, and none diverged."
