"""`fastvim logs`: find loss spikes in training logs of any origin."""

from pathlib import Path

import click

from fastvim_cli.options import NamedPath


@click.group("logs")
def command():
    """Find loss spikes in training logs of any origin."""


@command.command("review")
@click.argument("paths", nargs=-1, type=NamedPath(), metavar="PATH...")
@click.option(
    "--tag",
    "tags",
    multiple=True,
    metavar="NAME",
    help="Tag, column or key to review instead of every loss; may be repeated, may be a shell "
    "pattern. Example: --tag train/loss --tag '*grad_norm*'",
)
@click.option(
    "--baseline",
    type=NamedPath(),
    metavar="PATH",
    help="Log to compare the others with. Example: --baseline runs/with-norm",
)
@click.option(
    "--plot",
    type=NamedPath(dir_okay=False),
    metavar="FILE",
    help="Write an annotated plot (.png, .svg or .pdf). Example: --plot spikes.png",
)
@click.option(
    "--html",
    type=NamedPath(dir_okay=False),
    metavar="FILE",
    help="Write one self-contained page. Example: --html spikes.html",
)
@click.option(
    "--json",
    "json_path",
    is_flag=False,
    flag_value="-",
    type=NamedPath(dir_okay=True),
    metavar="[FILE]",
    help="Write the findings as JSON to a file, or with no file to standard output instead of the "
    "tables. Example: --json spikes.json",
)
@click.option(
    "--write-tensorboard",
    "tensorboard",
    type=NamedPath(file_okay=False),
    metavar="DIR",
    help="Write the findings as TensorBoard runs that overlay the curves. "
    "Example: --write-tensorboard runs",
)
@click.option(
    "--follow",
    is_flag=True,
    help="Watch logs that are being written and report episodes as they come; Ctrl-C ends it with "
    "the review. Example: fastvim logs review runs --follow",
)
def review(
    paths: tuple[Path, ...],
    tags: tuple[str, ...],
    baseline: Path | None,
    plot: Path | None,
    html: Path | None,
    json_path: Path | None,
    tensorboard: Path | None,
    follow: bool,
):
    """Find loss spikes, shifts, divergences and NaN in logs.

    PATH is a TensorBoard event file, a CSV or JSON-lines file, a trainer_state.json, or a folder
    to search for them.

    \b
    Examples:
      fastvim logs review runs
      fastvim logs review metrics.csv --plot spikes.png --html spikes.html
      fastvim logs review runs --tag '*grad_norm*' --json
    """
    from fastvim.stability.report import Outputs, review_paths
    from fastvim.stability.review_table import losses, tables
    from fastvim_cli.display import console

    if not paths and json_path is not None and json_path.exists():
        # `--json PATH` with nothing else: the path is the log, the JSON goes to standard output.
        paths, json_path = (json_path,), Path("-")
    if not paths:
        raise click.UsageError("Missing argument 'PATH...'.")
    outputs = Outputs(json_path, plot, html, tensorboard)
    outputs.check(paths if baseline is None else (*paths, baseline))
    if follow:
        _follow(paths, tags)
    reviews, baselines, empty = review_paths(paths, tags, baseline)
    lost = losses(baselines + reviews) + empty
    if json_path != Path("-"):
        console().print(*tables(baselines + reviews))
    for line in lost:
        click.echo(f"Lost: {line}", err=True)
    text, written = outputs.write(reviews, baselines, lost)
    if text:
        click.echo(text, nl=False)
    for path in written:
        click.echo(f"Wrote {path}", err=True)


def _follow(paths: tuple[Path, ...], tags: tuple[str, ...]) -> None:
    """Print sightings until Ctrl-C."""
    from fastvim.stability.follow import Follower, follow, sentence

    click.echo("Following; Ctrl-C ends and reviews.", err=True)
    try:
        for sighting in follow(Follower(list(paths), tags)):
            click.echo(sentence(sighting))
    except KeyboardInterrupt:
        click.echo("", err=True)
