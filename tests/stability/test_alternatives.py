"""The two published rules, against their definitions written out value by value."""

import numpy as np
import pytest

from fastvim.stability import alternatives
from fastvim.stability.alternatives import olmo2_outliers, olmo_core_monitor, spike_score


def series(seed=0, count=3000):
    rng = np.random.default_rng(seed)
    values = 2 + np.exp(-np.arange(count) / 300) + 0.05 * rng.standard_normal(count)
    values[rng.integers(0, count, 12)] += rng.uniform(0.2, 3, 12)
    return values


@pytest.mark.parametrize("seed", range(3))
def test_olmo_core_monitor_is_its_definition(seed):
    values = series(seed)
    expected = [
        i >= 128 and v > values[i - 128 : i].mean() + 6 * values[i - 128 : i].std()
        for i, v in enumerate(values)
    ]
    assert sum(expected) > 3
    assert olmo_core_monitor(values).tolist() == expected


@pytest.mark.parametrize("seed", range(3))
def test_olmo2_outliers_are_their_definition(seed):
    values = series(seed)
    values[[40, 700]] = np.nan, np.inf
    expected, past = [], []
    for value in values:
        if not np.isfinite(value):
            expected.append(True)
            continue
        window = np.array(past[-1000:])
        expected.append(
            len(window) >= 128
            and abs(value - window.mean()) >= 7 * window.std()
            and window.std() > 0
        )
        past.append(value)
    assert sum(expected) > 3
    assert olmo2_outliers(values).tolist() == expected
    assert spike_score(values) == pytest.approx(sum(expected) / 3000)


def test_a_huge_value_spoils_only_its_own_windows():
    values = series()
    values[1000] = 1e12
    mean, deviation, _ = alternatives.trailing_moments(values, 128)
    for i in (900, 1129, 2000):
        window = values[i - 128 : i]
        assert mean[i] == pytest.approx(window.mean(), rel=1e-12)
        assert deviation[i] == pytest.approx(window.std(), rel=1e-9)


def test_nothing_to_score():
    assert spike_score([]) == 0
    assert spike_score([1.0] * 2000) == 0
    assert not olmo_core_monitor([1.0] * 200 + [2.0]).any()
