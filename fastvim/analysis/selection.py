"""Choose on validation, report on test."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from fastvim.analysis.paired import Values
from fastvim.errors import UserError


@dataclass(frozen=True)
class Selection:
    """The chosen candidate. `validation` is the mean it was chosen by and is optimistic;
    `test` is the mean to report, `test_values` its values by seed. `excluded` gives reasons."""

    chosen: str
    validation: float
    test: float
    test_values: dict[int, float]
    seeds: tuple[int, ...]
    excluded: dict[str, str]

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        values = asdict(self)
        values["seeds"] = list(self.seeds)
        values["test_values"] = {str(seed): v for seed, v in self.test_values.items()}
        return values


def select_on_validation(
    validation: Mapping[str, Values], test: Mapping[str, Values], *, higher_is_better: bool = True
) -> Selection:
    """Choose among candidates (learning rates, checkpoints) by their mean on validation.

    `validation` and `test` map candidate -> seed -> value. Test values are looked at only for
    the candidate already chosen: the best of k test results is better than any of them deserves
    (the same holds for the chosen validation mean, so that is not the figure to report).
    Candidates are compared over the seeds that all of them have; one with a diverged seed (None
    or non-finite) is excluded and named. Ties go to the candidate named first. Raises UserError
    when nothing is left to choose from, or the chosen one has no test values.
    """
    if not validation:
        raise UserError("no candidate was given to select from")
    excluded, usable = {}, {}
    for name, values in validation.items():
        diverged = sorted(s for s, v in values.items() if v is None or not np.isfinite(v))
        if diverged:
            excluded[name] = f"diverged in seed {', '.join(map(str, diverged))}"
        elif not values:
            excluded[name] = "no validation values"
        else:
            usable[name] = values
    if not usable:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in excluded.items())
        raise UserError(f"no candidate can be selected ({reasons})")
    seeds = sorted(set.intersection(*(set(values) for values in usable.values())))
    if not seeds:
        raise UserError(
            f"the candidates {', '.join(usable)} share no seed: their means cannot be compared"
        )
    means = {name: float(np.mean([v[s] for s in seeds])) for name, v in usable.items()}
    chosen = (max if higher_is_better else min)(means, key=means.__getitem__)
    figures = {
        seed: float(value)
        for seed, value in sorted(test.get(chosen, {}).items())
        if value is not None and np.isfinite(value)
    }
    if not figures:
        raise UserError(f"{chosen!r} was selected on validation but has no test values")
    return Selection(
        chosen=chosen,
        validation=means[chosen],
        test=float(np.mean(list(figures.values()))),
        test_values=figures,
        seeds=tuple(seeds),
        excluded=excluded,
    )
