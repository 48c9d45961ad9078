"""Carry out the runs of a stability study and report them; both of its commands end here."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fastvim.reports.study import Study


def carry_out_study(plan, folder: Path, write: Callable[["Study"], tuple[str, list[Path]]]) -> int:
    """Train what is not there yet and print the report; the exit code.

    `write` writes the report and gives its text and its files. The runs have a folder of their
    own, which `fastvim report` understands.
    """
    from fastvim.experiments.plan import identified_runs
    from fastvim.experiments.record import write_plan
    from fastvim.experiments.runner import Stopped, StopRequest, carry_out, every_run, to_train
    from fastvim.experiments.stability import RUNS_FOLDER
    from fastvim.experiments.store import Store
    from fastvim.reports.study import read_study
    from fastvim.reports.tensorboard import write_board
    from fastvim.training.state import WEIGHTS_FILE
    from fastvim_cli.display import RunProgress, this_command
    from fastvim_cli.tables import print_replaced, print_written

    output = folder / RUNS_FOLDER
    store, runs = Store(output), identified_runs(plan)
    everything = every_run(runs, store)
    recorded = write_plan(output, plan, runs, this_command())
    stop = StopRequest()
    reused = len(everything) - len(to_train(everything, store))
    with RunProgress(len(everything), reused) as progress:

        def listen(event: dict) -> None:
            progress(event)
            if event["event"] == "end":
                # Hundreds of megabytes each at the real sizes, of models hardly trained.
                (event["outcome"].directory / WEIGHTS_FILE).unlink(missing_ok=True)

        try:
            with stop.listening(lambda: progress.say("Stopping after this step.")):
                outcomes = carry_out(runs, store, listen, stop)
        except Stopped:
            progress.say(f"Stopped; everything is saved. To go on: {this_command()}")
            return stop.exit_code
    study = read_study(output, recorded)
    write_board(study, output)
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    for outcome in failed:
        click.echo(f"{outcome.run.name} failed: {outcome.message}", err=True)
    text, written = write(study)
    click.echo(text)
    print_written(folder, written)
    print_replaced(recorded, output)
    # A run that diverged is a result here.
    return int(bool(failed))
