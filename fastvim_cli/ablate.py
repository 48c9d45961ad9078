"""`fastvim ablate`: train the variants and write the comparison."""

import os
import sys
from collections import Counter
from pathlib import Path

import click

from fastvim_cli.options import (
    default_output,
    experiment_argument,
    output_option,
    plan_options,
    planned,
    seeds_option,
    variants_option,
)


class Jobs(click.IntRange):
    """A number of runs side by side, or `auto` (None)."""

    name = "N or auto"

    def __init__(self) -> None:
        super().__init__(1, 64)

    def convert(self, value, param, ctx):
        """None for `auto`."""
        if value == "auto":
            return None
        try:
            number = int(value)
        except ValueError:
            number = 0
        if not self.min <= number <= self.max:
            self.fail(f"{value!r} is neither auto nor from {self.min} to {self.max}", param, ctx)
        return number


@click.command("ablate")
@experiment_argument
@plan_options
@seeds_option
@variants_option
@output_option("EXPERIMENT-PROFILE")
@click.option(
    "--jobs",
    "-j",
    type=Jobs(),
    default="auto",
    envvar="FASTVIM_JOBS",
    show_default=True,
    show_envvar=True,
    help="Runs side by side, the cores shared out. auto: one a core where all models are small "
    "and there is no GPU, else one.",
)
@click.option(
    "--keep-going/--fail-fast",
    default=True,
    show_default=True,
    help="When a run fails, train the others all the same, or save them and stop.",
)
@click.option("--dry-run", is_flag=True, help="Print every run with its state and time; no run.")
def command(
    experiment, more, profile, sets, grid, seeds, variants, output, jobs, keep_going, dry_run
):
    """Train every variant with every seed, and compare them on the test set.

    Runs that are already there are not trained again, and interrupted ones go on: the same
    command continues after Ctrl-C, a crash or a reboot. Several processes may share one output
    folder; each reports its own plan, and `fastvim report` the one that was given last. Exit code 0
    when all runs are done, 1 when any failed or diverged, 2 for bad input, 130 after Ctrl-C.

    \b
    Examples:
      fastvim ablate pooling-alternation
      fastvim ablate pooling-operator --profile smoke --seeds 3
      fastvim ablate my.yaml --set training.lr=3e-4 --grid model.d_state=8,16 --dry-run
    """
    plan = planned(experiment, profile, sets, more, grid, seeds, variants)
    from fastvim.experiments.plan import identified_runs
    from fastvim.experiments.runner import every_run
    from fastvim.experiments.sharing import choose_jobs
    from fastvim.experiments.store import Store

    store = Store(output or default_output(plan))
    runs = identified_runs(plan)
    jobs = jobs or choose_jobs(runs)
    if dry_run:
        _print_plan(plan, every_run(runs, store), store, jobs)
        return
    sys.exit(_carry_out(plan, runs, store, jobs, keep_going))


def _print_plan(plan, runs, store, jobs: int) -> None:
    import torch

    from fastvim.experiments.estimate import estimate, seconds_side_by_side
    from fastvim.experiments.store import FINAL
    from fastvim.experiments.workers import threads_each
    from fastvim_cli.display import console, duration, table

    states, folders = {}, {}
    for run in runs:
        record, problems = store.lookup(run)
        elsewhere = store.elsewhere(run)
        states[run.identity] = f"{elsewhere.state} elsewhere" if elsewhere else store.state(run)
        folders[run.identity] = record.directory.name if record else run.directory_name
        if elsewhere:  # It will be taken from there, not trained again.
            folders[run.identity] = os.path.relpath(elsewhere.directory)
        for problem in problems:
            click.echo(f"skipped: {problem}", err=True)
    if jobs > 1:  # A step is tried out with the threads that a run will have.
        torch.set_num_threads(threads_each(jobs))
    estimates = estimate(
        [run for run in runs if states[run.identity].split()[0] not in FINAL], store
    )
    rows = table("run", "state", ">time", "rests on", "folder")
    for run in runs:
        guess = estimates.get(run.identity)
        time, basis = (duration(guess.seconds), guess.basis) if guess else ("-", "")
        rows.add_row(run.name, states[run.identity], time, basis, folders[run.identity])
    out = console()
    out.print(f"{plan.experiment.name}, profile {plan.profile}, into {store.output}", markup=False)
    out.print(rows)
    known = [guess.seconds for guess in estimates.values() if guess.seconds is not None]
    missing = len(estimates) - len(known)
    counts = Counter(states.values())
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    together = seconds_side_by_side(known, jobs)
    left = duration(together) if known else ("nothing" if not estimates else "unknown")
    unknown = f" and {missing} of unknown time" if missing and known else ""
    how = f", {_sharing(jobs)}" if estimates else ""
    out.print(f"{len(runs)} runs: {summary}. To train{how}: {left}{unknown}.")


def _sharing(jobs: int) -> str:
    import torch

    from fastvim.experiments.workers import threads_each

    threads = torch.get_num_threads() if jobs == 1 else threads_each(jobs)
    each = f"{threads} thread{'s' * (threads != 1)} each"
    return f"{jobs} at a time, {each}"


def _carry_out(plan, runs, store, jobs: int, keep_going: bool) -> int:
    from fastvim.experiments.record import write_plan
    from fastvim.experiments.runner import Stopped, StopRequest, carry_out, every_run, to_train
    from fastvim.experiments.workers import carry_out_with_jobs
    from fastvim.reports.study import read_study
    from fastvim.reports.tensorboard import write_board
    from fastvim.reports.write import write_report
    from fastvim_cli.display import RunProgress, console, this_command
    from fastvim_cli.tables import print_replaced, print_results, print_written

    planned_runs, runs = runs, every_run(runs, store)
    recorded = write_plan(store.output, plan, planned_runs, this_command())
    reused = len(runs) - len(to_train(runs, store))
    stop = StopRequest()
    failed = []
    with RunProgress(len(runs), reused) as progress:
        if reused < len(runs):
            progress.say(f"To train: {len(runs) - reused} of {len(runs)} runs, {_sharing(jobs)}")

        def notify() -> None:
            progress.say("Stopping after this step; Ctrl-C again stops at once, unsaved.")

        def listen(event: dict) -> None:
            progress(event)
            if event["event"] == "end" and event["outcome"].state == "failed":
                failed.append(event["outcome"])

        def should_stop() -> bool:
            return stop() or (bool(failed) and not keep_going)

        try:
            with stop.listening(notify):
                if jobs > 1:
                    outcomes = carry_out_with_jobs(runs, store, listen, should_stop, jobs)
                else:
                    outcomes = carry_out(runs, store, listen, should_stop)
        except Stopped as stopped:
            for sentence in stopped.unsaved:
                progress.say(sentence)
            if stop():
                what = "everything else" if stopped.unsaved else "everything"
                progress.say(f"Stopped; {what} is saved. To go on: {this_command()}")
                return stop.exit_code
    if failed and not keep_going:
        code = _report_failures(failed)
        click.echo(
            f"\nStopped at the first failure; the other runs are saved. To go on: {this_command()}",
            err=True,
        )
        return code
    study = read_study(store.output, recorded)
    written = write_report(study, store.output)
    write_board(study, store.output)
    print_results(console(), study.results)
    print_written(store.output, written)
    print_replaced(recorded, store.output)
    return _report_failures(outcomes)


def _report_failures(outcomes) -> int:
    """Say which runs did not end well; the exit code."""
    for outcome in outcomes:
        if outcome.state == "failed":
            click.echo(f"\n{outcome.run.name} failed: {outcome.message}", err=True)
            log = outcome.directory / "log.txt"
            for line in _last_lines(log):
                if line != outcome.message:
                    click.echo(f"    {line}", err=True)
            if log.exists():  # None of a process that was killed, or that could not begin.
                click.echo(f"  its log: {log}", err=True)
        elif outcome.state == "diverged":
            click.echo(
                f"{outcome.run.name} diverged: its loss was no number; see {outcome.directory}",
                err=True,
            )
    return int(any(outcome.state != "done" for outcome in outcomes))


def _last_lines(log: Path, count: int = 5) -> list[str]:
    if not log.exists():
        return []
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]
