"""The comparison on the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding


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
