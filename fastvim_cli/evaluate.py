"""`fastvim evaluate`: a run's checkpoint on the test set, again."""

from pathlib import Path

import click

from fastvim_cli.options import NamedPath


@click.command("evaluate")
@click.argument("run", type=NamedPath(), metavar="RUN")
def command(run: Path):
    """Evaluate the checkpoint of a run directory again, and compare with its recorded result.

    \b
    Example:
      fastvim evaluate results/pooling-alternation-quick/runs/alternating-seed0-1a2b3c4d
    """
    from fastvim.errors import UserError
    from fastvim.experiments.store import read_run
    from fastvim_cli.display import console, table

    if not run.is_dir():
        raise UserError(f"{run}: no such run directory")
    record = read_run(run)
    from fastvim.training.evaluation import evaluate_run

    result = evaluate_run(run)
    recorded = record.result.get("metrics") or {}
    rows = table("metric", ">now", ">recorded")
    for name, value in result["metrics"].items():
        earlier = f"{recorded[name]:.4f}" if name in recorded else "-"
        rows.add_row(name, f"{value:.4f}", earlier)
    out = console()
    out.print(f"{record.run.name}, on backend {result['backend']}", markup=False)
    out.print(rows)
