"""The difference between two variants, paired by seed.

Runs of one seed share data order, augmentation draws and common initial values, so what they
share cancels in the difference of a pair, and the differences are the sample: n = pairs of seeds.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
from scipy import special

from fastvim.analysis.intervals import SMALLEST_BOOTSTRAP, bootstrap_t_interval, t_interval
from fastvim.analysis.multiple import holm, holm_levels, verdict_level
from fastvim.errors import UserError, nearest

Values = Mapping[int, float | None]
"""One metric of one variant: seed -> value; None or a non-finite value where the run diverged."""

METHOD = "paired t"
BOOTSTRAP_METHOD = "bootstrap-t, 9999 resamples"


@dataclass(frozen=True)
class Comparison:
    """variant - baseline on one metric, in the metric's units. What cannot be said is None, and
    `notes` gives the reason. `interval` is the one to quote; `method` names it. Verdicts are held
    to `verdict_level`, that of the whole family, stricter than 1 - confidence; the Holm interval
    excludes zero where Holm's procedure rejects at that level."""

    metric: str
    variant: str
    baseline: str
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    variant_mean: float | None
    baseline_mean: float | None
    difference: float | None
    sd: float | None
    confidence: float
    interval: tuple[float, float] | None
    method: str
    bootstrap_interval: tuple[float, float] | None
    bootstrap_method: str
    effect_size: float | None
    p_value: float | None
    unmatched: dict[str, tuple[int, ...]]
    diverged: dict[str, tuple[int, ...]]
    notes: tuple[str, ...]
    family: int = 1
    verdict_level: float = 0.05
    p_holm: float | None = None
    holm_confidence: float | None = None
    holm_interval: tuple[float, float] | None = None

    def interval_at(self, confidence: float) -> tuple[float, float] | None:
        """Paired t interval at another confidence; None where `interval` is None."""
        if self.interval is None:
            return None
        low, high = t_interval(np.array(self.differences), confidence)
        return float(low), float(high)

    def turned(self) -> "Comparison":
        """The same comparison the other way round: baseline - variant."""
        return replace(
            self,
            variant=self.baseline,
            baseline=self.variant,
            differences=tuple(-d for d in self.differences),
            variant_mean=self.baseline_mean,
            baseline_mean=self.variant_mean,
            difference=_negative(self.difference),
            interval=_mirrored(self.interval),
            bootstrap_interval=_mirrored(self.bootstrap_interval),
            holm_interval=_mirrored(self.holm_interval),
            effect_size=_negative(self.effect_size),
            unmatched=_swapped(self.unmatched),
            diverged=_swapped(self.diverged),
        )

    def to_dict(self) -> dict:
        """Plain values for JSON: no NaN, no infinity; tuples become lists."""
        return _plain(asdict(self))


def paired_comparison(
    baseline: Values,
    variant: Values,
    metric: str,
    *,
    baseline_name: str = "baseline",
    variant_name: str = "variant",
    confidence: float = 0.95,
) -> Comparison:
    """Compare two variants over the seeds that both finished.

    sd has divisor n - 1; the interval and the p-value are those of the paired t-test; the effect
    size is Hedges' correction of d_z = mean / sd (see `hedges_correction`). A seed that only one
    variant has is named in `unmatched`, one that diverged (None or non-finite) in `diverged`;
    neither enters the difference. Raises UserError on values that are not numbers and on a
    confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise UserError(f"confidence is {confidence}; it must lie between 0 and 1")
    left = _numbers(baseline, baseline_name, metric)
    right = _numbers(variant, variant_name, metric)
    both = sorted(set(left) & set(right))
    seeds = tuple(s for s in both if left[s] is not None and right[s] is not None)
    base_values = np.array([left[s] for s in seeds], dtype=float)
    variant_values = np.array([right[s] for s in seeds], dtype=float)
    differences = variant_values - base_values
    n = len(seeds)

    notes: list[str] = []
    mean = sd = effect = p_value = interval = bootstrap = None
    if n == 0:
        notes.append("no seed was finished by both variants: nothing can be compared")
    else:
        mean = float(differences.mean())
    if n == 1:
        notes.append(
            "one seed: the difference may be chance alone; no spread, interval, p-value or "
            "effect size can be given, and no verdict"
        )
    if n >= 2:
        sd = float(differences.std(ddof=1))
        # Equal differences can differ in the last bits: 75.4 - 75.3 is not 80.2 - 80.1.
        if sd <= 1e-9 * max(np.abs(base_values).max(), np.abs(variant_values).max()):
            sd = 0.0
            notes.append(
                f"the {n} differences are identical: their spread cannot be estimated, so no "
                "interval, p-value or effect size is given"
            )
        else:
            low, high = t_interval(differences, confidence)
            interval = (float(low), float(high))
            p_value = float(2 * special.stdtr(n - 1, -abs(mean) / (sd / math.sqrt(n))))
            if n == 2:
                notes.append(
                    "two seeds: the interval is honest but wide, and no unbiased effect size exists"
                )
            else:
                effect = hedges_correction(n) * mean / sd
            bootstrap = _finite_bootstrap(differences, confidence, notes)

    unmatched = {
        "baseline": tuple(sorted(set(left) - set(right))),
        "variant": tuple(sorted(set(right) - set(left))),
    }
    diverged = {
        "baseline": tuple(s for s in sorted(left) if left[s] is None),
        "variant": tuple(s for s in sorted(right) if right[s] is None),
    }
    names = {"baseline": baseline_name, "variant": variant_name}
    for left_out, why in ((unmatched, "without partner"), (diverged, "diverged")):
        notes += [
            f"{names[side]} {why} in seed {', '.join(map(str, missing))}: the difference is not "
            "that of the two means"
            for side, missing in left_out.items()
            if missing and n
        ]

    found = Comparison(
        metric=metric,
        variant=variant_name,
        baseline=baseline_name,
        seeds=seeds,
        differences=tuple(float(d) for d in differences),
        variant_mean=float(variant_values.mean()) if n else None,
        baseline_mean=float(base_values.mean()) if n else None,
        difference=mean,
        sd=sd,
        confidence=confidence,
        interval=interval,
        method=METHOD,
        bootstrap_interval=bootstrap,
        bootstrap_method=BOOTSTRAP_METHOD,
        effect_size=effect,
        p_value=p_value,
        unmatched=unmatched,
        diverged=diverged,
        notes=tuple(notes),
    )
    return _corrected([found])[0]


def compare_variants(
    values: Mapping[str, Values], baseline: str, metric: str, confidence: float = 0.95
) -> dict[str, Comparison]:
    """Every other variant of `values` against `baseline`, Holm-corrected over them.

    Raises UserError when `baseline` is not in `values`.
    """
    if baseline not in values:
        raise UserError(
            f"baseline {baseline!r} is not among the variants{nearest(baseline, values)}; "
            f"there are {', '.join(values)}"
        )
    pairs = [(name, baseline) for name in values if name != baseline]
    return {c.variant: c for c in compare_pairs(values, pairs, metric, confidence)}


def compare_pairs(
    values: Mapping[str, Values],
    pairs: list[tuple[str, str]],
    metric: str,
    confidence: float = 0.95,
) -> list[Comparison]:
    """(variant, baseline) pairs of `values` compared and Holm-corrected as one family."""
    found = [
        paired_comparison(
            values[baseline],
            values[variant],
            metric,
            baseline_name=baseline,
            variant_name=variant,
            confidence=confidence,
        )
        for variant, baseline in pairs
    ]
    return _corrected(found)


def _corrected(found: list[Comparison]) -> list[Comparison]:
    """The comparisons of one family with their `family`, `verdict_level` and Holm's figures."""
    # One level for all, or Holm's procedure would not hold: that of the one judged strictest.
    judged_at = min(
        (verdict_level(len(c.seeds), len(found), 1 - c.confidence) for c in found), default=0.05
    )
    p_values = {i: c.p_value for i, c in enumerate(found)}
    adjusted, levels = holm(p_values), holm_levels(p_values, judged_at)
    return [
        replace(
            c,
            family=len(found),
            verdict_level=judged_at,
            p_holm=adjusted[i],
            holm_confidence=1 - levels[i] if c.interval else None,
            holm_interval=c.interval_at(1 - levels[i]),
        )
        for i, c in enumerate(found)
    ]


def hedges_correction(n: int) -> float:
    """J = Gamma(m / 2) / (sqrt(m / 2) Gamma((m - 1) / 2)), m = n - 1 (Hedges 1981, eq. 6e).

    J * mean / sd is unbiased for the standardised mean difference of n >= 3 normal pairs; at
    n = 2 no unbiased multiple exists.
    """
    m = n - 1
    return math.exp(special.gammaln(m / 2) - special.gammaln((m - 1) / 2)) / math.sqrt(m / 2)


def _finite_bootstrap(differences, confidence: float, notes: list[str]):
    """The bootstrap-t interval, or None with the reason added to `notes`."""
    if len(differences) < SMALLEST_BOOTSTRAP:
        notes.append(f"a bootstrap needs {SMALLEST_BOOTSTRAP} seeds: none is given")
        return None
    low, high = bootstrap_t_interval(differences, confidence)
    if not (np.isfinite(low) and np.isfinite(high)):
        notes.append("too many equal differences for a bootstrap: none is given")
        return None
    return float(low), float(high)


def _numbers(values: Values, name: str, metric: str) -> dict[int, float | None]:
    checked: dict[int, float | None] = {}
    for seed, value in values.items():
        try:
            number = math.nan if value is None else float(value)
        except (TypeError, ValueError):
            raise UserError(
                f"{metric} of {name}, seed {seed} is {value!r}; expected a number, or null for a "
                "run that diverged"
            ) from None
        checked[seed] = number if math.isfinite(number) else None
    return checked


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def _mirrored(interval):
    return None if interval is None else (-interval[1], -interval[0])


def _swapped(sides: dict) -> dict:
    return {"baseline": sides["variant"], "variant": sides["baseline"]}


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
