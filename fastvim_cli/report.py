"""`fastvim report`: everything that follows from the runs of an output folder."""

from pathlib import Path

import click

from fastvim_cli.options import NamedPath, format_option


@click.command("report")
@click.argument("directory", type=NamedPath(), metavar="DIR")
@format_option
def command(directory: Path, formats: str | None):
    """Rebuild the report of an output folder from its run directories.

    Writes report.html (one page, needs nothing else), table.md, table.csv, table.tex (booktabs),
    results.json and the plots into DIR, and what TensorBoard shows beside the curves into
    DIR/runs. Runs that are missing or damaged are named and not counted.

    \b
    Examples:
      fastvim report results/pooling-alternation-quick
      fastvim report results/pooling-alternation-quick --format latex,svg
    """
    from fastvim.experiments.record import folder_of_runs
    from fastvim.reports.comparison import study_of
    from fastvim.reports.tensorboard import write_board
    from fastvim.reports.write import parse_formats, write_report
    from fastvim_cli.display import console
    from fastvim_cli.tables import print_results, print_written

    chosen = parse_formats(formats)
    directory = folder_of_runs(directory)
    study = study_of(directory)
    written = write_report(study, directory, chosen)
    write_board(study, directory)
    print_results(console(), study.results)
    print_written(directory, written)
