"""`fastvim tensorboard`: TensorBoard on the runs of an output folder."""

import os
import sys
from pathlib import Path

import click


@click.command("tensorboard")
@click.argument("directory", type=click.Path(path_type=Path), default="results", metavar="[DIR]")
@click.option("--port", type=click.IntRange(0, 65535), default=6006, show_default=True)
@click.option("--bind-all", is_flag=True, help="Serve to other machines too.")
def command(directory: Path, port: int, bind_all: bool):
    """Open TensorBoard on an output folder, or on all of results/.

    \b
    Example:
      fastvim tensorboard results/pooling-alternation-quick
    """
    from fastvim.errors import UserError

    if not directory.is_dir():
        raise UserError(f"{directory}: no such folder; give the output folder of `fastvim ablate`")
    arguments = ["--logdir", str(directory), "--port", str(port)]
    arguments += ["--bind_all"] if bind_all else []
    os.execv(sys.executable, [sys.executable, "-m", "tensorboard.main", *arguments])
