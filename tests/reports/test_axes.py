"""Points of one cost stand beside each other, on an axis that holds them all."""

import pytest
from matplotlib.figure import Figure

from fastvim.reports.axes import side_by_side


@pytest.mark.parametrize(
    ("costs", "scale"),
    [
        ([0.0011, 0.0011, 0.0011, 1.0], "log"),
        ([2.0, 2.0, 7.0], "log"),
        ([2.0, 2.0, 3.0], "linear"),
        ([5.0, 5.0, 5.0], "linear"),
    ],
)
def test_points_stand_apart_within_the_axis(costs, scale):
    axes = Figure().subplots()
    named = {f"variant-{i}": cost for i, cost in enumerate(costs)}
    places = side_by_side(axes, named)
    low, high = axes.get_xlim()
    assert axes.get_xscale() == scale
    assert all(low < place < high for place in places.values())
    assert len(set(places.values())) == len(costs)
    for name, place in places.items():
        assert place == pytest.approx(named[name], rel=0.6)
    assert all(label.get_text().replace(".", "").isdigit() for label in axes.get_xticklabels())
