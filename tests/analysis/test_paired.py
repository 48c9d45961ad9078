"""The paired comparison against known values and scipy, and what it refuses to say."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fastvim.analysis.multiple import holm, holm_levels
from fastvim.analysis.paired import (
    compare_pairs,
    compare_variants,
    hedges_correction,
    paired_comparison,
)
from fastvim.errors import UserError

# Student's sleep data (1908), the paired example of R's t.test.
DRUG_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
DRUG_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def by_seed(values):
    return dict(enumerate(values))


def test_sleep_data_gives_the_published_values():
    c = paired_comparison(by_seed(DRUG_1), by_seed(DRUG_2), "hours")
    assert c.difference == pytest.approx(1.58)
    assert c.interval == pytest.approx((0.7001142, 2.4598858), abs=1e-6)
    assert c.p_value == pytest.approx(0.002833, abs=1e-6)
    assert c.sd == pytest.approx(1.229995, abs=1e-6)
    assert c.method == "paired t"
    assert c.seeds == tuple(range(10))
    # d_z = 1.2846, Hedges' J(9 degrees of freedom) = 0.9139
    assert c.effect_size == pytest.approx(1.2846 * 0.9139, abs=2e-3)
    low, high = c.bootstrap_interval
    assert 0.7 < low < 1.58 < high < 3.5


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=2, max_size=8, unique=True)
)
@settings(max_examples=60, deadline=None)
def test_agrees_with_scipy_and_turns_round(pairs):
    base, variant = by_seed([p[0] for p in pairs]), by_seed([p[1] for p in pairs])
    c, back = paired_comparison(base, variant, "top1"), paired_comparison(variant, base, "top1")
    assert back.difference == pytest.approx(-c.difference)
    if c.interval is None:
        assert c.sd == 0 and back.interval is None
        return
    expected = stats.ttest_rel([p[1] for p in pairs], [p[0] for p in pairs])
    assert c.p_value == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert c.interval == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-6)
    assert back.interval == pytest.approx((-c.interval[1], -c.interval[0]))
    assert back.p_value == pytest.approx(c.p_value)
    turned = c.turned()
    assert turned.differences == pytest.approx(back.differences)
    assert turned.interval == pytest.approx(back.interval)
    assert (turned.variant, turned.baseline) == ("baseline", "variant")
    assert turned.turned() == c


def test_pairing_removes_what_seeds_share():
    rng = np.random.default_rng(0)
    shared = 10 * rng.normal(size=6)
    noise = 0.1 * rng.normal(size=6)
    c = paired_comparison(by_seed(shared), by_seed(shared + 1 + noise), "top1")
    assert c.sd < 0.3
    assert 0.5 < c.interval[0] < c.interval[1] < 1.5


def test_one_seed_says_what_cannot_be_said():
    c = paired_comparison({0: 80.0}, {0: 81.0}, "top1")
    assert c.difference == 1.0
    assert (c.interval, c.p_value, c.sd, c.effect_size, c.bootstrap_interval) == (None,) * 5
    assert "one seed" in c.notes[0] and "verdict" in c.notes[0]
    assert json.loads(json.dumps(c.to_dict(), allow_nan=False))["interval"] is None


def test_two_seeds_have_a_wide_interval_and_no_effect_size():
    c = paired_comparison({0: 80.0, 1: 80.0}, {0: 81.0, 1: 81.2}, "top1")
    # t(0.975; 1) = 12.706, standard error 0.1
    assert c.interval == pytest.approx((1.1 - 1.2706, 1.1 + 1.2706), abs=1e-4)
    assert c.effect_size is None and c.bootstrap_interval is None
    assert any("two seeds" in note for note in c.notes)


def test_identical_differences_up_to_rounding_give_no_interval():
    assert 75.4 - 75.3 != 10.3 - 10.2
    c = paired_comparison({0: 75.3, 1: 10.2}, {0: 75.4, 1: 10.3}, "top1")
    assert c.sd == 0 and c.interval is None and c.p_value is None and c.holm_interval is None
    assert "identical" in c.notes[0]


def test_same_values_in_every_seed():
    c = paired_comparison({0: 0.0, 1: 0.0, 2: 0.0}, {0: 0.0, 1: 0.0, 2: 0.0}, "top1")
    assert c.difference == 0 and c.interval is None


def test_unmatched_and_diverged_seeds_are_named_and_left_out():
    base = {0: 80.0, 1: 81.0, 2: None, 5: 80.5, 7: 80.0}
    variant = {0: 81.0, 1: math.nan, 2: 82.0, 3: 81.0, 5: 81.4, 7: math.inf}
    c = paired_comparison(base, variant, "top1")
    assert c.seeds == (0, 5)
    assert c.differences == pytest.approx((1.0, 0.9))
    assert c.unmatched == {"baseline": (), "variant": (3,)}
    assert c.diverged == {"baseline": (2,), "variant": (1, 7)}


def test_no_common_seed():
    c = paired_comparison({0: 1.0}, {1: 2.0}, "top1")
    assert c.difference is None and c.variant_mean is None and "no seed" in c.notes[0]


def test_bootstrap_is_repeatable_and_stays_finite():
    values = by_seed(DRUG_2[:5])
    first = paired_comparison(by_seed(DRUG_1[:5]), values, "hours")
    assert first == paired_comparison(by_seed(DRUG_1[:5]), values, "hours")
    # Four of five differences equal: a third of the resamples has no spread.
    tied = paired_comparison(by_seed([0.0] * 5), by_seed([1.0, 1.0, 1.0, 1.0, 2.0]), "top1")
    assert tied.bootstrap_interval is None and tied.interval is not None
    json.dumps(tied.to_dict(), allow_nan=False)


def test_bad_values_are_named():
    with pytest.raises(UserError, match="top1 of v, seed 3 is 'abc'"):
        paired_comparison({3: 1.0}, {3: "abc"}, "top1", variant_name="v")
    with pytest.raises(UserError, match="confidence is 95"):
        paired_comparison({0: 1.0}, {0: 1.0}, "top1", confidence=95)
    with pytest.raises(UserError, match="did you mean 'columns-only'"):
        compare_variants({"columns-only": {}, "alternating": {}}, "column-only", "top1")


def test_hedges_correction_makes_the_effect_unbiased():
    # Tabulated J for 2, 9 and 29 degrees of freedom (Hedges 1981, table 2: 0.5642, 0.9139, 0.9739)
    assert hedges_correction(3) == pytest.approx(0.5642, abs=1e-4)
    assert hedges_correction(10) == pytest.approx(0.9139, abs=1e-3)
    assert hedges_correction(30) == pytest.approx(0.9739, abs=1e-4)
    d = np.random.default_rng(0).normal(0.8, 1, size=(200_000, 5))
    assert np.mean(hedges_correction(5) * d.mean(1) / d.std(1, ddof=1)) == pytest.approx(
        0.8, abs=0.01
    )


def test_holm_known_values():
    # R: p.adjust(c(0.01, 0.02, 0.03, 0.04), "holm")
    p = dict(zip("abcd", (0.01, 0.04, 0.03, 0.005), strict=True))
    assert holm(p) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert holm({}) == {}
    assert holm({"a": 0.7, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    # A comparison without a p-value still counts.
    assert holm({"a": 0.02, "b": None}) == {"a": 0.04, "b": None}


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_holm_properties(p):
    named = by_seed(p)
    adjusted, levels = holm(named), holm_levels(named, 0.05)
    for name, value in named.items():
        assert value <= adjusted[name] <= min(1, len(p) * value) * (1 + 1e-12)
        assert (adjusted[name] < 0.05) == (value < levels[name])
    order = sorted(named, key=named.get)
    assert all(adjusted[a] <= adjusted[b] for a, b in itertools.pairwise(order))


def test_holm_interval_excludes_zero_where_holm_rejects():
    rng = np.random.default_rng(3)
    rejected = 0
    for _ in range(60):
        values = {f"v{i}": by_seed(rng.normal(0.8 * i, 1, size=4)) for i in range(4)}
        for c in compare_variants(values, "v0", "top1").values():
            low, high = c.holm_interval
            assert c.verdict_level == pytest.approx(0.02)
            assert (low > 0 or high < 0) == (c.p_holm < c.verdict_level)
            assert high - low >= c.interval[1] - c.interval[0]
            assert c.family == 3
            rejected += c.p_holm < c.verdict_level
    assert 10 < rejected < 150


def test_family_of_pairs_shares_the_correction():
    values = {"a": by_seed([1, 2, 3.5]), "b": by_seed([2, 3.1, 4.4]), "c": by_seed([0, 0, 1])}
    one = compare_pairs(values, [("b", "a")], "top1")[0]
    two = compare_pairs(values, [("b", "a"), ("c", "a")], "top1")[0]
    assert one.p_value == two.p_value and one.interval == two.interval
    assert two.p_holm > one.p_holm
