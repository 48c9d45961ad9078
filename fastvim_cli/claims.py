"""`fastvim claims`: the ledger of the paper's claims."""

from pathlib import Path

import click

from fastvim_cli.options import NamedPath

DEFAULT = Path("results")


@click.command("claims")
@click.argument("directory", type=NamedPath(), default=DEFAULT, metavar="[DIR]")
@click.option("--json", "as_json", is_flag=True, help="Print the whole ledger as JSON.")
def command(directory: Path, as_json: bool):
    """List every claim: published value, our estimate, its scale, the verdict, how to reproduce.

    DIR is an output folder, or a folder of output folders.  [default: results]

    \b
    Example:
      fastvim claims results
    """
    import json

    from fastvim.analysis import ledger, load_claims
    from fastvim.reports.evidence import collect_results

    absent = directory == DEFAULT and not directory.exists()
    results, problems = ([], []) if absent else collect_results(directory)
    rows = ledger(load_claims(), results)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        _print(rows)
    for problem in problems:
        click.echo(f"skipped: {problem}", err=True)
    if not results:
        click.echo(f"No results under {directory} yet; run `fastvim ablate` first.", err=True)


def _print(rows: list[dict]) -> None:
    from rich.markup import escape

    from fastvim.analysis.claims import describe_scale
    from fastvim_cli.display import console, table

    shown = table("claim", "published", "estimate", "at", "verdict", "reproduce with")
    for row in rows:
        scale = describe_scale(row["scale"]) if row["scale"] else "-"
        verdict = row["verdict"] or row["state"]
        cells = (row["statement"], row["published"], _estimate(row), scale, verdict)
        shown.add_row(*map(escape, cells), escape(row["command"] or row["reason"]))
    console().print(shown)


def _estimate(row: dict) -> str:
    if row["estimate"] is None:
        return "-"
    text = f"{row['estimate']:.4g} {row['unit']}"
    if row["interval"] is None:
        return text
    low, high = row["interval"]
    return f"{text} [{low:.4g}, {high:.4g}]"
