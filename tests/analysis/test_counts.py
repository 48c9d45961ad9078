"""Spike counts: exact for low counts, not fooled by one run's burst."""

import json

import numpy as np
import pytest
from scipy import stats

from fastvim.analysis.counts import compare_counts
from fastvim.errors import UserError


def compare(variant, baseline):
    return compare_counts(dict(enumerate(baseline)), dict(enumerate(variant)))


def test_exact_p_is_the_conditional_binomial():
    c = compare([3, 4, 2], [0, 1, 0])
    assert c.exact_p == pytest.approx(stats.binomtest(9, 10).pvalue)
    assert c.dispersion == 1
    # Rate 5/3 a run, means 3 and 1/3: 2 * 3 * (4/3)^2 / (5/3) = 6.4, referred to F(1, 4)
    assert c.dispersion_p == pytest.approx(stats.f.sf(6.4, 1, 4))
    assert c.p_value == max(c.exact_p, c.dispersion_p)
    assert c.ratio == 9 and c.interval[0] > 1


def test_unequal_numbers_of_runs():
    c = compare([2, 2, 2, 2], [2, 2])
    assert c.ratio == 1
    assert c.exact_p == pytest.approx(stats.binomtest(8, 12, 4 / 6).pvalue)
    assert c.dispersion_p == pytest.approx(1)


def test_one_burst_is_no_evidence():
    steady, burst = compare([11, 9, 10], [0, 0, 0]), compare([30, 0, 0], [0, 0, 0])
    assert steady.p_value < 0.01
    assert burst.exact_p < 1e-6 and burst.p_value > 0.3
    assert steady.interval[1] is None and steady.ratio is None
    json.dumps(steady.to_dict(), allow_nan=False)


def test_what_cannot_be_said():
    none = compare([0, 0], [0, 0])
    assert none.p_value == 1 and none.interval is None and "no event" in none.notes[0]
    one = compare([9], [0])
    assert one.p_value is None and "fewer than two runs" in one.notes[0]
    unknown = compare_counts({0: None}, {0: 3, 1: 2})
    assert unknown.p_value is None and unknown.exact_p is None


@pytest.mark.parametrize("n", [2, 5])
@pytest.mark.parametrize("rate", [0.5, 20.0])
@pytest.mark.parametrize("bursts", [False, True])
def test_false_findings_stay_under_five_percent(n, rate, bursts):
    """Where both variants spike alike, `more spikes` may be found in one of twenty at most."""
    rng = np.random.default_rng(0)
    rates = np.full((300, 2, n), rate)
    if bursts:  # negative binomial with variance rate + 2 rate^2
        rates = rng.gamma(0.5, rate / 0.5, size=rates.shape)
    found = [compare(variant, baseline) for variant, baseline in rng.poisson(rates)]
    more = [c.p_value < 0.05 and c.variant_total > c.baseline_total for c in found]
    assert np.mean(more) < 0.05
    if bursts and rate > 1:  # what the exact test alone would do
        assert np.mean([c.exact_p < 0.05 for c in found]) > 0.5


def test_finds_real_differences():
    rng = np.random.default_rng(0)
    found = [compare(rng.poisson(6, 4), rng.poisson(0.5, 4)).p_value < 0.05 for _ in range(200)]
    assert np.mean(found) > 0.8


@pytest.mark.parametrize("count", [-1, 1.5, True, "3", float("nan")])
def test_bad_counts_are_named(count):
    with pytest.raises(UserError, match="the count of baseline, seed 0"):
        compare_counts({0: count, 1: 1}, {0: 1, 1: 1})
