"""What the factors of `fastvim stability` change: each value against the first, paired by run."""

import itertools
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from scipy import stats

from fastvim.analysis.multiple import holm
from fastvim.experiments.stability import FACTORS, Request
from fastvim.reports.stability_table import counted_loss

LEVEL = 0.05


def factor_answers(variants: Sequence[Mapping[str, Any]], request: Request) -> list[dict[str, Any]]:
    """An entry for each value of each factor but the first, in the order of the factors.

    `variants` are those of results.json. A pair are two runs that differ in this factor alone: of
    one backbone, learning rate and seed, and the same values of the other factors. Counted are
    the `pairs`, the unstable runs of either side, and the pairs of which one alone is unstable;
    `p_value` is the exact McNemar test's of these, Holm-corrected over the entries.
    """
    runs = {
        (variant["name"], run["lr_multiple"], run["seed"]): run
        for variant in variants
        for run in variant["runs"]
    }
    entries = []
    for place, factor in enumerate(request.factors):
        first, *others = FACTORS[factor]
        for value in others:
            names = _names(request, place, first, value)
            pairs = [
                (run, runs[names[group], multiple, seed])
                for (group, multiple, seed), run in runs.items()
                if group in names and (names[group], multiple, seed) in runs
            ]
            entries.append(_entry(factor, first, value, pairs))
    corrected = holm({i: entry["p_value"] for i, entry in enumerate(entries)})
    for i, entry in enumerate(entries):
        entry["p_value"] = corrected[i]
        entry["sentence"] = _sentence(entry)
    return entries


def _names(request: Request, place: int, first: str, value: str) -> dict[str, str]:
    """Groups whose factor at `place` is `first` -> the group where it is `value` instead."""
    names = {}
    labels = [[first] if i == place else list(FACTORS[f]) for i, f in enumerate(request.factors)]
    for backbone, *own in itertools.product(request.backbones, *labels):
        other = [*own[:place], value, *own[place + 1 :]]
        names["-".join([backbone, *own])] = "-".join([backbone, *other])
    return names


def _entry(factor: str, first: str, value: str, pairs: Sequence[tuple[Mapping, Mapping]]) -> dict:
    only_first = sum(a["unstable"] and not b["unstable"] for a, b in pairs)
    only_value = sum(b["unstable"] and not a["unstable"] for a, b in pairs)
    differing = only_first + only_value
    losses = [[counted_loss(run) for run in pair] for pair in pairs]
    return {
        "factor": factor,
        "first": first,
        "value": value,
        "pairs": len(pairs),
        "unstable_first": sum(a["unstable"] for a, _ in pairs),
        "unstable_value": sum(b["unstable"] for _, b in pairs),
        "only_first": only_first,
        "only_value": only_value,
        "p_value": float(stats.binomtest(only_value, differing).pvalue) if differing else 1.0,
        "loss_difference": mean(b - a for a, b in losses) if losses else None,
    }


def _sentence(entry: Mapping[str, Any]) -> str:
    head = f"Factor {entry['factor']}, {entry['value']} against {entry['first']}: "
    if not entry["pairs"]:
        return head + "no pair of runs to compare."
    more = "more" if entry["only_value"] > entry["only_first"] else "less"
    told = (
        f"it is {more} often unstable"
        if entry["p_value"] <= LEVEL
        else "stability cannot be told apart from chance"
    )
    return (
        f"{head}unstable in {entry['unstable_value']} of {entry['pairs']} runs against "
        f"{entry['unstable_first']} (alone in its pair {entry['only_value']} and "
        f"{entry['only_first']} times; exact McNemar p = {entry['p_value']:.2g}, Holm-corrected): "
        f"{told}. Final loss {entry['loss_difference']:+.3f} in the mean."
    )
