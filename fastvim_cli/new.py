"""`fastvim new`: a commented file to start from."""

import re
from pathlib import Path

import click


@click.command("new")
@click.argument("name", metavar="NAME")
def command(name: str):
    """Write NAME.yaml, a commented ablation that runs as it is.

    \b
    Example:
      fastvim new state-size
    """
    from fastvim.errors import UserError
    from fastvim.experiments.template import starting_file
    from fastvim.files import write_atomic

    name = name.removesuffix(".yaml")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise UserError(f"{name!r} cannot name an ablation: use letters, digits, '.', '_' and '-'")
    path = Path(f"{name}.yaml")
    if path.exists():
        raise UserError(f"{path} exists already")
    write_atomic(path, starting_file(name))
    click.echo(f"Wrote {path}. Next: fastvim show {path}; fastvim ablate {path} --profile smoke")
