"""Each class of episode on a curve that has it, and nothing on curves that have none."""

import numpy as np
import pytest

from fastvim.errors import UserError
from fastvim.stability import Settings, SpikeDetector, detect

COUNT = 3000
X = np.arange(COUNT)
TREND = 2 + 8 * np.exp(-X / 150)
NOISE = 0.05 * np.random.default_rng(1).standard_normal(COUNT)


def only(values, steps=X):
    """The one episode of a curve."""
    episodes = detect(steps, values)
    assert len(episodes) == 1, episodes
    return episodes[0]


def bump(at, height, decay):
    return (at <= X) * height * np.exp(-np.maximum(X - at, 0) / decay)


def test_spike_is_measured():
    episode = only(TREND + NOISE + bump(1500, 2, 20))
    assert episode.kind == "spike" and episode.recovered
    assert episode.start_step == 1500 and 1500 <= episode.peak_step <= 1503
    # exp(-n / 20) falls below 2.5 deviations after 55 values.
    assert 1540 <= episode.end_step <= 1570
    assert episode.duration == episode.end_step - 1500 + 1
    assert episode.height_value == pytest.approx(2, abs=0.15)
    assert episode.height == pytest.approx(2 / 0.05, rel=0.2)
    assert episode.baseline == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("at", [20, 60, 300])
def test_spikes_are_found_from_the_first_steps(at):
    assert only(TREND + NOISE + bump(at, 5, 3)).start_step == at


def test_a_spike_does_not_hide_the_next():
    values = TREND + NOISE + bump(1500, 50, 2) + bump(1530, 0.8, 1)
    assert [episode.peak_step for episode in detect(X, values)] == [1500, 1530]


def test_shift_plateau_divergence():
    step = (X >= 1500).astype(float)
    assert only(TREND + NOISE + 0.7 * step).kind == "shift"
    plateau = only(TREND + NOISE + 0.7 * step + bump(1500, 4, 10))
    assert plateau.kind == "plateau" and not plateau.recovered
    climb = 6 * (1 - np.exp(-np.maximum(X - 1500, 0) / 100))
    assert only(TREND + NOISE + climb).kind == "divergence"
    slow = 0.0005 * np.maximum(X - 2000, 0) ** 1.5
    episode = only(TREND + NOISE + slow)
    assert episode.kind == "divergence" and episode.peak_step > 2900
    end = 0.002 * np.maximum(X - 2900, 0) ** 2
    assert only(TREND + NOISE + end).kind == "divergence"


def test_a_divergence_that_ends_in_nan_is_one_episode():
    values = TREND + NOISE + 0.002 * np.maximum(X - 2800, 0) ** 2
    values[2900:] = np.nan
    episode = only(values)
    assert episode.kind == "nonfinite" and episode.start_step < 2820 < episode.peak_step == 2900
    assert episode.height == np.inf and not episode.recovered and episode.end_step == 2999
    assert episode.to_dict()["height"] is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_at_once_at_the_start_and_alone(bad):
    values = TREND + NOISE
    values[[0, 1, 2000]] = bad
    first, second = detect(X, values)
    assert (first.start_step, first.end_step, first.recovered) == (0, 1, True)
    assert (second.start_step, second.duration, second.kind) == (2000, 1, "nonfinite")
    assert only(np.full(COUNT, bad)).recovered is False


@pytest.mark.parametrize(
    "values",
    [
        TREND + NOISE,
        TREND + NOISE - 1.5 * (X > 1500),
        TREND + NOISE * (4 - 3.5 * X / COUNT),
        2 + 2 * np.exp(-X / 600) - 0.8 * (X > 1000) - 0.4 * (X > 2000) + NOISE,
        np.minimum(1, X / 200) + np.exp(-X / 800) + 4 * np.abs(NOISE),
        np.where(X < 80, 6.9 + 0.004 * X, 2 + 5 * np.exp(-(X - 80) / 200)) + NOISE,
        np.round(TREND + NOISE, 1),
        TREND,
        np.full(COUNT, 3.0),
        np.zeros(COUNT),
    ],
)
def test_no_episode_where_there_is_none(values):
    assert detect(X, values) == []


def test_a_flat_curve_with_spikes():
    values = np.full(COUNT, 1.0)
    values[[700, 1900]] = 3, 10
    assert [episode.peak_step for episode in detect(X, values)] == [700, 1900]


@pytest.mark.parametrize("factor", [2.0**-600, 2.0**500, 1e-3])
def test_another_unit_gives_the_same_episodes(factor):
    values = TREND + NOISE + bump(40, 3, 3) + bump(900, 0.7, 30) + 0.7 * (X > 2000)
    plain, scaled = detect(X, values), detect(X, factor * values)
    assert len(plain) == 3
    for one, other in zip(plain, scaled, strict=True):
        assert (one.start_step, one.end_step, one.kind) == (
            other.start_step,
            other.end_step,
            other.kind,
        )
        assert other.height == pytest.approx(one.height)
        assert other.height_value == pytest.approx(factor * one.height_value)


def test_another_origin_gives_the_same_episodes():
    values = TREND + NOISE + bump(40, 3, 3) + bump(900, 0.7, 30) + 0.7 * (X > 2000)
    spans = [(e.start_step, e.end_step, e.kind) for e in detect(X, values)]
    assert [(e.start_step, e.end_step, e.kind) for e in detect(X, values - 1e4)] == spans


def test_a_fall_of_one_value_blinds_nothing():
    values = TREND + NOISE + bump(1510, 1, 1)
    values[1500] -= 500
    assert only(values).start_step == 1510


def test_the_resolution_of_a_log_is_no_noise():
    assert detect(range(220), [0.05] * 20 + [0.04, 0.06, 0.05, 0.05] * 50) == []


def test_a_rise_that_goes_on_is_a_divergence_before_half_is_lost():
    values = 2 + 80 * np.exp(-X / 150) + NOISE + 0.02 * np.maximum(X - 2300, 0)
    assert only(values).kind == "divergence"


def test_steps_do_not_matter():
    values = TREND + NOISE + bump(900, 3, 5)
    steps = np.cumsum(np.random.default_rng(0).integers(0, 1000, COUNT))
    assert only(values, steps).start_step == steps[900]


def test_a_resumed_run_replaces_what_it_went_back_over():
    before = (TREND + NOISE + bump(1200, 5, 3) + bump(1900, 5, 3))[:2000]
    after = (TREND + NOISE)[1500:]
    steps = np.concatenate([X[:2000], X[1500:]])
    detector = SpikeDetector()
    events = detector.extend(steps, np.concatenate([before, after]))
    whats = [(event.what, event.episode.start_step) for event in events]
    assert ("finished", 1900) in whats and whats[-1] == ("replaced", 1900)
    assert [episode.start_step for episode in detector.episodes] == [1200]


@pytest.mark.parametrize("back", [0, 5, 60, 250])
def test_a_run_that_goes_back_up_its_falling_loss_is_no_episode(back):
    falling = TREND[0] + 4 * np.exp(-X / 150) + NOISE
    steps = np.concatenate([X[:600], X[back:]])
    again = np.concatenate([falling[:600], falling[back:] + bump(1200, 3, 5)[back:]])
    assert [episode.start_step for episode in detect(steps, again)] == [1200]


def test_started_comes_with_the_outlier():
    detector = SpikeDetector()
    values = TREND + NOISE + bump(1500, 2, 20)
    for step in range(1500):
        assert detector.update(step, values[step]) == []
    assert [event.what for event in detector.update(1500, values[1500])] == ["started"]
    assert detector.open_episode.start_step == 1500


def test_bad_input():
    with pytest.raises(UserError, match="one length"):
        detect([1, 2], [1.0])
    with pytest.raises(UserError, match="steps must be numbers, got nan"):
        detect([1, np.nan], [1.0, 2.0])
    with pytest.raises(UserError, match="calm < threshold"):
        Settings(threshold=2.0)
    with pytest.raises(UserError, match="patience"):
        Settings(patience=0)
    assert detect([], []) == []
