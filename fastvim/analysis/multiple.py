"""Several comparisons at once: Holm's correction, and the level that verdicts are held to."""

from collections.abc import Mapping


def holm(p_values: Mapping) -> dict:
    """Holm's adjusted p-values (Holm 1979), under the names given.

    adjusted p of rank i (0 the smallest) = max over j <= i of min(1, (m - j) p_j). A comparison
    without a p-value (None) still counts in m, as if p were 1, and stays None.
    """
    ordered = sorted(p_values, key=lambda name: _or_one(p_values[name]))
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - rank) * _or_one(p_values[name])))
        adjusted[name] = None if p_values[name] is None else largest
    return {name: adjusted[name] for name in p_values}


def holm_levels(p_values: Mapping, alpha: float = 0.05) -> dict:
    """The level each hypothesis is tested at in Holm's procedure.

    alpha / (m - i) at rank i while hypotheses fall; from the first that stands, its level. The
    interval of confidence 1 - level excludes zero exactly where the adjusted p is below alpha.
    """
    ordered = sorted(p_values, key=lambda name: _or_one(p_values[name]))
    levels, standing = {}, None
    for rank, name in enumerate(ordered):
        level = alpha / (len(ordered) - rank)
        if standing is None and _or_one(p_values[name]) >= level:
            standing = level
        levels[name] = level if standing is None else standing
    return {name: levels[name] for name in p_values}


def verdict_level(seeds: int, family: int, alpha: float = 0.05) -> float:
    """The level a family of `family` comparisons over `seeds` seeds is judged at.

    Stricter than `alpha`, so that false verdicts stay below it for skewed noise too, even where
    one variant has all of it: a t-test then errs on one side, the more the further out its tail
    is used (docs/statistics.md has the simulation that these factors come from).
    """
    if seeds <= 2:
        return alpha
    if seeds == 3:
        return 0.8 * alpha
    return (0.6 if family == 1 else 0.4) * alpha


def _or_one(p_value: float | None) -> float:
    return 1.0 if p_value is None else p_value
