"""False verdicts over simulated experiments, family-wise, through the real code."""

import numpy as np
import pytest

from fastvim.analysis.claims import Claim
from fastvim.analysis.contrasts import judge_pairs
from fastvim.analysis.multiple import verdict_level

HERE, THERE = {"dataset": "here"}, {"dataset": "there"}


def claims(variants, scale):
    return [
        Claim(
            id=name,
            statement="s",
            source="s",
            kind="difference",
            metric="top1",
            unit="points",
            variant=name,
            baseline="base",
            direction="higher",
            published="+1",
            value=1.0,
            tolerance=0.5,
            scale=scale,
            experiments=("e",),
        )
        for name in variants
    ]


def simulate(families, n, variants, difference, scale, skew=None, spread=0.3, one_arm=False):
    """The set of verdicts of each simulated experiment; accuracies to 0.05 points."""
    rng = np.random.default_rng(n)
    names = [f"v{i}" for i in range(variants)]
    asked = claims(names, scale)
    pairs = [(name, "base") for name in names]
    k = 4 / skew**2 if skew else None
    shape = (families, variants + 1, n)
    noise = rng.normal(size=shape) if k is None else (k - rng.gamma(k, size=shape)) / np.sqrt(k)
    if one_arm:
        noise[:, 0] = 0
    runs = 80 + rng.normal(size=(families, 1, n)) + spread * noise
    runs[:, 1:] += difference
    runs = np.round(runs * 20) / 20
    found = []
    for experiment in runs:
        values = {
            name: dict(enumerate(v)) for name, v in zip(["base", *names], experiment, strict=True)
        }
        found.append({v.verdict for _, v, _ in judge_pairs(values, pairs, asked, HERE)})
    return found


def share(found, verdict):
    return np.mean([verdict in verdicts for verdicts in found])


@pytest.mark.parametrize(
    ("n", "variants", "skew"),
    [(2, 1, None), (3, 1, 0.7), (3, 3, None), (3, 3, 0.7), (5, 2, None), (10, 1, 0.7)],
)
def test_no_difference(n, variants, skew):
    """`consistent` with a claimed gain is false, and so, of a gain next to nothing, is
    `contradicted`."""
    found = simulate(500, n, variants, 0.0, THERE, skew)
    assert share(found, "consistent") < 0.05
    assert share(found, "contradicted") < 0.05


@pytest.mark.parametrize(("n", "variants"), [(4, 1), (5, 4), (10, 4)])
def test_skewed_noise_of_the_variants_alone(n, variants):
    """The hard case: judged at 95 % without more, 6 to 8 % of these verdicts are false."""
    found = simulate(1500, n, variants, 0.0, THERE, 1.0, one_arm=True)
    assert share(found, "consistent") < 0.05
    assert share(found, "contradicted") < 0.05


def test_a_family_is_judged_at_the_level_of_its_strictest_comparison():
    values = {"base": {0: 80.0, 1: 80.1, 2: 80.2, 3: 80.0}, "a": {0: 81.0, 1: 81.2, 2: 81.4}}
    values["b"] = {0: 81.0, 1: 81.4, 2: 81.1, 3: 81.0}
    assert verdict_level(3, 2) > verdict_level(4, 1) > verdict_level(4, 2)
    judged = judge_pairs(values, [("a", "base"), ("b", "base")], claims(["a", "b"], THERE), HERE)
    assert [c.verdict_level for _, _, c in judged] == pytest.approx([0.02, 0.02])
    assert all("judged at 98 %" in v.reason for _, v, _ in judged)


@pytest.mark.parametrize("edge", [0.5, 1.5])
@pytest.mark.parametrize(("n", "variants"), [(2, 1), (3, 3)])
def test_true_magnitude_at_the_edge_of_the_tolerance(n, variants, edge):
    found = simulate(500, n, variants, edge, HERE)
    assert share(found, "contradicted") < 0.05


def test_true_differences_are_found():
    """A method that never decides has no false verdicts either."""
    found = simulate(150, 5, 2, 1.0, HERE)
    assert share(found, "consistent") > 0.8
    assert share(simulate(150, 5, 2, -1.0, HERE), "contradicted") > 0.95
    assert share(simulate(300, 2, 1, 1.0, THERE), "unresolved") > 0.5
