"""`fastvim show`: the resolved plan and where each value came from."""

from pathlib import Path

import click

from fastvim_cli.options import (
    experiment_argument,
    plan_options,
    planned,
    seeds_option,
    variants_option,
)


@click.command("show")
@experiment_argument
@plan_options
@seeds_option
@variants_option
def command(experiment, more, profile, sets, grid, seeds, variants):
    """Show the resolved plan: every value and where it came from. Nothing is trained.

    \b
    Examples:
      fastvim show pooling-alternation
      fastvim show post-ssm-norm --profile paper --set data.root=/data/imagenet
    """
    plan = planned(experiment, profile, sets, more, grid, seeds, variants)
    from fastvim_cli.display import console

    out = console()
    source = plan.experiment
    out.print(f"{source.name}: {source.question}".removesuffix(": "), markup=False)
    profiles = ", ".join(source.profiles) or "none"
    out.print(f"profile {plan.profile} (there are {profiles}); from {source.file}", markup=False)
    seeds_text = ", ".join(map(str, plan.seeds))
    count = len(plan.variants) * len(plan.seeds)
    out.print(f"{len(plan.variants)} variants x seeds {seeds_text} = {count} runs\n", markup=False)
    flat = {variant.name: variant.config.flat() for variant in plan.variants}
    keys = list(dict.fromkeys(key for values in flat.values() for key in values))
    missing = object()
    shared = [
        key
        for key in keys
        if key in _first(flat)
        if all(v.get(key, missing) == _first(flat)[key] for v in flat.values())
    ]
    out.print(_variants(plan, flat, [key for key in keys if key not in shared]))
    out.print("")
    out.print(_values(plan.variants[0], flat, shared))


def _first(flat: dict[str, dict]) -> dict:
    return next(iter(flat.values()))


def _variants(plan, flat: dict[str, dict], keys: list[str]):
    from rich.markup import escape

    from fastvim_cli.display import table

    rows = table("variant", "compared with", *keys)
    for variant in plan.variants:
        cells = []
        for key in keys:
            if key in flat[variant.name]:
                origin = variant.origins[key]
                cells.append(f"{_text(flat[variant.name][key])}  ({origin.layer})")
            else:
                cells.append("-")
        rows.add_row(variant.name, variant.baseline or "-", *map(escape, cells))
    return rows


def _values(variant, flat: dict[str, dict], keys: list[str]):
    from rich.markup import escape

    from fastvim_cli.display import table

    rows = table("shared value", "", "from", "at")
    for key in keys:
        origin = variant.origins[key]
        path, colon, position = origin.place.partition(":")
        place = f"{Path(path).name}{colon}{position}" if colon else origin.place
        rows.add_row(*map(escape, (key, _text(flat[variant.name][key]), origin.layer, place)))
    return rows


def _text(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return str(value)
