"""A curve as read from a log, and which of a log's tags are losses."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, field

import numpy as np

from fastvim.errors import UserError, nearest

LOSS = re.compile(
    r"(?:^|[^a-z])(?:loss(?:es)?|nll|xent|cross[_ -]?entropy|perplexity|ppl|elbo|objective)"
    r"(?:$|[^a-z])|loss$"
)
# A loss by name that is none: what a loss is scaled with, or a band around its curve.
NO_LOSS = re.compile(
    r"(?:^|[^a-z])(?:scale|scaler|weights?|coef|ratio|time|count|best)(?:$|[^a-z])|__min$|__max$"
)
# Bins of a curve that is drawn.
BINS = 1500


@dataclass
class LoggedCurve:
    """A tag of a log: steps and values (n,) in the order they were logged.

    `lost` says in words what of the file could not be read.
    """

    path: str
    tag: str
    steps: np.ndarray
    values: np.ndarray
    lost: list[str] = field(default_factory=list)


def is_loss(tag: str) -> bool:
    """Whether a tag is a loss by its name: train/loss, val_loss, mlm-loss-step, Total Loss."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", tag).lower()
    return bool(LOSS.search(name)) and not NO_LOSS.search(name)


def choose_tags(available: list[str], wanted: tuple[str, ...], source: str) -> list[str]:
    """The tags to review: those `wanted` (names or shell patterns), or every loss.

    Raises UserError, listing what there is, when none is left. `source` names the log.
    """
    if not wanted:
        chosen = [tag for tag in available if is_loss(tag)]
        if not chosen and len(available) == 1:
            chosen = available
        if not chosen:
            raise UserError(
                f"{source}: no tag is a loss by its name; choose with --tag from: "
                f"{_listed(available)}"
            )
        return chosen
    chosen = []
    for pattern in wanted:
        found = [tag for tag in available if tag == pattern]
        found = found or [tag for tag in available if fnmatch.fnmatchcase(tag, pattern)]
        if not found:
            raise UserError(
                f"{source}: no tag {pattern!r}; there are: {_listed(available)}"
                f"{nearest(pattern, available)}"
            )
        chosen += [tag for tag in found if tag not in chosen]
    return chosen


def _listed(tags: list[str], most: int = 30) -> str:
    shown = ", ".join(sorted(tags)[:most])
    return shown + (f" and {len(tags) - most} more" if len(tags) > most else "")


def current(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values that count, (n,) each: without those that a resumed run went back over."""
    resumed = np.full(len(steps) + 1, np.inf)
    back = np.flatnonzero(steps[1:] < steps[:-1]) + 1
    resumed[back] = steps[back]
    kept = steps < np.minimum.accumulate(resumed[::-1])[::-1][1:]
    return steps[kept], values[kept]


def envelope(
    steps: np.ndarray, values: np.ndarray, bins: int = BINS
) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest value of each of `bins` bins, in order: a line that looks the
    same. (n,) each, all of them where there are no more than that.

    No peak is lost, and a page with a million values stays small.
    """
    if len(values) <= 2 * bins:
        return steps, values
    edges = np.linspace(0, len(values), bins + 1).astype(int)[:-1]
    spans = np.diff(np.append(edges, len(values)))
    numbers = np.repeat(np.arange(bins), spans)
    order = np.lexsort((values, numbers))
    least, greatest = order[edges], order[edges + spans - 1]
    places = np.sort(np.stack([least, greatest], axis=1), axis=1).reshape(-1)
    return steps[places], values[places]
