"""`fastvim report`: the tables of an output folder, from its runs alone."""

from pathlib import Path

import click


@click.command("report")
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
def command(directory: Path):
    """Rebuild results.json, table.csv and table.md of an output folder from its run directories.

    \b
    Example:
      fastvim report results/pooling-alternation-quick
    """
    from fastvim.reports.gather import gather
    from fastvim.reports.tables import write_tables
    from fastvim_cli.display import console
    from fastvim_cli.tables import print_results

    results = gather(directory)
    write_tables(directory, results)
    print_results(console(), results)
    click.echo(f"\nWritten to {directory}: table.md, table.csv, results.json")
