"""Seeds needed: against scipy, tabulated values and simulated power."""

import numpy as np
import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fastvim.analysis.power import paired_t_power, sd_upper_limit, seeds_needed
from fastvim.errors import UserError


@pytest.mark.parametrize(
    ("standardised", "seeds"),
    # G*Power 3.1, paired t-test, two-sided alpha 0.05, power 0.8
    [(0.2, 199), (0.5, 34), (0.8, 15)],
)
def test_tabulated_sample_sizes(standardised, seeds):
    assert seeds_needed(2.0, 2.0 * standardised).seeds == seeds


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 3])
@pytest.mark.parametrize("standardised", [0.5, 0.69, 1.0, 1.4])
def test_simulated_power_is_the_one_claimed(standardised, alpha):
    needed = seeds_needed(1.0, standardised, alpha=alpha)
    d = np.random.default_rng(0).normal(standardised, 1, size=(20_000, needed.seeds))
    power = np.mean(stats.ttest_1samp(d, 0, axis=1).pvalue < alpha)
    assert power == pytest.approx(needed.achieved_power, abs=0.015)
    # An integer number of seeds can land above 0.8, most so when it is small.
    assert power > 0.77
    assert power < 0.83 or needed.seeds < 10
    assert paired_t_power(needed.seeds - 1, standardised, alpha) < 0.8


def test_power_agrees_with_scipy():
    # Before SciPy 1.17 its own two ways differ by 1.4e-8; Python 3.10 has 1.15.
    tolerance = 1e-8 if tuple(map(int, scipy.__version__.split(".")[:2])) >= (1, 17) else 1e-7
    for n in (2, 3, 10):
        for effect in (0.1, 1.0, 3.0):
            critical, shift = stats.t.ppf(0.975, n - 1), effect * np.sqrt(n)
            expected = stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift)
            assert paired_t_power(n, effect) == pytest.approx(expected, abs=tolerance)


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.sampled_from([0.05, 0.01]))
@settings(max_examples=60, deadline=None)
def test_smallest_number_with_enough_power(sd, effect, alpha):
    needed = seeds_needed(sd, effect, alpha=alpha)
    if needed.seeds is None:
        assert paired_t_power(1000, effect / sd, alpha) < 0.8
        return
    assert needed.achieved_power >= 0.8
    if needed.seeds > 2:
        assert paired_t_power(needed.seeds - 1, effect / sd, alpha) < 0.8
    assert seeds_needed(sd, -effect, alpha=alpha) == needed


def test_cap_zero_effect_and_zero_spread_are_said():
    capped = seeds_needed(1.0, 0.01, cap=50)
    assert capped.seeds is None and capped.note == "more than 50 seeds"
    assert seeds_needed(1.0, 0.0).note == "no number of seeds finds a difference of zero"
    assert "spread" in seeds_needed(0.0, 1.0).note
    assert seeds_needed(1.0, 0.3, cap=90).seeds == 90
    assert seeds_needed(1.0, 0.3, cap=89).seeds is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sd_of_differences": -1, "effect": 1}, "sd_of_differences is -1"),
        ({"sd_of_differences": float("nan"), "effect": 1}, "sd_of_differences is nan"),
        ({"sd_of_differences": 1, "effect": float("inf")}, "effect is inf"),
        ({"sd_of_differences": 1, "effect": 1, "power": 80}, "power is 80"),
        ({"sd_of_differences": 1, "effect": 1, "alpha": 0}, "alpha is 0"),
        ({"sd_of_differences": 1, "effect": 1, "cap": 1}, "cap is 1"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(UserError, match=message):
        seeds_needed(**arguments)


def test_upper_limit_of_the_spread_holds_in_80_percent():
    d = np.random.default_rng(1).normal(size=(20_000, 4))
    upper = sd_upper_limit(1.0, 4) * d.std(1, ddof=1)
    assert np.mean(upper > 1) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("alpha", [0.02, 0.005])
@pytest.mark.parametrize("seeds", [2, 3, 4, 8])
def test_power_of_large_effects_is_that_of_its_definition(seeds, alpha):
    """P(|Z + shift| > critical sqrt(X / df)), averaged over X chi-squared by quadrature."""
    points, weights = np.polynomial.legendre.leggauss(400)
    spread = np.sqrt(stats.chi2.ppf((points + 1) / 2, seeds - 1) / (seeds - 1))
    reached = stats.t.ppf(1 - alpha / 2, seeds - 1) * spread
    for effect in (1.0, 5.0, 12.0, 30.0):
        shift = np.sqrt(seeds) * effect
        tails = stats.norm.cdf(shift - reached) + stats.norm.cdf(-shift - reached)
        expected = np.sum(weights / 2 * tails)
        assert paired_t_power(seeds, effect, alpha) == pytest.approx(expected, abs=1e-5)
