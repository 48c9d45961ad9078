import pytest
import torch

from fastvim.errors import UserError
from fastvim.grid import TokenGrid

IMAGE = TokenGrid(("row", "col"), (3, 4))
CELLS = TokenGrid(("row", "col", "channel"), (3, 4, 2), unpooled=("channel",))
VIDEO = TokenGrid(("frame", "row", "col"), (2, 3, 4))


def coordinates(grid, place):
    found = {}
    for axis, size in zip(reversed(grid.axes), reversed(grid.sizes), strict=True):
        place, found[axis] = divmod(place, size)
    return found


@pytest.mark.parametrize(
    ("grid", "pooled", "order"),
    [
        (IMAGE, "col", ("row", "col")),
        (IMAGE, "row", ("col", "row")),
        (CELLS, "col", ("row", "col", "channel")),
        (CELLS, "row", ("col", "row", "channel")),
        (VIDEO, "frame", ("row", "col", "frame")),
        (VIDEO, "row", ("frame", "col", "row")),
    ],
)
def test_a_layout_visits_every_token_once_and_pools_one_axis(grid, pooled, order):
    assert grid.scan_order(pooled) == order
    layout = grid.layout(pooled)
    places = range(len(grid)) if layout.order is None else layout.order.tolist()
    visited = [tuple(coordinates(grid, place)[axis] for axis in order) for place in places]
    assert visited == sorted(visited) and len(set(visited)) == len(grid)
    groups = {}
    for place, step in zip(places, layout.steps.tolist(), strict=True):
        kept = tuple(coordinates(grid, place)[axis] for axis in order if axis != pooled)
        groups.setdefault(kept, set()).add(step)
    assert sorted(groups.values(), key=min) == [{step} for step in range(layout.n_steps)]
    # The steps come in scan order of what is left.
    assert [min(groups[kept]) for kept in sorted(groups)] == list(range(layout.n_steps))


def test_columns_are_pooled_in_place():
    layout = IMAGE.layout("col")
    assert layout.order is None and layout.steps.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_a_class_token_keeps_its_place():
    grid = TokenGrid(("row", "col"), (2, 2), class_token=2)
    assert grid.layout(None).order is None and len(grid) == 5
    assert grid.layout(None, base=("col", "row")).order.tolist() == [0, 3, 2, 1, 4]


def test_kept_tokens_belong_to_the_steps_of_the_full_grid():
    kept = torch.tensor([[0, 2, 5, 11], [3, 4, 8, 9]])
    layout = IMAGE.layout("row", kept=kept)
    for image in range(2):
        places = kept[image][layout.order[image].long()].tolist()
        assert [place % 4 for place in places] == layout.steps[image].tolist()
        assert places == sorted(places, key=lambda place: (place % 4, place // 4))
    assert layout.n_steps == 4


def test_unknown_axes_are_named():
    with pytest.raises(UserError, match=r"no axis 'cols' to pool, did you mean 'col'\?"):
        IMAGE.layout("cols")
    with pytest.raises(UserError, match="no axis 'channel'"):
        CELLS.layout("channel")
