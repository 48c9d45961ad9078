"""The root command. Commands are imported when they are used, so that `--help` is instant."""

import importlib

import click

# Command -> its module's short help. `fastvim NAME` is `fastvim_cli.NAME:command`.
COMMANDS = {
    "ablate": "Train and compare the variants of an ablation.",
    "list": "List the ablations that come with fastvim.",
    "show": "Show the resolved plan: every value and where it came from.",
    "train": "Train one variant with one seed.",
    "evaluate": "Evaluate the checkpoint of a run again.",
    "status": "Show the state of every run of an output folder.",
    "report": "Rebuild the tables of an output folder from its runs.",
    "compare": "Compare any runs or output folders.",
    "claims": "The paper's claims and what the evidence says of them.",
    "logs": "Find loss spikes in training logs of any origin.",
    "stability": "Find where training becomes unstable, with and without the norm.",
    "profile": "Measure speed, memory and FLOPs of models over image sizes.",
    "tensorboard": "Open TensorBoard on results.",
    "new": "Write a commented file to start an ablation from.",
    "schema": "Print the JSON Schema of ablation files, for editors.",
    "doctor": "Say what was found: versions, devices, backends, data sets.",
    "completion": "Print shell completion for bash, zsh or fish.",
}


class BadInput(click.ClickException):
    """What the user can put right: one message, exit code 2."""

    exit_code = 2


class LazyGroup(click.Group):
    """A group whose commands are imported on use; it turns user errors into messages."""

    def main(self, *args, **kwargs):
        """As click's, with streams that take whatever is printed."""
        _prepare_streams()
        return super().main(*args, **kwargs)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return importlib.import_module(f"fastvim_cli.{name}").command

    def resolve_command(self, ctx: click.Context, args: list[str]):
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from fastvim.errors import nearest

            raise click.UsageError(f"no command {args[0]!r}{nearest(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("\nStopped.", err=True)
            ctx.exit(130)
        except ValueError as error:
            from fastvim.errors import UserError

            if not isinstance(error, UserError):
                raise
            raise BadInput(str(error)) from error
        except OSError as error:
            from fastvim.files import UNWRITABLE, unwritable

            if error.errno not in UNWRITABLE:
                raise
            _drop_unwritten()
            raise BadInput(unwritable(error, "to the output")) from error


def _prepare_streams() -> None:
    """A stream that the caller closed leads nowhere, and a character that the encoding of one lacks
    is written as its code: neither may end work of hours."""
    import os
    import sys

    # In this order each gets its own descriptor, which no file that is written may have.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _drop_unwritten() -> None:
    """Else the interpreter tries once more as it ends, and its exit code is another."""
    import os
    import sys

    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from fastvim import __version__

        click.echo(f"fastvim {__version__}")
        ctx.exit()


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)
def main() -> None:
    """Ablations of Fast Vision Mamba (arXiv 2502.00594), from a YAML file to a verdict.

    \b
    Start with:
      fastvim list
      fastvim ablate pooling-alternation
    """
