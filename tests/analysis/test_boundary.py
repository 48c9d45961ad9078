"""The fitted boundary of instability, and the penalised logistic regression behind it."""

import itertools
import math

import numpy as np
import pytest

from fastvim.analysis.boundary import Trial, fit_boundary
from fastvim.analysis.firth import firth_logistic


@pytest.mark.parametrize("first, second", [(2, 7), (0, 10), (5, 5)])
def test_two_groups_have_the_closed_form(first, second):
    """Firth's penalty adds one half to each cell of a two by two table, separated or not."""
    x = np.repeat([0.0, 1.0], 10)[:, None]
    y = np.concatenate([np.arange(10) < first, np.arange(10) < second]).astype(float)
    fit = firth_logistic(x, y)
    odds = [math.log((k + 0.5) / (10 - k + 0.5)) for k in (first, second)]
    assert fit.intercept == pytest.approx(odds[0], abs=1e-4)
    assert fit.coefficients[0] == pytest.approx(odds[1] - odds[0], abs=1e-4)
    low, high = fit.intervals[0]
    assert low < fit.coefficients[0] < high


def test_the_end_of_an_interval_is_that_of_the_higher_of_two_maxima():
    """Found by a search from many starts; the maximum nearest the estimate ends at 3.70."""
    x = np.log2(np.array(list(itertools.product((16, 32, 64, 128, 256), (1, 4, 16), (1, 4, 16)))))
    unstable = {(16, 1, 16), (16, 4, 4), (16, 4, 16), (16, 16, 4), (16, 16, 16)}
    unstable |= {(32, 4, 16), (32, 16, 16), (64, 16, 16)}
    y = np.array([tuple(2**row) in unstable for row in x], dtype=float)
    fit = firth_logistic(x, y)
    assert fit.coefficients[1] == pytest.approx(1.251, abs=1e-3)
    assert fit.intervals[1] == pytest.approx((0.1525, 4.152), abs=5e-3)


def grid(score):
    return [
        Trial(width, depth, lr, bool(score(width, depth, lr)))
        for width in (16, 32, 64, 128)
        for depth in (2, 4, 8, 16)
        for lr in (0.01, 0.04, 0.16)
    ]


def test_it_tells_width_from_depth():
    boundary = fit_boundary(grid(lambda width, depth, lr: width * lr > 2))
    assert boundary.follows("width") == "yes"
    assert boundary.follows("depth") == "unresolved"
    # Twice the width, half the critical rate.
    ratio = boundary.critical_lr(128, 4) / boundary.critical_lr(64, 4)
    assert ratio == pytest.approx(0.5, rel=0.15)


def test_without_both_outcomes_there_is_no_boundary():
    assert fit_boundary(grid(lambda *_: False)) is None
    assert fit_boundary(grid(lambda *_: True)) is None
    only_lr = [Trial(8, 2, lr, lr > 1) for lr in (0.5, 0.7, 2.0, 4.0)]
    assert fit_boundary(only_lr).follows("width") == "not varied"
