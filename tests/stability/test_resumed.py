"""What a resumed run went back over counts for nothing in its review."""

import numpy as np

from fastvim.stability import SpikeDetector
from fastvim.stability.curves import LoggedCurve
from fastvim.stability.review import compare, review

COUNT = 2000
X = np.arange(COUNT)
LOSS = 2 + 3 * np.exp(-X / 200) + 0.05 * np.random.default_rng(0).standard_normal(COUNT)


def resumed(lost):
    """A run that logged `lost` from step 1000 on and was resumed from step 990."""
    steps = np.concatenate([X[:1000], 1000 + np.arange(len(lost)), X[990:]])
    return LoggedCurve("run", "loss", steps, np.concatenate([LOSS[:1000], lost, LOSS[990:]]))


def test_replaced_values_count_for_nothing():
    whole, blown = review(LoggedCurve("run", "loss", X, LOSS)), review(resumed([np.nan] * 400))
    assert blown.spike_score == whole.spike_score
    assert blown.to_dict()["values"] == COUNT and blown.to_dict()["last_step"] == COUNT - 1


def test_a_trend_that_was_replaced_is_not_compared():
    high = review(resumed(LOSS[1000:1400] + 1.5))
    base = review(LoggedCurve("base", "loss", X, LOSS + 0.3))
    compare([high], [base])
    assert high.comparison["below_from_step"] < 10


def test_the_share_in_episodes_is_of_the_values_that_count():
    curve = resumed(LOSS[1000:1400])
    curve.values[500] += 3
    (episode,) = review(curve).episodes
    assert review(curve).share_in_episodes == episode.duration / COUNT


def test_a_run_of_high_values_that_was_replaced_begins_no_episode():
    # Four high values before the crash, and after it a value only a little high.
    noise = 0.05 * np.random.default_rng(3).standard_normal(1200)
    before, again = np.append(1 + noise[:1000], [1.285] * 4), 1 + noise[990:]
    again[0] = 1.15
    steps = np.append(np.arange(1004), np.arange(990, 1200))
    values = np.append(before, again)
    detector = SpikeDetector()
    detector.extend(steps[:1004], values[:1004])
    assert detector.open_episode is None and detector.run_length == 4
    detector.extend(steps[1004:], values[1004:])
    assert detector.episodes == [] and detector.open_episode is None
