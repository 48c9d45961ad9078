"""`fastvim compare`: any runs or output folders side by side."""

import shlex
from pathlib import Path

import click


@click.command("compare")
@click.argument(
    "paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN_OR_DIR..."
)
@click.option(
    "--metric", type=click.Choice(["top1", "top5", "loss"]), default="top1", show_default=True
)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Also write table.md, table.csv and results.json there.",
)
def command(paths: tuple[Path, ...], metric: str, output: Path | None):
    """Compare runs with those of the first variant, paired by seed.

    \b
    Example:
      fastvim compare results/pooling-alternation-quick results/pooling-operator-quick
    """
    from fastvim.reports.comparison import compare
    from fastvim.reports.tables import write_tables
    from fastvim_cli.display import console
    from fastvim_cli.tables import print_results

    results = compare(paths, shlex.join(["fastvim", "compare", *map(str, paths)]), metric)
    if output is not None:
        write_tables(output, results)
    print_results(console(), results)
