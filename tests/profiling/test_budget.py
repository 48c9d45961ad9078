"""A study's budget is spent by what calls are expected to take; time here stands still."""

import pytest
import torch

from fastvim.profiling import budget
from fastvim.profiling.budget import PARTS, Budget, expected_seconds
from fastvim.profiling.measurement import NO_TIME, Measurement, with_size
from fastvim.profiling.study import Study
from fastvim.profiling.timing import Timing

HOUR = 3600.0
MODELS = ["vim_femto", "fastvim_femto"]


def measured(model, resolution, batch=1, parts=1e-6, **seconds):
    row = Measurement(model, resolution, batch)
    row.seconds = {mode: Timing.of([value]) for mode, value in seconds.items()}
    row.stages = {"scan": Timing.of([parts])}
    return row


def test_what_is_set_aside_is_not_free(monkeypatch):
    monkeypatch.setattr(budget.time, "monotonic", lambda: 100.0)
    minute = Budget(1)
    minute.keep(("vim", "forward"), 20.0)
    minute.keep(("vim", "training"), 30.0)
    assert (minute.left(), minute.free()) == (60, 10)
    minute.release(("vim", "forward"))
    minute.release(("vim", "never kept"))
    assert (minute.left(), minute.free()) == (60, 30)


@pytest.mark.parametrize(
    ("sizes", "seconds"),
    [
        ([], 0.0),
        ([(64, 1, 0.5)], 4 * 0.5),
        ([(64, 8, 4.0)], 4 * 0.5),
        ([(32, 1, 1.0), (64, 1, 4.0)], 16.0),
        ([(32, 1, 1.0), (64, 1, 8.0)], 8 * 8.0),  # 4 ** 1.5
        ([(32, 1, 1.0), (64, 1, 16.0)], 256.0),
        ([(32, 1, 1.0), (64, 1, 900.0)], 16 * 900.0),  # No steeper than attention.
        ([(32, 1, 1.0), (64, 1, 0.9)], 4 * 0.9),  # Nor flatter than the pixels.
        ([(16, 1, 9.0), (32, 1, 1.0), (64, 1, 8.0)], 8 * 8.0),
        ([(64, 1, 8.0), (32, 1, 1.0)], 8 * 8.0),
    ],
)
def test_time_is_expected_to_grow_as_it_did(sizes, seconds):
    known = [measured("vim", size, batch, forward=each) for size, batch, each in sizes]
    known.append(measured("other", 64, forward=77.0))
    row = Measurement("vim", 128, 1)
    assert expected_seconds(row, "forward", known) == pytest.approx(seconds)
    assert expected_seconds(row, "training", known) == 0
    row = Measurement("vim", 128, 3)
    assert expected_seconds(row, "forward", known) == pytest.approx(3 * seconds)


def test_parts_are_expected_by_their_sum():
    assert expected_seconds(Measurement("vim", 28, 1), PARTS, [measured("vim", 14, parts=2)]) == 8


def test_a_size_measured_again_takes_the_place_of_what_it_was():
    small, part = measured("vim", 14), measured("vim", 28, forward=1.0)
    part.add_problem(f"{NO_TIME} (training)")
    large, whole = measured("vim", 56), measured("vim", 28, forward=2.0, training=3.0)
    assert with_size([small, part, large], [whole]) == [small, whole, large]
    assert with_size([small], [part]) == [small, part]
    nothing = Measurement("vim", 28, 1, problem=NO_TIME)
    assert with_size([small, part], [nothing]) == [small, part]
    assert [m.lacked_time for m in (small, part, whole, nothing)] == [False, True, False, True]


def study(before):
    study = Study(MODELS, torch.device("cpu"), batch=1, repeats=1, minutes=30)
    ((vim, fast),) = study.measure([28], before)
    return vim, fast


def test_only_the_calls_that_would_not_fit_are_left_out():
    vim, fast = study([measured("vim_femto", 14, forward=1e-6, training=HOUR)])
    assert vim.problem == f"{NO_TIME} (training)" and set(vim.seconds) == {"forward"}
    assert vim.gflops and vim.stages
    assert fast.problem is None and set(fast.seconds) == {"forward", "training"}


def test_parts_that_would_not_fit_do_not_take_the_time_of_the_models():
    vim, fast = study([measured("vim_femto", 14, parts=HOUR, forward=1e-6, training=1e-6)])
    assert vim.problem == f"{NO_TIME} ({PARTS})" and not vim.stages
    assert set(vim.seconds) == {"forward", "training"}
    assert fast.problem is None and fast.stages


def test_what_is_kept_for_one_model_is_not_spent_on_the_next(monkeypatch):
    """A first call of vim seems to take 20 of the 30 minutes; it is yet to be timed."""
    real = Budget.keep

    def keep(self, key, seconds):
        real(self, key, 1200.0 if key == ("vim_femto", "forward") else seconds)

    monkeypatch.setattr(Budget, "keep", keep)
    vim, fast = study([measured("fastvim_femto", 14, parts=60.0, forward=20.0, training=100.0)])
    assert vim.problem is None and set(vim.seconds) == {"forward", "training"}
    assert fast.problem == f"{NO_TIME} (training)" and set(fast.seconds) == {"forward"}
    assert fast.stages  # 3 * 4 * 60 seconds of parts: there are, once forward passes are timed.
