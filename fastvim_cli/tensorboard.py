"""`fastvim tensorboard`: TensorBoard on the runs of an output folder."""

import os
import socket
import sys
from pathlib import Path

import click

from fastvim_cli.options import NamedPath

FIRST_PORT = 6006


@click.command("tensorboard")
@click.argument("directory", type=NamedPath(), default="results", metavar="[DIR]")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help=f"The port to serve on.  [default: {FIRST_PORT}, or a free one]",
)
@click.option("--host", default="localhost", show_default=True, help="0.0.0.0 serves to others.")
def command(directory: Path, port: int | None, host: str):
    """Open TensorBoard on an output folder, or on all of results/. Ctrl-C ends it.

    \b
    Example:
      fastvim tensorboard results/pooling-alternation-quick
    """
    from fastvim.errors import UserError

    if not directory.is_dir():
        raise UserError(f"{directory}: no such folder; give the output folder of `fastvim ablate`")
    runs = directory / "runs"
    folder = runs if runs.is_dir() else directory
    if next(folder.rglob("events.out.tfevents.*"), None) is None:
        raise UserError(f"{directory}: no run has recorded anything there yet")
    port = port or _free_port(host)
    click.echo(f"TensorBoard on {folder}: http://{host}:{port}/  (Ctrl-C ends it)")
    sys.stdout.flush()
    arguments = ["--logdir", str(folder), "--port", str(port), "--host", host]
    os.execv(sys.executable, [sys.executable, "-m", "tensorboard.main", *arguments])


def _free_port(host: str) -> int:
    """The usual port, or any that is free."""
    from fastvim.errors import UserError

    for port in (FIRST_PORT, 0):
        try:
            with socket.create_server((host, port)) as server:
                return server.getsockname()[1]
        except OSError as error:
            problem = error
    raise UserError(f"cannot serve on {host}: {problem.strerror or problem}")
