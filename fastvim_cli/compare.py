"""`fastvim compare`: any runs or output folders side by side."""

from pathlib import Path

import click

from fastvim_cli.options import NamedPath, format_option


@click.command("compare")
@click.argument("paths", nargs=-1, required=True, type=NamedPath(), metavar="RUN_OR_DIR...")
@click.option("--metric", type=click.Choice(["top1", "top5", "loss"]), help="What is compared.")
@click.option("--baseline", metavar="VARIANT", help="What the others are compared with.")
@click.option(
    "--output",
    "-o",
    type=NamedPath(file_okay=False),
    metavar="DIR",
    help="Also write the report there.",
)
@format_option
def command(
    paths: tuple[Path, ...],
    metric: str | None,
    baseline: str | None,
    output: Path | None,
    formats: str | None,
):
    """Compare any runs, paired by seed: run directories and output folders, from anywhere.

    Runs of one name and the same settings are seeds of one variant; the same name with other
    settings makes another variant. The table says what differs; with --output the whole report
    is written, as by `fastvim report`.

    \b
    Examples:
      fastvim compare results/pooling-alternation-quick results/pooling-operator-quick
      fastvim compare results/*/runs/mean-seed* results/*/runs/max-seed* -o mean-or-max
    """
    from fastvim.errors import UserError
    from fastvim.reports.comparison import compare
    from fastvim.reports.write import parse_formats, write_report
    from fastvim_cli.display import console
    from fastvim_cli.tables import print_differences, print_results, print_written

    chosen = parse_formats(formats)
    if formats is not None and output is None:
        raise UserError("--format needs --output DIR, the folder to write to")
    study = compare(paths, metric, baseline)
    written = write_report(study, output, chosen) if output is not None else []
    out = console()
    print_results(out, study.results)
    print_differences(out, study)
    if output is not None:
        print_written(output, written)
