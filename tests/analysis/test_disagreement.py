"""McNemar's test per seed, and pooled without counting an image several times."""

import json

import numpy as np
import pytest
from scipy import stats

from fastvim.analysis.disagreement import disagreement, pooled_disagreement
from fastvim.errors import UserError


def predictions(both, baseline_only, variant_only, neither):
    """Labels and predictions with the given 2 x 2 table of right and wrong."""
    n = both + baseline_only + variant_only + neither
    base = np.array([0] * (both + baseline_only) + [1] * (variant_only + neither))
    variant = np.array([0] * both + [1] * baseline_only + [0] * variant_only + [2] * neither)
    return np.zeros(n, int), base, variant


def test_counts_and_p_values():
    d = disagreement(*predictions(50, 4, 14, 2))
    assert (d.examples, d.baseline_only, d.variant_only) == (70, 4, 14)
    assert d.discordant_share == pytest.approx(18 / 70)
    assert d.different_share == pytest.approx(20 / 70)  # two different wrong answers differ too
    assert d.exact_p == pytest.approx(stats.binomtest(4, 18).pvalue)
    assert d.mid_p == pytest.approx(d.exact_p - stats.binom.pmf(4, 18, 0.5))


def test_airway_study_of_fagerland():
    # Fagerland, Lydersen and Laake (2013), table 2: 1 against 7 discordant pairs.
    d = disagreement(*predictions(1, 1, 7, 12))
    assert d.exact_p == pytest.approx(0.0703, abs=1e-4)
    assert d.mid_p == pytest.approx(0.0391, abs=1e-4)


def test_no_discordant_pair_and_equal_ones():
    assert disagreement(*predictions(9, 0, 0, 1)).exact_p == 1
    equal = disagreement(*predictions(0, 3, 3, 0))
    assert equal.exact_p == 1 and 0.5 < equal.mid_p <= 1


def test_exact_test_holds_its_level():
    rng = np.random.default_rng(0)
    b = rng.binomial(30, 0.5, size=4000)
    p = {k: disagreement(*predictions(5, k, 30 - k, 5)) for k in set(b.tolist())}
    assert np.mean([p[k].exact_p < 0.05 for k in b]) < 0.05
    assert np.mean([p[k].mid_p < 0.05 for k in b]) < 0.06


def test_pooling_the_same_images_does_not_make_them_more():
    """Models that differ on the same images in every seed: five seeds tell no more than one."""
    labels, base, variant = predictions(900, 20, 40, 40)
    pooled = pooled_disagreement({s: (labels, base, variant) for s in range(5)})
    alone = pooled_disagreement({0: (labels, base, variant)})
    assert pooled.p_value == pytest.approx(alone.p_value)
    assert pooled.interval == pytest.approx(alone.interval)
    assert pooled.difference == pytest.approx(2.0)
    assert pooled.seeds == (0, 1, 2, 3, 4)
    json.dumps(pooled.to_dict(), allow_nan=False)


def test_pooled_interval_covers_over_new_test_sets():
    """Half of each image's disagreement is common to all seeds; the naive sum would undercover."""
    rng = np.random.default_rng(1)
    found, naive = 0, 0
    for _ in range(300):
        common = rng.random(300) < 0.5
        shared = rng.random((2, 300)) < 0.7
        runs = {}
        for seed in range(4):
            own = rng.random((2, 300)) < 0.7
            right = np.where(common, shared, own)
            runs[seed] = (np.zeros(300, int), 1 - right[0], 1 - right[1])
        pooled = pooled_disagreement(runs)
        found += pooled.p_value < 0.05
        b = sum(d.baseline_only for d in pooled.per_seed.values())
        c = sum(d.variant_only for d in pooled.per_seed.values())
        naive += stats.binomtest(b, b + c).pvalue < 0.05
    assert found / 300 < 0.08
    assert naive / 300 > 0.1


def test_bad_input():
    labels, base, variant = predictions(2, 1, 1, 1)
    with pytest.raises(UserError, match="of seed 3 have shapes"):
        pooled_disagreement({3: (labels, base, variant[:-1])})
    with pytest.raises(UserError, match="differ from those of seed 0"):
        pooled_disagreement({0: (labels, base, variant), 1: (labels + 1, base, variant)})
    with pytest.raises(UserError, match="empty"):
        disagreement([], [], [])
    with pytest.raises(UserError, match="no predictions"):
        pooled_disagreement({})
