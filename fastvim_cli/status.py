"""`fastvim status`: the state of every run."""

import time
from pathlib import Path

import click

from fastvim_cli.options import NamedPath


@click.command("status")
@click.argument("directory", type=NamedPath(), metavar="DIR")
@click.option("--watch", is_flag=True, help="Keep showing it until all runs have ended.")
def command(directory: Path, watch: bool):
    """Show the state of every run of an output folder; running ones are seen from any process.

    \b
    Examples:
      fastvim status results/pooling-alternation-quick
      fastvim status results/pooling-alternation-quick --watch
    """
    from fastvim_cli.display import console

    out = console()
    rows, ended, remarks = _states(directory)
    if not watch:
        out.print(rows)
    else:
        from rich.live import Live

        with Live(rows, console=out, auto_refresh=False) as live:
            while not ended:
                time.sleep(1)
                rows, ended, remarks = _states(directory)
                live.update(rows, refresh=True)
    for remark in remarks:
        click.echo(remark, err=True)


def _states(directory: Path):
    """The table, whether all runs have ended, and what cannot be read or has failed."""
    from fastvim.experiments.record import folder_of_runs, read_plan
    from fastvim.experiments.store import FINAL, Store
    from fastvim_cli.display import table

    directory = folder_of_runs(directory)
    plan, store = read_plan(directory), Store(directory)
    title = f"{plan.name}, profile {plan.profile}"
    rows = table("run", "state", ">step", ">top-1", ">time", "folder", title=title)
    records, problems = store.all_runs()
    planned = _with_pretrainings(plan.runs)
    identities = {run.identity for run in planned}
    others = [record.run for record in records if record.run.identity not in identities]
    remarks = [f"skipped: {problem}" for problem in problems]
    ended = True
    for run in (*planned, *others):
        state = store.state(run)
        record, _ = store.lookup(run)
        if state == "failed":
            remarks.append(f"{run.name} failed: {record.result.get('error', 'no reason given')}")
            remarks.append(f"  its log: {record.directory / 'log.txt'}")
        known = run.identity in identities
        said = state if known else f"{state} (not in the plan now)"
        rows.add_row(run.name, said, *_figures(record))
        ended = ended and (not known or state in FINAL or state == "failed")
    return rows, ended, remarks


def _with_pretrainings(runs) -> list:
    """`runs`, each pretraining before the first that starts from it."""
    found = []
    for run in runs:
        if run.pretraining is not None and run.pretraining not in found:
            found.append(run.pretraining)
        found.append(run)
    return found


def _figures(record) -> tuple[str, str, str, str]:
    """Step, top-1, time and folder of a run that may not have begun."""
    from fastvim_cli.display import duration

    if record is None:
        return "-", "-", "-", "-"
    top1 = (record.result.get("metrics") or {}).get("top1")
    seconds = (record.result.get("cost") or {}).get("seconds")
    return (
        _last_step(record.directory),
        "-" if top1 is None else f"{top1:.2f}",
        "-" if seconds is None else duration(seconds),
        record.directory.name,
    )


def _last_step(directory: Path) -> str:
    """The last step that history.csv has."""
    try:
        with (directory / "history.csv").open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return "-"
    last = lines[-1].split(",")[0] if len(lines) > 1 else "-"
    return last if last.isdigit() else "-"
