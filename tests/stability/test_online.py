"""The online detector never looks ahead and gives what the offline one gives."""

import json

import numpy as np
import pytest

from fastvim.stability import SpikeDetector, detect


def random_series(seed):
    """A curve with whatever may happen to one: spikes, shifts, NaN, resumes, odd steps."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 1500))
    trend = rng.uniform(0, 10) * np.exp(-np.arange(count) / rng.uniform(5, 500))
    noise = [rng.standard_normal(count), rng.standard_t(3, count), rng.exponential(size=count)]
    values = trend + 10 ** rng.uniform(-3, 0) * noise[seed % 3]
    for _ in range(rng.integers(0, 6)):
        at = rng.integers(0, count)
        values[at : at + rng.integers(1, 400)] += rng.uniform(-5, 20)
    values[rng.random(count) < rng.choice([0, 0.002])] = rng.choice([np.nan, np.inf, -np.inf])
    steps = np.cumsum(rng.integers(0, 50, count))
    if count > 50 and seed % 4 == 0:
        back = rng.integers(20, count)
        steps[back:] -= steps[back] - steps[back // 2]
    if seed % 5 == 0:
        values = np.round(values, 1)
    return steps, 10.0 ** rng.integers(-200, 200) * values


def pieces(detector, steps, values, cuts):
    """Feed the detector in blocks; its events."""
    events = []
    for part in np.split(np.arange(len(steps)), cuts):
        events += detector.extend(steps[part], values[part])
    return events + detector.finish()


@pytest.mark.parametrize("block", range(10))
def test_online_equals_offline(block):
    kinds = set()
    for seed in range(30 * block, 30 * block + 30):
        steps, values = random_series(seed)
        offline = detect(steps, values)
        online = SpikeDetector()
        events = []
        for step, value in zip(steps, values, strict=True):
            events += online.update(step, value)
        events += online.finish()
        assert repr(online.episodes) == repr(offline)
        # The events alone tell the same story.
        finished = []
        for event in events:
            if event.what == "finished":
                finished.append(event.episode)
            elif event.what == "replaced":
                finished = [e for e in finished if repr(e) != repr(event.episode)]
        assert repr(finished) == repr(offline)
        cuts = np.sort(np.random.default_rng(seed).integers(0, len(steps) + 1, 3))
        assert repr(pieces(SpikeDetector(), steps, values, cuts)) == repr(events)
        kinds |= {episode.kind for episode in offline}
    assert {"spike", "shift", "nonfinite"} <= kinds


def test_state_goes_through_json():
    for seed in range(40):
        steps, values = random_series(seed)
        whole = detect(steps, values)
        half = len(steps) // 2
        first = SpikeDetector()
        first.extend(steps[:half], values[:half])
        second = SpikeDetector()
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        second.extend(steps[half:], values[half:])
        second.finish()
        assert repr(second.episodes) == repr(whole)
