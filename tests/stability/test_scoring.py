"""Precision and recall on the labelled suite, against the two published rules."""

import numpy as np

from fastvim.stability.detector import detect
from fastvim.stability.scoring import DETECTORS, grouped, score
from fastvim.stability.synthetic import ENDINGS, Curve, Label, suite


def test_better_than_both_alternatives():
    curves = suite(1)
    scores = {name: score(curves, detector) for name, detector in DETECTORS.items()}
    ours = scores.pop("fastvim")
    assert ours.precision > 0.97 and ours.recall > 0.75
    for other in scores.values():
        assert ours.precision > other.precision
        assert ours.recall > other.recall + 0.15
        for size, (found, labelled) in other.by_size.items():
            assert ours.by_size[size][1] == labelled and ours.by_size[size][0] > found
    # Every spike that stands out is found, every sustained change found and named.
    for size in (50, 100):
        found, labelled = ours.by_size[size]
        assert found == labelled > 50
    for kind in ENDINGS:
        assert ours.by_kind[kind] == [5, 5]
    assert ours.named >= 0.95 * ours.true


def test_small_spikes_do_not_hide_larger_ones():
    """One in 100 values, too low to be found and several values long, is no heavy tail of the
    noise, and no noise with a memory."""
    values = np.random.default_rng(0).standard_normal(10_000)
    shape = np.exp(-np.arange(100) / 6)
    heights = np.where(np.arange(100) % 10 == 9, 12.0, 4.0)
    values += (heights[:, None] * shape).ravel()
    episodes = detect(np.arange(10_000), values)
    assert [round(episode.start_step, -3) for episode in episodes] == list(
        range(1000, 10_001, 1000)
    )


def test_suite_is_deterministic_and_labelled_truly():
    for one, other in zip(suite(1), suite(1), strict=True):
        assert np.array_equal(one.values, other.values, equal_nan=True)
        for label in one.labels:
            assert 0 <= label.start <= label.end < len(one.values)


def test_score_counts():
    labels = [Label(10, 12, 8, "spike"), Label(50, 50, 20, "spike")]
    curve = Curve("by hand", np.arange(100), np.zeros(100), labels, [(70, 80)])
    detections = [(9, 10, "spike"), (60, 61, "spike"), (71, 71, "shift"), (75, 75, "spike")]
    result = score([curve], lambda _: detections)
    assert (result.true, result.false) == (1, 2)
    assert result.by_size == {8: [1, 1], 20: [0, 1]}
    assert result.precision == 1 / 3 and result.recall == 1 / 2


def test_flags_are_grouped_over_small_gaps():
    flags = np.zeros(30, dtype=bool)
    flags[[3, 4, 7, 11, 25]] = True
    assert grouped(flags) == [(3, 7, ""), (11, 11, ""), (25, 25, "")]
