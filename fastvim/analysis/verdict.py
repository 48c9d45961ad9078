"""What evidence says of a claim: consistent, contradicted, or unresolved. Never more.

Rules, in order:
1. Without an interval nothing is decided.
2. At another scale than the claim's, only the direction can be judged, and only of a claim whose
   direction is meant to hold elsewhere (`transfers`). The words say so.
3. Direction (`higher`, `lower`): the Holm-adjusted interval excludes "no difference" (0, or 1 for
   a ratio) on the claimed side -> agrees; on the other side -> contradicted; else open. Alpha of
   a difference is that of `multiple.verdict_level`, not of the interval that is quoted.
4. Magnitude, at the same scale only: the interval at 1 - alpha / m (m comparisons) misses
   value +- tolerance -> contradicted. For `about`, it lies inside value +- tolerance ->
   consistent.
5. A variant that diverged in some seed cannot win: its difference is over the seeds it survived.
"""

from dataclasses import asdict, dataclass, replace

from fastvim.analysis.claims import Claim, Scalar, describe_scale, scale_gaps
from fastvim.analysis.costs import RatioEstimate
from fastvim.analysis.counts import CountComparison
from fastvim.analysis.paired import Comparison
from fastvim.analysis.power import sd_upper_limit, seeds_needed

CONSISTENT, CONTRADICTED, UNRESOLVED = "consistent", "contradicted", "unresolved"
Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Verdict:
    """`verdict` with its `reason` in words. `speaks_on` is what was judged: direction,
    direction and magnitude, magnitude, or nothing. `seeds_needed` (of each variant, in all) is
    given where more seeds would settle it; `seeds_needed_note` says what it rests on."""

    claim: str
    verdict: str
    reason: str
    speaks_on: str
    same_scale: bool
    scale: dict[str, Scalar]
    estimate: float | None
    interval: Interval
    interval_method: str
    seeds_needed: int | None = None
    seeds_needed_note: str = ""

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        values = asdict(self)
        values["interval"] = None if self.interval is None else list(self.interval)
        return values


@dataclass(frozen=True)
class _Evidence:
    """What the rules need. `side`: 1 where the variant is shown to be higher, -1 lower, 0 where
    neither, None where nothing can be said, for the reason in `missing`. `strict` is the interval
    at 1 - alpha / m."""

    estimate: float | None
    interval: Interval
    side: int | None
    strict: Interval
    method: str
    missing: str
    words: str
    variant_diverged: bool = False
    baseline_diverged: bool = False


def judge_difference(claim: Claim, comparison: Comparison, scale: dict) -> Verdict:
    """Verdict on a claim of kind `difference` or `value`.

    `comparison` is of the claim's variant minus its baseline, corrected over its family
    (`compare_variants`); for kind `value`, of the variant against zero in every seed.
    """
    n, m, alpha = len(comparison.seeds), comparison.family, comparison.verdict_level
    family = f", Holm-adjusted over {m} comparisons" if m > 1 else ""
    evidence = _Evidence(
        estimate=comparison.difference,
        interval=comparison.interval,
        side=_side(comparison.holm_interval, 0.0),
        strict=comparison.interval_at(1 - alpha / m),
        method=comparison.method,
        missing=comparison.notes[0] if comparison.notes else "no interval",
        words=f"{n} seeds{family}, judged at {100 * (1 - alpha):g} %",
        variant_diverged=bool(comparison.diverged["variant"]),
        baseline_diverged=bool(comparison.diverged["baseline"]),
    )
    verdict = _decide(claim, evidence, scale)
    if verdict.verdict == UNRESOLVED and (verdict.same_scale or claim.transfers):
        needed, note = _seeds(claim, comparison, alpha / m)
        return replace(verdict, seeds_needed=needed, seeds_needed_note=note)
    return verdict


def judge_ratio(claim: Claim, estimate: RatioEstimate, scale: dict, family: int = 1) -> Verdict:
    """Verdict on a claim of kind `ratio`, one of `family` judged on the same measurements."""
    alpha = 0.05 if estimate.exact else 1 - estimate.confidence
    strict = estimate.interval_at(1 - alpha / family)
    over = f", corrected over {family} comparisons" if family > 1 else ""
    evidence = _Evidence(
        estimate=estimate.ratio,
        interval=estimate.interval,
        side=_side(strict, 1.0),
        strict=strict,
        method=estimate.method,
        missing=estimate.note or f"too few repeats for an interval over {family} comparisons",
        words="counted" if estimate.exact else f"{estimate.repeats} interleaved repeats{over}",
    )
    return _decide(claim, evidence, scale)


def judge_counts(
    claim: Claim, counts: CountComparison, scale: dict, family: int = 1, alpha: float = 0.05
) -> Verdict:
    """Verdict on a claim of kind `spikes`, one of `family`: by p-value, Bonferroni-corrected."""
    words = (
        f"{counts.variant_total} in {counts.variant_runs} runs of {counts.variant}, "
        f"{counts.baseline_total} in {counts.baseline_runs} of {counts.baseline}"
    )
    estimate, side = None, None
    if counts.variant_runs and counts.baseline_runs:
        estimate = (
            counts.variant_total / counts.variant_runs
            - counts.baseline_total / counts.baseline_runs
        )
    if counts.p_value is not None:
        words += f", p = {counts.p_value:.2g}"
        side = (1 if estimate > 0 else -1) if counts.p_value < alpha / family else 0
    evidence = _Evidence(
        estimate=estimate,
        interval=None,
        side=side,
        strict=None,
        method="spikes a run; exact conditional binomial test and quasi-Poisson F-test",
        missing=f"spikes: {words}; {counts.notes[0] if counts.notes else 'no p-value'}",
        words=words,
    )
    return _decide(claim, evidence, scale)


def _side(interval: Interval, no_effect: float) -> int | None:
    if interval is None:
        return None
    return int(interval[0] > no_effect) - int(interval[1] < no_effect)


def _decide(claim: Claim, evidence: _Evidence, scale: dict) -> Verdict:
    same = not scale_gaps(claim.scale, scale)
    if not same and not claim.transfers:
        speaks_on, verdict = "nothing", UNRESOLVED
        reason = (
            f"the claim is about {describe_scale(claim.scale)} only; evidence from "
            f"{describe_scale(scale)} cannot speak on it"
        )
    elif evidence.side is None:
        speaks_on, verdict, reason = "nothing", UNRESOLVED, evidence.missing
    elif claim.direction == "about":
        speaks_on = "magnitude"
        verdict, reason = _about(claim, evidence)
    elif same and claim.value is not None:
        speaks_on = "direction and magnitude"
        verdict, reason = _direction_and_magnitude(claim, evidence)
    else:
        speaks_on = "direction"
        verdict, reason = _direction(claim, evidence)
    reason = reason[0].upper() + reason[1:] + "."
    if speaks_on == "direction" and not same:
        reason += (
            f" At {describe_scale(scale)} this speaks on the direction only; it says nothing of "
            f"the published {claim.published} at {describe_scale(claim.scale)}."
        )
    return Verdict(
        claim=claim.id,
        verdict=verdict,
        reason=reason,
        speaks_on=speaks_on,
        same_scale=same,
        scale=dict(scale),
        estimate=evidence.estimate,
        interval=evidence.interval,
        interval_method=evidence.method,
    )


def _direction(claim: Claim, evidence: _Evidence) -> tuple[str, str]:
    if evidence.side == 0:
        return (
            UNRESOLVED,
            f"no difference in {claim.metric} between {claim.variant} and {claim.baseline} can be "
            f"told from chance ({evidence.words})",
        )
    ahead, ahead_diverged = (
        (claim.variant, evidence.variant_diverged)
        if evidence.side > 0
        else (claim.baseline, evidence.baseline_diverged)
    )
    if ahead_diverged:
        return (
            UNRESOLVED,
            f"over the seeds that it survived {ahead} is ahead, but it diverged in others: the "
            "survivors alone cannot show that it is better",
        )
    side = "higher" if evidence.side > 0 else "lower"
    agrees = side == claim.direction
    return (
        CONSISTENT if agrees else CONTRADICTED,
        f"in {claim.metric}, {claim.variant} is {side} than {claim.baseline}, "
        f"{'as claimed' if agrees else 'against the claim'} ({evidence.words})",
    )


def _direction_and_magnitude(claim: Claim, evidence: _Evidence) -> tuple[str, str]:
    verdict, reason = _direction(claim, evidence)
    if evidence.variant_diverged or evidence.baseline_diverged:
        return verdict, f"{reason}; the magnitude is not judged, for some seeds diverged"
    low, high = evidence.strict
    bottom, top = claim.value - claim.tolerance, claim.value + claim.tolerance
    if high < bottom or low > top:
        return (
            CONTRADICTED,
            f"{reason}; the interval [{low:.3g}, {high:.3g}] misses the published "
            f"{claim.published} ({claim.value:g} +- {claim.tolerance:g})",
        )
    return verdict, f"{reason}; the interval [{low:.3g}, {high:.3g}] reaches the published value"


def _about(claim: Claim, evidence: _Evidence) -> tuple[str, str]:
    low, high = evidence.strict
    bottom, top = claim.value - claim.tolerance, claim.value + claim.tolerance
    shown = f"[{low:.4g}, {high:.4g}] ({evidence.words})"
    band = f"{claim.value:g} +- {claim.tolerance:g}"
    if evidence.variant_diverged or evidence.baseline_diverged:
        return UNRESOLVED, "some seeds diverged; those that survived are not a fair sample"
    if high < bottom or low > top:
        return CONTRADICTED, f"the interval {shown} misses {band}"
    if bottom <= low and high <= top:
        return CONSISTENT, f"the interval {shown} lies in {band}"
    return (
        UNRESOLVED,
        f"the interval {shown} is too wide for {band}",
    )


def _seeds(claim: Claim, comparison: Comparison, alpha: float) -> tuple[int | None, str]:
    """Seeds for 80 % power for the claimed effect at level alpha, and what that rests on."""
    if comparison.sd is None:
        return None, "two seeds or more are needed to see the spread between seeds"
    power = 0.8
    if claim.direction == "about":
        # Both ends of the interval must stay inside: each may fail half as often.
        effect, basis, power = claim.tolerance, "an interval within the tolerance", 0.9
    elif claim.value is not None:
        effect = abs(claim.value)
        basis = f"a difference as large as the published {effect:g} {claim.unit}"
    else:
        effect = abs(comparison.difference)
        basis = f"a true difference equal to the {effect:.2g} {claim.unit} seen here"
    needed = seeds_needed(comparison.sd, effect, power, alpha)
    if needed.seeds is None and needed.achieved_power is None:
        return None, needed.note
    n = len(comparison.seeds)
    upper = seeds_needed(sd_upper_limit(comparison.sd, n), effect, power, alpha)
    return needed.seeds, (
        f"{needed.note} for 80 % power for {basis}, from a spread seen in {n} seeds; "
        f"{upper.note} to be safe against a spread underestimated"
    )
