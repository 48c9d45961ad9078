"""Points of one cost stand beside each other, on an axis that holds them all; panels and legend."""

import matplotlib
import pytest
from matplotlib.figure import Figure

from fastvim.reports import figures
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
    labels = axes.get_xticklabels()
    if matplotlib.__version_info__ < (3, 11):  # It has many beyond the axis, which it doesn't draw.
        labels = [label for label in labels if low <= label.get_position()[0] <= high]
    assert all(label.get_text().replace(".", "").isdigit() for label in labels)


def test_a_figure_is_laid_out_once_for_all_its_files(study):
    figure = figures.draw_curves(study)
    figures.render(figure, "png", "curves")
    places = [axes.get_position().bounds for axes in figure.axes]
    outlines = [axes.get_tightbbox() for axes in figure.axes]
    assert max(box.y1 for box in outlines) <= figure.legends[0].get_window_extent().y0
    assert min(min(box.x0, box.y0) for box in outlines) >= 0
    figures.render(figure, "svg", "curves")
    assert [axes.get_position().bounds for axes in figure.axes] == places
