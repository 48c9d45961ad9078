"""Coverage of the intervals and rate of false verdicts, by simulation.

    python benchmarks/interval_coverage.py [--experiments 4000] [--families 2000] [--json FILE]

Prints the tables of docs/statistics.md. The verdicts are made by the package's own functions,
one simulated experiment after another (half an hour at the default numbers).
"""

import argparse
from itertools import product
from pathlib import Path

import numpy as np
from scipy import stats
from timing import JSON, finish

from fastvim.analysis.claims import Claim
from fastvim.analysis.contrasts import judge_pairs
from fastvim.analysis.counts import compare_counts
from fastvim.analysis.intervals import (
    SMALLEST_BOOTSTRAP,
    bootstrap_t_interval,
    median_interval,
    t_interval,
)

SEEDS = (2, 3, 5, 10)
HERE = {"dataset": "here"}


def draw(rng, kind: str, shape) -> np.ndarray:
    """Noise with mean 0 and spread 1. `skew 0.7` is a gamma variable of that skewness."""
    if kind == "normal":
        return rng.normal(size=shape)
    if kind == "t, 5 degrees":
        return rng.standard_t(5, size=shape) / np.sqrt(5 / 3)
    skew = float(kind.split()[1])
    k = 4 / skew**2
    return (rng.gamma(k, size=shape) - k) / np.sqrt(k)


def percentile_interval(d: np.ndarray, resamples: int = 999):
    """Percentile bootstrap, only to show why it is not used."""
    return np.quantile(_bootstrap_means(d, resamples), [0.025, 0.975], axis=-1)


def bca_interval(d: np.ndarray, resamples: int = 999):
    """Bias-corrected and accelerated bootstrap (Efron 1987), only to show why it is not used."""
    means, centre = _bootstrap_means(d, resamples), d.mean(-1, keepdims=True)
    below = (means < centre).mean(-1) + (means == centre).mean(-1) / 2
    bias = stats.norm.ppf(np.clip(below, 1e-6, 1 - 1e-6))
    away = d - centre
    acceleration = (away**3).sum(-1) / (6 * (away**2).sum(-1) ** 1.5)
    ordered, ends = np.sort(means, -1), []
    for z in stats.norm.ppf([0.025, 0.975]):
        share = stats.norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))
        place = np.clip((share * resamples).astype(int), 0, resamples - 1)
        ends.append(np.take_along_axis(ordered, place[..., None], -1)[..., 0])
    return ends


def _bootstrap_means(d: np.ndarray, resamples: int) -> np.ndarray:
    n = d.shape[-1]
    weights = np.random.default_rng(0).multinomial(n, [1 / n] * n, size=resamples) / n
    return d @ weights.T


def covers(interval, truth: float) -> float:
    """Share of intervals that hold the truth."""
    low, high = interval
    return float(((low <= truth) & (high >= truth)).mean())


def coverage_of_means(experiments: int) -> list[dict]:
    """Coverage of the mean difference by the four methods at 95 %."""
    rng, rows = np.random.default_rng(0), []
    kinds = ("normal", "t, 5 degrees", "skew 0.5", "skew 0.7", "skew 1.0")
    for kind, n in product(kinds, SEEDS):
        d = draw(rng, kind, (experiments, n))
        many = draw(rng, kind, (20 * experiments, n))
        row = {"differences": kind, "seeds": n, "paired t": covers(t_interval(many), 0)}
        studentised = n >= SMALLEST_BOOTSTRAP
        row["bootstrap-t"] = (
            covers(bootstrap_t_interval(d, resamples=999), 0) if studentised else None
        )
        row["percentile"] = covers(percentile_interval(d), 0)
        row["BCa"] = covers(bca_interval(d), 0)
        rows.append(row)
    return rows


def coverage_of_ratios(experiments: int) -> list[dict]:
    """Coverage of the median ratio of interleaved timings: drift, jitter, interruptions."""
    rng, rows = np.random.default_rng(1), []
    for kind, n in product(("jitter", "interruptions"), (6, 7, 8, 10, 15, 30)):
        shape = (experiments, n)

        def seconds(kind=kind, shape=shape):
            jitter = np.exp(0.02 * rng.normal(size=shape))
            hit = (rng.random(shape) < 0.1) * rng.exponential(0.3, shape)
            return jitter * (1 + hit) if kind == "interruptions" else jitter

        machine = np.exp(np.cumsum(0.02 * rng.normal(size=shape), -1))
        ratios = (machine * seconds()) / (machine * seconds())
        medians = np.median(ratios[:, rng.integers(0, n, (399, n))], -1)
        rows.append(
            {
                "timings": kind,
                "repeats": n,
                "order statistics": covers(median_interval(ratios), 1.0),
                "percentile bootstrap": covers(np.quantile(medians, [0.025, 0.975], -1), 1.0),
            }
        )
    return rows


def claim_about(variant: str, scale: dict) -> Claim:
    """`variant` is one point above the baseline, give or take half a point."""
    return Claim(
        id=variant,
        statement="simulated",
        source="simulated",
        kind="difference",
        metric="top1",
        unit="points",
        variant=variant,
        baseline="base",
        direction="higher",
        published="+1",
        value=1.0,
        tolerance=0.5,
        scale=scale,
        experiments=("simulated",),
    )


def verdicts(rng, kind: str, n: int, variants: int, difference: float, same: bool, spread=0.3):
    """(claim, verdict, comparison) of all claims of one simulated experiment."""
    shared = rng.normal(size=n)
    names = [f"v{i}" for i in range(variants)]
    noise, both = kind.removesuffix(", variants only"), not kind.endswith("only")
    values = {"base": shared + (spread * -draw(rng, noise, n) if both else 0)}
    for name in names:
        values[name] = shared + difference + spread * -draw(rng, noise, n)
    by_seed = {name: dict(enumerate(np.round(v, 2))) for name, v in values.items()}
    claims = [claim_about(name, HERE if same else {"dataset": "there"}) for name in names]
    return judge_pairs(by_seed, [(name, "base") for name in names], claims, HERE)


def false_verdicts(families: int) -> list[dict]:
    """Share of experiments with any false verdict, over all their variants.

    At no difference, `consistent` is false. A hair above it `contradicted` (of the direction,
    at another scale) would be. With the truth at an edge of the tolerance `contradicted` at the
    same scale is; the worse of the two edges counts.
    """
    rng, rows = np.random.default_rng(2), []
    kinds = ("normal", "t, 5 degrees", "skew 0.7", "skew 1.0")
    kinds += tuple(f"{kind}, variants only" for kind in kinds)
    for kind, n, variants in product(kinds, SEEDS, (1, 4)):

        def share(verdict, difference, same, case=(kind, n, variants)):
            found = (verdicts(rng, *case, difference, same) for _ in range(families))
            return np.mean([any(v.verdict == verdict for _, v, _ in one) for one in found])

        rows.append(
            {
                "noise of a run": kind,
                "seeds": n,
                "variants": variants,
                "consistent, no difference": share("consistent", 0.0, False),
                "contradicted, no difference": share("contradicted", 0.0, False),
                "contradicted, at the tolerance": max(
                    share("contradicted", edge, True) for edge in (0.5, 1.5)
                ),
            }
        )
    return rows


def power(families: int) -> list[dict]:
    """Share of the claims found consistent where the truth is the published difference (1) or
    half of it, at 95 % and at the level that verdicts are held to."""
    rng, rows = np.random.default_rng(4), []
    for true, n, variants in product((1.0, 0.5), SEEDS, (1, 4)):
        judged = [
            one
            for _ in range(families)
            for one in verdicts(rng, "normal", n, variants, true, False)
        ]
        rows.append(
            {
                "true difference": str(true),
                "seeds": n,
                "variants": variants,
                "at 95 %": np.mean(
                    [c.sd > 0 and c.p_holm < 0.05 and c.difference > 0 for _, _, c in judged]
                ),
                "verdicts": np.mean([v.verdict == "consistent" for _, v, _ in judged]),
            }
        )
    return rows


def false_count_verdicts(experiments: int) -> list[dict]:
    """Share of `more spikes` found (p < 0.05) where both variants spike alike."""
    rng, rows = np.random.default_rng(3), []
    for kind, rate, n in product(("Poisson", "bursts"), (0.5, 3.0, 20.0), SEEDS):
        rates = np.full((experiments, 2, n), rate)
        if kind == "bursts":
            # Gamma rates: a negative binomial with variance rate + 2 rate^2.
            rates = rng.gamma(0.5, rate / 0.5, size=rates.shape)
        counts = rng.poisson(rates)
        found = [
            compare_counts(dict(enumerate(a.tolist())), dict(enumerate(b.tolist())))
            for a, b in counts
        ]
        more = np.array([c.variant_total > c.baseline_total for c in found])
        rows.append(
            {
                "spikes": kind,
                "a run": str(rate),
                "runs": n,
                "exact test alone": np.mean(more & [c.exact_p < 0.05 for c in found]),
                "both tests": np.mean(more & [c.p_value < 0.05 for c in found]),
            }
        )
    return rows


def show(title: str, rows: list[dict]) -> None:
    """Print a Markdown table; floats are shares."""
    print(f"\n{title}\n\n| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        cells = [f"{100 * v:.1f} %" if isinstance(v, float) else str(v or "") for v in row.values()]
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--experiments", type=int, default=4000)
    parser.add_argument("--families", type=int, default=2000)
    parser.add_argument("--json", type=Path, help=JSON)
    options = parser.parse_args()
    tables = {}
    for title, rows in (
        ("Coverage of the mean difference", lambda: coverage_of_means(options.experiments)),
        ("Coverage of the median ratio", lambda: coverage_of_ratios(options.experiments)),
        ("False verdicts on spikes", lambda: false_count_verdicts(options.experiments)),
        ("False verdicts, any of the family", lambda: false_verdicts(options.families)),
        ("Power", lambda: power(options.families)),
    ):
        tables[title] = rows()
        show(title, tables[title])
    finish([{"title": title, "rows": rows} for title, rows in tables.items()], options.json)


if __name__ == "__main__":
    main()
