"""Where two trained variants disagree, example by example, on the test set."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

from fastvim.errors import UserError


@dataclass(frozen=True)
class Disagreement:
    """McNemar's test of one pair of runs. Shares are of all examples, in [0, 1].

    `baseline_only` and `variant_only` count examples that only that run got right, and
    `discordant_share` is their share; `different_share` also counts two different wrong answers.
    """

    examples: int
    baseline_only: int
    variant_only: int
    discordant_share: float
    different_share: float
    exact_p: float
    mid_p: float

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class PooledDisagreement:
    """Several pairs of runs on one test set. `difference` is the variant's accuracy minus the
    baseline's in percentage points, with its interval over test examples."""

    seeds: tuple[int, ...]
    examples: int
    per_seed: dict[int, Disagreement]
    mean_discordant_share: float
    difference: float
    interval: tuple[float, float] | None
    p_value: float | None
    method: str
    meaning: str

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        values = asdict(self)
        values["seeds"] = list(self.seeds)
        values["interval"] = None if self.interval is None else list(self.interval)
        values["per_seed"] = {str(seed): d.to_dict() for seed, d in self.per_seed.items()}
        return values


def disagreement(labels, baseline_predictions, variant_predictions) -> Disagreement:
    """McNemar's test on the predicted classes of two runs, arrays of shape (examples,).

    Of the b + c examples that one run alone got right, b are the baseline's: b is
    Binomial(b + c, 1/2) if neither is better. `exact_p` is the two-sided binomial test and
    `mid_p` = exact_p - P(B = b) is less conservative (Fagerland, Lydersen and Laake 2013).
    Both speak about these two trained models, not about training them again. Raises UserError
    when the arrays differ in length or are empty.
    """
    labels, base, variant = _aligned(labels, baseline_predictions, variant_predictions)
    base_right, variant_right = base == labels, variant == labels
    b = int(np.sum(base_right & ~variant_right))
    c = int(np.sum(variant_right & ~base_right))
    exact = mid = 1.0
    if b + c:
        # The two-sided p doubles the smaller tail; capped at 1 where b = c.
        tail = stats.binom.cdf(min(b, c), b + c, 0.5)
        exact = min(1.0, 2 * tail)
        mid = min(1.0, 2 * tail - stats.binom.pmf(b, b + c, 0.5))
    return Disagreement(
        examples=len(labels),
        baseline_only=b,
        variant_only=c,
        discordant_share=(b + c) / len(labels),
        different_share=float(np.mean(base != variant)),
        exact_p=float(exact),
        mid_p=float(mid),
    )


def pooled_disagreement(runs: Mapping[int, tuple], confidence: float = 0.95) -> PooledDisagreement:
    """McNemar over seeds: `runs` is seed -> (labels, baseline predictions, variant predictions).

    The same test examples come back with every seed, so b and c summed over seeds are not
    independent and would give far too small a p. Each example's score is therefore averaged over
    seeds first (+1 only the variant right, -1 only the baseline, 0 both or neither), and the
    mean score over the N examples is tested with its standard error over examples, the test for
    clustered matched pairs of Obuchowski (1998). It speaks about these trained models on new
    images; whether training again would give the same is what `paired_comparison` asks.
    Raises UserError when `runs` is empty or the labels differ between seeds.
    """
    if not runs:
        raise UserError("no predictions were given: nothing can be pooled")
    per_seed, scores, first = {}, [], None
    for seed in sorted(runs):
        labels, base, variant = _aligned(*runs[seed], where=f" of seed {seed}")
        if first is None:
            first = labels
        elif not np.array_equal(first, labels):
            raise UserError(
                f"the test labels of seed {seed} differ from those of seed {min(runs)}: "
                "predictions on different test sets cannot be pooled"
            )
        per_seed[seed] = disagreement(labels, base, variant)
        scores.append((variant == labels).astype(float) - (base == labels))
    score = np.mean(scores, axis=0)
    mean, n = float(score.mean()), len(score)
    error = float(score.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    interval = p_value = None
    if error > 0:
        half = stats.norm.ppf(0.5 + confidence / 2) * error
        interval = (100 * (mean - half), 100 * (mean + half))
        p_value = float(2 * stats.norm.sf(abs(mean) / error))
    return PooledDisagreement(
        seeds=tuple(sorted(runs)),
        examples=n,
        per_seed=per_seed,
        mean_discordant_share=float(np.mean([d.discordant_share for d in per_seed.values()])),
        difference=100 * mean,
        interval=interval,
        p_value=p_value,
        method="clustered matched pairs (Obuchowski), examples as clusters",
        meaning="these trained models on new test images; not what training again would give",
    )


def _aligned(labels, base, variant, where: str = ""):
    arrays = [np.asarray(a) for a in (labels, base, variant)]
    if any(a.ndim != 1 for a in arrays) or len({len(a) for a in arrays}) != 1:
        shapes = ", ".join(str(a.shape) for a in arrays)
        raise UserError(
            f"labels and predictions{where} have shapes {shapes}; expected three arrays of one "
            "length"
        )
    if len(arrays[0]) == 0:
        raise UserError(f"labels and predictions{where} are empty")
    return arrays
