"""`fastvim stability`: where training becomes unstable, with and without the norm."""

import sys
from pathlib import Path

import click

from fastvim_cli.options import Minutes, output_option, sets_option
from fastvim_cli.stability_threshold import threshold


@click.group("stability", invoke_without_command=True)
@click.option(
    "--model",
    "-m",
    default="b",
    show_default=True,
    metavar="SIZE",
    help="t, s, b, l, h (real width and depth, small images), or a preset such as fastvim_pico.",
)
@click.option(
    "--backbone",
    type=click.Choice(["vim", "fastvim", "both"]),
    default="both",
    show_default=True,
    help="Which backbones to train.",
)
@click.option(
    "--factor",
    "factors",
    multiple=True,
    type=click.Choice(["norm", "merge", "precision", "delta_init"]),
    help="What to vary; several make a product.  [default: norm]",
)
@click.option("--seeds", type=click.IntRange(1, 1000), default=2, show_default=True)
@click.option(
    "--lr-ladder",
    "ladder",
    default="1,4,16",
    show_default=True,
    metavar="A,B",
    help="Multiples of the recipe's learning rate.",
)
@click.option(
    "--budget",
    "minutes",
    type=Minutes(),
    default=15.0,
    show_default=True,
    metavar="MINUTES",
    help="Steps, then seeds, then the ladder are fitted to this time.",
)
@sets_option
@output_option("stability-MODEL-BACKBONE-FACTORS")
@click.pass_context
def command(ctx, model, backbone, factors, seeds, ladder, minutes, sets, output):
    """Train with and without the post-SSM norm over a ladder of learning rates.

    Large models are unstable at the rates that small ones take; small ones show the same at
    larger rates (Wortsman et al. 2023, arXiv 2309.14322). Every run is recorded: where its loss
    spikes, episodes/STEP.json in its folder names the block and the quantity that left its past
    first. The same command goes on after an interruption.

    \b
    Examples:
      fastvim stability --model b
      fastvim stability --model fastvim_pico --backbone vim --factor norm --factor precision
      fastvim stability threshold --vary size
    """
    from fastvim.errors import UserError
    from fastvim.experiments.stability import BACKBONES, REQUEST_FILE, Request, prepare
    from fastvim.reports.stability import write_stability
    from fastvim_cli.display import duration
    from fastvim_cli.study_runs import carry_out_study

    if ctx.invoked_subcommand is not None:
        return
    try:
        rungs = tuple(sorted({float(part) for part in ladder.split(",") if part.strip()}))
    except ValueError:
        rungs = ()
    if not rungs or not all(0 < rung < float("inf") for rung in rungs):
        raise UserError(f"--lr-ladder {ladder!r}: expected numbers above 0, such as 1,4,16")
    request = Request(
        model=model,
        backbones=tuple(BACKBONES) if backbone == "both" else (backbone,),
        factors=tuple(dict.fromkeys(factors)) or ("norm",),
        ladder=rungs,
        seeds=seeds,
        minutes=minutes,
        sets=tuple(sets),
    )
    size = request.size
    output = output or Path("results") / "-".join(["stability", size, backbone, *request.factors])
    if not (output / REQUEST_FILE).exists():
        click.echo("Timing a few steps of each variant ...", err=True)
    plan, fit, earlier = prepare(request, output)
    said = "as fitted before" if earlier else "measured just now"
    # --set may say otherwise than what fits.
    steps = plan.variants[0].config.training.steps
    click.echo(
        f"{len(plan.variants) * fit.seeds} runs of {steps} steps "
        f"({len(plan.variants)} variants with their learning rates "
        f"{', '.join(f'x{rung:g}' for rung in fit.ladder)}; {fit.seeds} seeds): "
        f"about {duration(fit.seconds(steps))} ({said}; budget {minutes:g} min)."
    )
    if (fit.seeds, fit.ladder) != (seeds, rungs):
        click.echo("The budget does not reach for all seeds and learning rates asked for.")
    sys.exit(carry_out_study(plan, output, lambda study: write_stability(study, request, output)))


command.add_command(threshold)
