"""`fastvim stability threshold`: the smallest model at which training is unstable."""

import sys
import tempfile
from pathlib import Path

import click

from fastvim_cli.options import Minutes, output_option, sets_option


@click.command("threshold")
@click.option(
    "--vary",
    type=click.Choice(["size", "width", "depth"]),
    required=True,
    help="What to vary: a grid of width and depth, or one of them alone.",
)
@click.option(
    "--profile",
    type=click.Choice(["quick", "paper"]),
    default="quick",
    show_default=True,
    help="Proxies on images that come with fastvim, or widths and depths from S to B on "
    "ImageNet-1k (--set data.root=FOLDER).",
)
@click.option(
    "--backbone",
    type=click.Choice(["vim", "fastvim", "both"]),
    default="vim",
    show_default=True,
    help="Which backbones to train.",
)
@click.option("--seeds", type=click.IntRange(1, 1000), default=1, show_default=True)
@click.option(
    "--budget",
    "minutes",
    type=Minutes(),
    metavar="MINUTES",
    help="Steps, then seeds, then the ladder are fitted to this time.  [default: quick 9; paper "
    "as long as the recipe]",
)
@sets_option
@output_option("threshold-VARY-BACKBONE-PROFILE")
@click.option("--dry-run", is_flag=True, help="Say how many runs and how long; train nothing.")
def threshold(vary, profile, backbone, seeds, minutes, sets, output, dry_run):
    """Find the smallest model at which training is unstable, with and without the norm.

    A run is unstable where it diverged, where its loss rose above twice that at initialisation, or
    where the detector finds an episode of any class in it.
    Over a ladder of learning rates, as small models show at larger rates what large ones show at
    the recipe's. The same command goes on after an interruption.

    \b
    Examples:
      fastvim stability threshold --vary size
      fastvim stability threshold --vary width --backbone both --seeds 2 --budget 30
      fastvim stability threshold --vary depth --profile paper --set data.root=/data/imagenet
    """
    from fastvim.experiments.stability import BACKBONES, REQUEST_FILE, prepare
    from fastvim.experiments.threshold import LADDERS, MINUTES, ThresholdRequest
    from fastvim.reports.threshold import write_threshold
    from fastvim_cli.display import duration
    from fastvim_cli.study_runs import carry_out_study

    request = ThresholdRequest(
        vary=vary,
        profile=profile,
        backbones=tuple(BACKBONES) if backbone == "both" else (backbone,),
        ladder=LADDERS[profile],
        seeds=seeds,
        minutes=MINUTES[profile] if minutes is None else minutes,
        sets=tuple(sets),
    )
    output = output or Path("results") / f"threshold-{vary}-{backbone}-{profile}"
    if request.minutes is not None and not (output / REQUEST_FILE).exists():
        click.echo("Timing a few steps of each model ...", err=True)
    with tempfile.TemporaryDirectory() as scratch:
        # A study that is there was fitted before; otherwise a dry run leaves nothing behind.
        fresh = dry_run and not (output / REQUEST_FILE).exists()
        plan, fit, _ = prepare(request, Path(scratch) if fresh else output)
    recipe = plan.variants[0].config.training
    steps = f"{recipe.steps} steps" if recipe.steps else f"{recipe.epochs} epochs"
    if request.minutes is None:
        time = (
            "as long as the recipe takes, which was not measured (--budget MINUTES times a few "
            "steps of each model here and shortens the runs to fit)"
        )
    else:
        time = f"about {duration(fit.seconds(recipe.steps))}"
    click.echo(
        f"{len(plan.variants) * fit.seeds} runs of {steps} ({len(request.bodies)} widths and "
        f"depths, with and without the norm, learning rates "
        f"{', '.join(f'x{rung:g}' for rung in fit.ladder)}, {fit.seeds} seeds): {time}."
    )
    if (fit.seeds, fit.ladder) != (seeds, request.ladder):
        click.echo("The budget does not reach for all seeds and learning rates.")
    if dry_run:
        return
    sys.exit(carry_out_study(plan, output, lambda study: write_threshold(study, request, output)))
