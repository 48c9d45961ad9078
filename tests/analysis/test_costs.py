"""Ratios of timings, and the front of accuracy against cost."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvim.analysis.costs import cost_ratio, exact_ratio, pareto_front
from fastvim.errors import UserError


def test_machine_drift_cancels_and_one_interruption_does_not_matter():
    rng = np.random.default_rng(0)
    drift = np.linspace(1, 3, 15)
    base = drift * (1 + 0.01 * rng.normal(size=15))
    variant = 0.5 * drift * (1 + 0.01 * rng.normal(size=15))
    variant[4] *= 40
    r = cost_ratio(base, variant)
    assert r.ratio == pytest.approx(0.5, abs=0.01)
    assert 0.48 < r.interval[0] < 0.5 < r.interval[1] < 0.52
    assert r.repeats == 15 and "median" in r.method
    json.dumps(r.to_dict(), allow_nan=False)


def test_too_few_repeats_have_no_interval():
    r = cost_ratio([1.0] * 5, [1.1, 1.2, 1.1, 1.3, 1.2])
    assert r.ratio == pytest.approx(1.2) and r.interval is None
    assert r.note == "an interval at 95 % needs 6 interleaved repeats; there are 5"
    assert cost_ratio([1.0] * 6, [1.1, 1.2, 1.1, 1.3, 1.2, 1.2]).interval is not None
    assert cost_ratio([1.0] * 7, [1.1] * 7, 0.99).interval is None


def test_counted_costs_have_no_spread():
    r = exact_ratio(1.6, 1.04)
    assert r.exact and r.interval == (0.65, 0.65) and r.interval_at(0.999) == (0.65, 0.65)


@pytest.mark.parametrize(
    ("base", "variant", "message"),
    [
        ([1.0, 2.0], [1.0], "interleaved"),
        ([], [], "at least one"),
        ([1.0, 0.0], [1.0, 1.0], "a timing of the baseline is 0.0"),
        ([1.0], [float("nan")], "a timing of the variant is nan"),
    ],
)
def test_bad_timings(base, variant, message):
    with pytest.raises(UserError, match=message):
        cost_ratio(base, variant)


def test_bad_counted_cost():
    with pytest.raises(UserError, match="cost of the baseline is 0"):
        exact_ratio(0, 1)


def test_front_known_case():
    points = {"slow": (3, 90), "bad": (3, 80), "fast": (1, 85), "twin": (1, 85), "mid": (2, 84)}
    assert pareto_front(points) == ["fast", "twin", "slow"]
    assert pareto_front({"a": (1, None), "b": (float("nan"), 5)}) == []


@given(st.dictionaries(st.integers(), st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
@settings(max_examples=60, deadline=None)
def test_front_properties(points):
    front = pareto_front(points)
    assert bool(front) == bool(points)
    for name, (cost, accuracy) in points.items():
        better = [
            f
            for f in front
            if points[f][0] <= cost and points[f][1] >= accuracy and points[f] != (cost, accuracy)
        ]
        assert bool(better) == (name not in front)
