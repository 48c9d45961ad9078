"""The contrasts of one experiment: every pair compared, corrected together, judged."""

from collections.abc import Iterable, Mapping

from fastvim.analysis.claims import Claim, Scalar
from fastvim.analysis.paired import Comparison, Values, compare_pairs
from fastvim.analysis.verdict import Verdict, judge_difference
from fastvim.errors import UserError, nearest

NO_CLAIM = "no claim"
Pair = tuple[str, str]


def contrasts(
    values: Mapping[str, Values],
    pairs: list[Pair],
    metric: str,
    claims: Iterable[Claim] = (),
    scale: Mapping[str, Scalar] | None = None,
    confidence: float = 0.95,
) -> list[dict]:
    """The `contrasts` of results.json: one entry for each (variant, baseline) of `pairs`.

    `values` is variant -> seed -> metric (None where a seed diverged). An entry holds
    `Comparison.to_dict()`, `verdict` (a word, `no claim` where no claim is about the pair) and
    `claim_verdict`, the whole of it as `Verdict.to_dict()` or None. A claim about a pair the
    other way round is judged the way it was claimed. Claims of other metrics or other variants
    are passed over. Raises UserError for a pair that names an unknown variant.
    """
    for name in (name for pair in pairs for name in pair):
        if name not in values:
            raise UserError(
                f"no variant {name!r}{nearest(name, values)}; there are {', '.join(values)}"
            )
    own = [c for c in claims if c.kind == "difference" and c.metric == metric]
    compared = _compared(values, pairs, own, metric, confidence)
    judged = _judged(compared, own, scale or {})
    entries = []
    for pair, comparison in zip(pairs, compared, strict=False):
        verdict = next((v for c, v, _ in judged if {c.variant, c.baseline} == set(pair)), None)
        entries.append(
            {
                **comparison.to_dict(),
                "verdict": verdict.verdict if verdict else NO_CLAIM,
                "claim_verdict": verdict.to_dict() if verdict else None,
            }
        )
    return entries


def judge_pairs(
    values: Mapping[str, Values],
    pairs: list[Pair],
    claims: list[Claim],
    scale: Mapping[str, Scalar],
    confidence: float = 0.95,
) -> list[tuple[Claim, Verdict, Comparison]]:
    """Each claim of kind `difference`, all about one metric, whose variants are in `values`.

    The family that Holm corrects over is `pairs` and the claims' own pairs, each counted once
    whichever way round.
    """
    if not claims:
        return []
    return _judged(_compared(values, pairs, claims, claims[0].metric, confidence), claims, scale)


def _compared(values, pairs, claims, metric, confidence) -> list[Comparison]:
    """`pairs` compared, then those of claims that are not among them in either order."""
    family = list(pairs)
    for claim in claims:
        pair = (claim.variant, claim.baseline)
        if set(pair) <= set(values) and not any(set(pair) == set(other) for other in family):
            family.append(pair)
    return compare_pairs(values, family, metric, confidence)


def _judged(
    compared: list[Comparison], claims: list[Claim], scale: Mapping[str, Scalar]
) -> list[tuple[Claim, Verdict, Comparison]]:
    found = []
    for claim in claims:
        for comparison in compared:
            if {comparison.variant, comparison.baseline} == {claim.variant, claim.baseline}:
                same_way = comparison.variant == claim.variant
                asked = comparison if same_way else comparison.turned()
                found.append((claim, judge_difference(claim, asked, dict(scale)), asked))
                break
    return found
