"""What left its past first: rows whose answer is known."""

import numpy as np
import pytest

from fastvim.stability.attribution import Quantity, departures, first_nonfinite, summarise

STEPS = np.arange(101, 161)
ROWS = [Quantity("delta", "rms", 0), Quantity("residual", "rms", 1), Quantity("loss")]


@pytest.fixture
def values():
    """Noise of 5 % around 3, a drift of 1 % a step, and 0.1."""
    noise = np.exp(0.05 * np.random.default_rng(4).standard_normal((len(STEPS), 3)))
    return noise * np.stack([np.full(60, 3.0), 1.01 ** np.arange(60), np.full(60, 0.1)], axis=1)


def test_nothing_is_named_where_nothing_left_its_past(values):
    assert departures(STEPS, values, ROWS, start=160) == []
    assert first_nonfinite(STEPS, values, ROWS, start=160) is None


def test_the_first_to_leave_comes_first_with_its_growth_and_lead(values):
    values[56:, 1] *= [5, 40, 40, 40]
    values[58:, 0] *= 100
    values[59, 2] *= 20
    found = departures(STEPS, values, ROWS, start=160)
    assert [d.quantity for d in found] == [ROWS[1], ROWS[0], ROWS[2]]
    assert [d.steps_before for d in found] == [3, 1, 0]
    assert found[0].growth == pytest.approx(40, rel=0.2)
    assert str(found[0]).startswith("block 1, residual (rms), grew ")
    assert str(found[0]).endswith("-fold, from three steps before the loss")
    assert str(found[2]).endswith("in the step of the loss")


def test_growth_is_what_had_been_reached_when_the_loss_followed(values):
    values[56:, 1] *= [5, 40, 400, 4000]
    values[57:, 2] *= [3, 60, 900]
    found = departures(STEPS, values, ROWS, start=158)
    assert [(d.quantity, d.steps_before) for d in found] == [(ROWS[1], 1), (ROWS[2], 0)]
    assert [d.growth for d in found] == pytest.approx([40, 3], rel=0.2)
    assert summarise(found, None) == str(found[0])
    # The loss alone explains nothing.
    assert summarise(found[1:], None) is None


def test_of_one_step_the_furthest_comes_first(values):
    values[59, 0] *= 10
    values[59, 1] *= 1000
    assert [d.quantity for d in departures(STEPS, values, ROWS, start=160)] == [ROWS[1], ROWS[0]]


def test_a_drift_is_no_departure_and_a_jump_that_ended_is_not_the_start_of_another(values):
    values[47, 0] *= 4  # Back to its past, and then away for good.
    values[58:, 0] *= 9
    (found,) = departures(STEPS, values, ROWS, start=160)
    assert (found.quantity, found.step) == (ROWS[0], 159)


def test_no_scale_matters(values):
    values[58:, 1] *= 40
    (found,) = departures(STEPS, values, ROWS, start=160)
    (scaled,) = departures(STEPS, values * [1, 1e-20, 1], ROWS, start=160)
    assert scaled.height == pytest.approx(found.height, rel=1e-6)


def test_without_a_past_nothing_is_said(values):
    values[7, 1] *= 1000
    assert departures(STEPS[:8], values[:8], ROWS, start=108) == []
    assert departures([], np.empty((0, 3)), ROWS, start=1) == []
    assert first_nonfinite([], np.empty((0, 3)), ROWS, start=1) is None


def test_the_first_column_of_the_first_step_left_the_finite_range(values):
    values[20, 0] = np.inf  # A gradient that was skipped: it came back.
    values[58, 1:] = np.inf
    values[59, :] = np.nan
    found = first_nonfinite(STEPS, values, ROWS, start=160)
    assert (found.quantity, found.step, found.steps_before) == (ROWS[1], 159, 1)
    text = "block 1, residual (rms), left the finite range one step before the loss"
    assert str(found) == text
    # Nothing but NaN is a case, too.
    assert first_nonfinite([7], np.full((1, 3), np.nan), ROWS, start=7).quantity == ROWS[0]
