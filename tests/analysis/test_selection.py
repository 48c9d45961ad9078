"""Chosen on validation, reported on test."""

import json
import math

import numpy as np
import pytest

from fastvim.analysis.selection import select_on_validation
from fastvim.errors import UserError


def test_best_on_validation_is_reported_on_test_even_if_another_tests_better():
    s = select_on_validation(
        {"small-lr": {0: 80.0, 1: 81.0}, "large-lr": {0: 82.0, 1: 81.0}},
        {"small-lr": {0: 90.0, 1: 90.0}, "large-lr": {0: 79.0, 1: 80.0}},
    )
    assert (s.chosen, s.validation, s.test) == ("large-lr", 81.5, 79.5)
    assert s.test_values == {0: 79.0, 1: 80.0}
    json.dumps(s.to_dict(), allow_nan=False)


def test_selection_on_validation_keeps_test_unbiased():
    """Forty equal candidates: the chosen one's validation mean is optimistic, its test mean not."""
    rng = np.random.default_rng(0)
    gaps = []
    for _ in range(300):
        noise = rng.normal(size=(2, 40))
        sides = [{str(i): {0: side[i]} for i in range(40)} for side in noise]
        s = select_on_validation(*sides)
        gaps.append((s.validation, s.test))
    validation, test = np.mean(gaps, axis=0)
    assert validation > 1.9 and abs(test) < 0.15


def test_lower_is_better_ties_and_common_seeds():
    losses = {"a": {0: 1.0, 1: 3.0}, "b": {0: 1.0, 2: 0.1}}
    s = select_on_validation(losses, {"a": {0: 5.0}}, higher_is_better=False)
    assert (s.chosen, s.seeds) == ("a", (0,))


def test_diverged_candidates_are_excluded_by_name():
    values = {"a": {0: 99.0, 1: None}, "b": {0: 70.0, 1: 71.0}, "c": {0: math.nan, 1: 90.0}}
    s = select_on_validation(values, {"b": {0: 70.0, 1: None}})
    assert s.chosen == "b" and s.test_values == {0: 70.0}
    assert s.excluded == {"a": "diverged in seed 1", "c": "diverged in seed 0"}


@pytest.mark.parametrize(
    ("validation", "test", "message"),
    [
        ({}, {}, "no candidate"),
        ({"a": {0: None}, "b": {}}, {}, "a: diverged in seed 0; b: no validation values"),
        ({"a": {0: 1.0}, "b": {1: 1.0}}, {}, "share no seed"),
        ({"a": {0: 1.0}}, {"b": {0: 1.0}}, "'a' was selected on validation but has no test"),
    ],
)
def test_bad_input(validation, test, message):
    with pytest.raises(UserError, match=message):
        select_on_validation(validation, test)
