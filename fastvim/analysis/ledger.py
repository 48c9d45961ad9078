"""The claims ledger: what the results at hand say of every claim."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from fastvim.analysis.claims import Claim
from fastvim.analysis.contrasts import judge_pairs
from fastvim.analysis.costs import cost_ratio, exact_ratio
from fastvim.analysis.counts import compare_counts
from fastvim.analysis.multiple import verdict_level
from fastvim.analysis.paired import Values, paired_comparison
from fastvim.analysis.verdict import Verdict, judge_counts, judge_difference, judge_ratio
from fastvim.errors import UserError

JUDGED, NOT_RUN, NO_EXPERIMENT = "judged", "not run", "no experiment"


def ledger(claims: Mapping[str, Claim], results: Iterable[Mapping]) -> list[dict]:
    """One row for each claim and each results.json that tests it; one for a claim that none does.

    A row has the claim (`claim`, `statement`, `source`, `published`, `unit`, `metric`,
    `claim_scale`), the evidence (`experiment`, `profile`, `scale`, `seeds`, `estimate`,
    `interval`, `interval_method`), what it says (`state`: judged, not run, or no experiment;
    `verdict`, `reason`, `seeds_needed`, `seeds_needed_note`), `command`, which makes the
    evidence again (the one that made it, where the result says which), and `paper_command`, which
    would test the claim at its own scale. What there is not is None.

    Of a result are read `experiment`, `claim` (which an experiment of the user's own says it
    tests), `profile`, `command`, `scale` (see `scale_from_config`; without it the scale counts as
    another), the variants' `seeds`, `metrics`, `cost` and `scale`, where they say one, and the
    pairs of its `contrasts`, which Holm's correction counts. Everything is computed anew from the
    values by seed. Raises UserError for a result that lacks them.
    """
    results = list(results)
    rows: list[dict] = []
    for claim in claims.values():
        found = [
            _row(claim, result, claims)
            for result in results
            if _experiment(result) in claim.experiments or result.get("claim") == claim.id
        ]
        judged = [row for row in found if row["state"] == JUDGED]
        # A result that lacks what one claim needs matters only where no other has it.
        rows += judged or found[:1] or [_untested(claim)]
    return rows


def judge(claim: Claim, result: Mapping, claims: Mapping[str, Claim]) -> tuple[Verdict, int] | str:
    """The verdict of one result on one claim and the seeds (or repeats) behind it.

    Text instead where the result does not hold what the claim is about.
    """
    variants = _variants(result)
    for name in filter(None, (claim.variant, claim.baseline)):
        if name not in variants:
            return f"the variant {name} is not in this result"
    scale = _scale(claim, result)
    read = _repeats if claim.kind == "ratio" else _by_seed
    values = {name: read(variant, claim.metric) for name, variant in variants.items()}
    # What the correction counts: the claims of this kind that this one result is asked about.
    peers = [
        c
        for c in claims.values()
        if c.kind == claim.kind
        and c.metric == claim.metric
        # A user's own experiment may say that it tests the claim.
        and (c.id == claim.id or _experiment(result) in c.experiments)
        and all(values.get(name) for name in filter(None, (c.variant, c.baseline)))
    ]
    if claim.kind == "ratio":
        return _judge_ratio(claim, values, scale, len(peers))
    for name in filter(None, (claim.variant, claim.baseline)):
        if not values[name]:
            return f"{claim.metric} of {name} is not in this result"
    if claim.kind == "spikes":
        counts = compare_counts(
            values[claim.baseline],
            values[claim.variant],
            baseline_name=claim.baseline,
            variant_name=claim.variant,
        )
        return judge_counts(claim, counts, scale, len(peers)), counts.variant_runs
    if claim.kind == "value":
        return _judge_value(claim, values[claim.variant], scale, len(peers))
    pairs = [
        (c["variant"], c["baseline"])
        for c in result.get("contrasts", [])
        if c.get("metric") == claim.metric and {c["variant"], c["baseline"]} <= set(values)
    ]
    judged = judge_pairs(values, pairs, peers, scale)
    return next((v, len(comparison.seeds)) for c, v, comparison in judged if c.id == claim.id)


def _judge_value(claim: Claim, values: Values, scale: dict, family: int) -> tuple[Verdict, int]:
    """The mean over seeds as a difference from zero, with its one-sample t interval."""
    comparison = paired_comparison(
        dict.fromkeys(values, 0.0),
        values,
        claim.metric,
        baseline_name="zero",
        variant_name=claim.variant,
    )
    level = verdict_level(len(comparison.seeds), family)
    comparison = replace(comparison, family=family, verdict_level=level, method="t, one sample")
    return judge_difference(claim, comparison, scale), len(comparison.seeds)


def _judge_ratio(
    claim: Claim, values: Mapping[str, list[float]], scale: dict, family: int
) -> tuple[Verdict, int] | str:
    base, other = values[claim.baseline], values[claim.variant]
    if not base or not other:
        return f"{claim.metric} of {claim.variant} and {claim.baseline} is not in this result"
    if claim.exact:
        if len(set(base)) > 1 or len(set(other)) > 1:
            return f"{claim.metric} is counted, yet differs between runs of one variant"
        return judge_ratio(claim, exact_ratio(base[0], other[0]), scale), 1
    if len(base) != len(other):
        return f"{claim.metric} was not measured in interleaved repeats"
    return judge_ratio(claim, cost_ratio(base, other), scale, family), len(base)


def _row(claim: Claim, result: Mapping, claims: Mapping[str, Claim]) -> dict:
    judged = judge(claim, result, claims)
    row = _untested(claim) | {
        "experiment": _experiment(result),
        "profile": result.get("profile"),
        "scale": _scale(claim, result),
    }
    if isinstance(judged, str):
        row |= {"state": NOT_RUN, "reason": judged}
        if row["experiment"] in claim.experiments:
            row["command"] = claim.command(row["experiment"], row["profile"])
        return row
    verdict, seeds = judged
    return row | {
        "state": JUDGED,
        "seeds": seeds,
        "estimate": verdict.estimate,
        "interval": None if verdict.interval is None else list(verdict.interval),
        "interval_method": verdict.interval_method,
        "verdict": verdict.verdict,
        "reason": verdict.reason,
        "seeds_needed": verdict.seeds_needed,
        "seeds_needed_note": verdict.seeds_needed_note,
        "command": result.get("command")
        or claim.command(
            row["experiment"], row["profile"], None if claim.kind == "ratio" else seeds
        ),
    }


def _untested(claim: Claim) -> dict:
    run = claim.experiments[0] if claim.experiments else None
    return {
        "claim": claim.id,
        "statement": claim.statement,
        "source": claim.source,
        "published": claim.published,
        "unit": claim.unit,
        "metric": claim.metric,
        "claim_scale": dict(claim.scale),
        "experiment": run,
        "profile": None,
        "scale": None,
        "seeds": None,
        "estimate": None,
        "interval": None,
        "interval_method": None,
        "state": NOT_RUN if run else NO_EXPERIMENT,
        "verdict": None,
        "reason": "not run yet" if run else f"no experiment is shipped: needs {claim.needs}",
        "seeds_needed": None,
        "seeds_needed_note": "",
        "command": claim.command(run) if run else None,
        "paper_command": claim.paper_command,
    }


def _experiment(result: Mapping) -> str:
    if not isinstance(result, Mapping) or not isinstance(result.get("experiment"), str):
        raise UserError("a result without `experiment`, its name: is it a results.json?")
    return result["experiment"]


def _variants(result: Mapping) -> dict[str, Mapping]:
    try:
        return {variant["name"]: variant for variant in result["variants"]}
    except (KeyError, TypeError):
        raise UserError(
            f"the result of {_experiment(result)} has no `variants`, a list of mappings with `name`"
        ) from None


def _scale(claim: Claim, result: Mapping) -> dict:
    """What the variants that the claim is about share of their scales, where these are recorded;
    else what all variants share."""
    variants = _variants(result)
    names = [name for name in (claim.variant, claim.baseline) if name in variants]
    scales = [variants[name].get("scale") for name in names]
    if not scales or not all(scales):
        return dict(result.get("scale") or {})
    first, *others = scales
    return {k: v for k, v in first.items() if all(other.get(k) == v for other in others)}


def _by_seed(variant: Mapping, metric: str) -> Values:
    """Seed -> value of a metric; empty where it was not recorded."""
    values = (variant.get("metrics") or {}).get(metric)
    if values is None:
        return {}
    seeds = variant.get("seeds")
    if (
        not isinstance(values, list)
        or not isinstance(seeds, list)
        or len(values) != len(seeds)
        or len(set(seeds)) != len(seeds)
    ):
        raise UserError(
            f"variant {variant['name']}: metrics.{metric} and seeds must be lists of one length, "
            "each seed once"
        )
    return dict(zip(seeds, values, strict=True))


def _repeats(variant: Mapping, metric: str) -> list[float]:
    """A cost as a list of repeats; empty where it was not recorded."""
    value = (variant.get("cost") or {}).get(metric)
    if value is None:
        return []
    repeats = value if isinstance(value, list) else [value]
    if any(isinstance(r, bool) or not isinstance(r, (int, float)) for r in repeats):
        raise UserError(f"variant {variant['name']}: cost.{metric} is not a number or a list")
    return repeats
