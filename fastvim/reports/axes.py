"""How an axis of costs is scaled and marked."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator


def number_ticks(axis: Axis, subs: Sequence[float] = (1, 2, 5)) -> None:
    """Mark a logarithmic axis at `subs` times the powers of ten, by plain numbers."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:g}")


def side_by_side(axes: Axes, costs: Mapping[str, float]) -> dict[str, float]:
    """Set the axis's scale and range; where each point stands, beside those of the same cost.

    The scale is logarithmic where the costs differ more than threefold. The range is never less
    than a fifth of the cost: smaller differences should look small.
    """
    low, high = min(costs.values()), max(costs.values())
    logarithmic = high > 3 * low
    if logarithmic:
        axes.set_xscale("log")
        number_ticks(axes.xaxis, (1, 2, 5) if high < 10 * low else (1, 3))
        costs = {name: math.log10(cost) for name, cost in costs.items()}
        low, high = math.log10(low), math.log10(high)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    half = 0.6 * (high - low) if logarithmic else max(0.6 * (high - low), 0.1 * high)
    places = {}
    for name, cost in costs.items():
        near = [other for other, x in costs.items() if abs(x - cost) < 0.02 * half]
        places[name] = cost + (near.index(name) - (len(near) - 1) / 2) * 0.07 * half
    ends = [(low + high) / 2 - half, (low + high) / 2 + half]
    if logarithmic:
        places = {name: 10**place for name, place in places.items()}
        ends = [10**end for end in ends]
    axes.set_xlim(*ends)
    return places
