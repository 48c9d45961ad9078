"""`fastvim train`: one run alone."""

import sys

import click

from fastvim_cli.options import (
    complete_variants,
    default_output,
    experiment_argument,
    output_option,
    plan_options,
    planned,
)


@click.command("train")
@experiment_argument
@plan_options
@click.option(
    "--variant",
    metavar="NAME",
    shell_complete=complete_variants,
    help="The variant to train.  [default: the only one]",
)
@click.option("--pretraining", is_flag=True, help="Only the run that the variant starts from.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@output_option("EXPERIMENT-PROFILE")
def command(experiment, more, profile, sets, grid, variant, pretraining, seed, output):
    """Train one variant with one seed, in a run directory that `ablate` would use too.

    A run that starts from another one waits for it, or trains it first.

    \b
    Examples:
      fastvim train pooling-alternation --variant alternating
      fastvim train my.yaml --variant small --seed 3 --set training.epochs=20
      fastvim train mae-scaling --variant probe-auto --pretraining
    """
    plan = planned(experiment, profile, sets, more, grid, seeds=f"{seed},")
    from fastvim.errors import UserError
    from fastvim.experiments.plan import identified_runs
    from fastvim.experiments.runner import Stopped, StopRequest, carry_out, every_run, to_train
    from fastvim.experiments.store import Store
    from fastvim_cli.display import RunProgress, this_command

    if variant is None and len(plan.variants) > 1:
        names = ", ".join(each.name for each in plan.variants)
        raise UserError(f"name a variant of {plan.experiment.name} with --variant: {names}")
    chosen = plan.variants[0] if variant is None else plan.variant(variant)
    run = next(run for run in identified_runs(plan) if run.variant == chosen.name)
    if pretraining:
        if run.pretraining is None:
            raise UserError(f"--pretraining: {run.name} starts from no other run")
        run = run.pretraining
    store = Store(output or default_output(plan))
    stop = StopRequest()
    runs = every_run([run], store)
    with RunProgress(len(runs), len(runs) - len(to_train(runs, store))) as progress:

        def notify() -> None:
            progress.say("Stopping after this step; Ctrl-C again stops at once, unsaved.")

        try:
            with stop.listening(notify):
                outcome = carry_out(runs, store, progress, stop)[-1]
        except Stopped:
            progress.say(f"Stopped; everything is saved. To go on: {this_command()}")
            sys.exit(stop.exit_code)
    record, _ = store.lookup(run)
    click.echo(f"{run.name} {outcome.state}, in {outcome.directory}")
    if outcome.message:
        click.echo(outcome.message, err=True)
        log = outcome.directory / "log.txt"
        if log.exists():
            click.echo(f"  its log: {log}", err=True)
    for name, value in (record.result.get("metrics") or {}).items():
        click.echo(f"  {name:<10} {value:.4g}")
    sys.exit(0 if outcome.state == "done" else 1)
