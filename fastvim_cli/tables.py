"""The comparison on the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

if TYPE_CHECKING:
    from fastvim.experiments.record import RecordedPlan
    from fastvim.reports.study import Study


def print_results(out: Console, results: Mapping[str, Any]) -> None:
    """The question, the table, and what must be known beside it."""
    from fastvim.reports.tables import columns, notes, rows
    from fastvim_cli.display import table

    heads = columns(results)
    grid = table(heads[0], *(f">{head}" for head in heads[1:-1]), heads[-1])
    for row in rows(results):
        grid.add_row(*map(escape, row))
    out.print(f"\n{results['experiment']}, profile {results['profile']}", style="bold")
    if results["question"]:
        out.print(results["question"], markup=False)
    out.print("")
    out.print(grid)
    out.print("")
    for note in notes(results):
        out.print(Padding(escape(note), (0, 0, 0, 2)))


def print_differences(out: Console, study: "Study") -> None:
    """The settings in which the variants differ."""
    from fastvim.reports.page import setting_text
    from fastvim_cli.display import table

    differing, _ = study.settings()
    if not differing:
        out.print("\nThe variants have the same settings.")
        return
    grid = table("setting", *map(escape, study.variants))
    for name, values in differing.items():
        grid.add_row(escape(name), *(escape(setting_text(value)) for value in values))
    out.print("")
    out.print(grid)


def print_written(folder: Path, written: Sequence[Path]) -> None:
    """Which files were written to `folder`."""
    names = ", ".join(str(path.relative_to(folder)) for path in written)
    click.echo(f"\nWritten to {folder}: {names}")


def print_replaced(plan: "RecordedPlan", output: Path) -> None:
    """Say it where the plan that was reported is no longer that of its folder of runs."""
    from fastvim.experiments.record import replaced_by

    command = replaced_by(output, plan)
    if command is not None:
        click.echo(
            f"\nThis reports what was asked for here; meanwhile {output} was given another plan, "
            f"which `fastvim report` and `fastvim status` show: {command}",
            err=True,
        )
