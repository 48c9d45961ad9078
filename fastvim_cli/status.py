"""`fastvim status`: the state of every run."""

import time
from pathlib import Path

import click


@click.command("status")
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
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
    rows, ended, problems = _states(directory)
    if not watch:
        out.print(rows)
    else:
        from rich.live import Live

        with Live(rows, console=out, auto_refresh=False) as live:
            while not ended:
                time.sleep(1)
                rows, ended, problems = _states(directory)
                live.update(rows, refresh=True)
    for problem in problems:
        click.echo(f"skipped: {problem}", err=True)


def _states(directory: Path):
    """The table, whether all runs have ended, and what cannot be read."""
    from fastvim.experiments.record import read_plan
    from fastvim.experiments.store import FINAL, Store
    from fastvim_cli.display import duration, table

    plan, store = read_plan(directory), Store(directory)
    title = f"{plan.name}, profile {plan.profile}"
    rows = table("run", "state", ">step", ">top-1", ">time", "folder", title=title)
    problems: list[str] = []
    ended = True
    for run in plan.runs:
        state = store.state(run)
        ended = ended and (state in FINAL or state == "failed")
        record, broken = store.lookup(run)
        problems += broken
        result = record.result if record else {}
        top1 = (result.get("metrics") or {}).get("top1")
        seconds = (result.get("cost") or {}).get("seconds")
        rows.add_row(
            run.name,
            state,
            _last_step(record.directory) if record else "-",
            "-" if top1 is None else f"{top1:.2f}",
            "-" if seconds is None else duration(seconds),
            record.directory.name if record else "-",
        )
    return rows, ended, problems


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
