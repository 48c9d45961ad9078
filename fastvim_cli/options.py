"""Arguments and options that several commands share, with their shell completion."""

from collections.abc import Callable
from pathlib import Path

import click
from click.shell_completion import CompletionItem


def complete_experiment(ctx, param, incomplete: str) -> list[CompletionItem]:
    """Names of shipped ablations and YAML files here, or else any file."""
    from fastvim.experiments.experiment import SUFFIXES, shipped

    files = sorted(path.name for path in Path().iterdir() if path.suffix in SUFFIXES)
    names = [name for name in [*shipped(), *files] if name.startswith(incomplete)]
    return [CompletionItem(name) for name in names] or [CompletionItem(incomplete, type="file")]


def complete_variants(ctx, param, incomplete: str) -> list[CompletionItem]:
    """Names of variants; for a list, of the last one."""
    before, comma, last = incomplete.rpartition(",")
    names = _experiment_part(ctx, "variants")
    return [CompletionItem(before + comma + name) for name in names if name.startswith(last)]


def complete_profile(ctx, param, incomplete: str) -> list[CompletionItem]:
    """Names of profiles."""
    names = _experiment_part(ctx, "profiles")
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def complete_key(ctx, param, incomplete: str) -> list[CompletionItem]:
    """Dotted names of a run's values."""
    from fastvim.experiments.schema import known_keys

    return [CompletionItem(f"{key}=") for key in known_keys() if key.startswith(incomplete)]


def _experiment_part(ctx: click.Context, part: str) -> list[str]:
    from fastvim.errors import UserError
    from fastvim.experiments.experiment import load

    # An option still without its value keeps click from telling arguments apart.
    name = ctx.params.get("experiment") or next(iter(ctx.args), "")
    try:
        return list(getattr(load(name), part))
    except UserError:
        return []


def experiment_argument(command: Callable) -> Callable:
    """NAME_OR_FILE, and further key=value pairs, which mean the same as --set."""
    command = click.argument(
        "more", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=complete_key
    )(command)
    return click.argument("experiment", metavar="NAME_OR_FILE", shell_complete=complete_experiment)(
        command
    )


class Minutes(click.FloatRange):
    """A budget of more than nothing and at most a year."""

    def __init__(self):
        super().__init__(min=0, min_open=True, max=365 * 24 * 60)

    def convert(self, value, param, ctx) -> float:
        minutes = super().convert(value, param, ctx)
        if minutes != minutes:  # nan is on neither side of a bound.
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return minutes


class NamedPath(click.Path):
    """A path that is not empty, as a variable that is not set makes it: Path("") is the current
    folder."""

    def __init__(self, **options):
        super().__init__(path_type=Path, **options)

    def convert(self, value, param, ctx) -> Path:
        if value == "":
            self.fail("the path is empty; '.' is the current folder.", param, ctx)
        return super().convert(value, param, ctx)


sets_option = click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=complete_key,
    help="Change a value of every run, by dotted name. May be repeated.",
)


def output_option(folder: str) -> Callable[[Callable], Callable]:
    """--output, by default `folder` (in words) under results."""
    return click.option(
        "--output",
        "-o",
        type=NamedPath(file_okay=False),
        metavar="DIR",
        help=f"Output folder.  [default: results/{folder}]",
    )


def plan_options(command: Callable) -> Callable:
    """--profile, --set and --grid."""
    for decorate in (
        click.option(
            "--grid",
            multiple=True,
            metavar="KEY=A,B,C",
            shell_complete=complete_key,
            help="Try each value: a further variant of every variant. May be repeated.",
        ),
        sets_option,
        click.option(
            "--profile",
            metavar="NAME",
            shell_complete=complete_profile,
            help="Where and how long: smoke, quick, standard, paper, or one of the file's.",
        ),
    ):
        command = decorate(command)
    return command


seeds_option = click.option(
    "--seeds", metavar="N", help="How many seeds (3 means 0, 1, 2), or which: 0,3,5."
)
variants_option = click.option(
    "--variants",
    metavar="A,B",
    shell_complete=complete_variants,
    help="Only these variants.",
)

format_option = click.option(
    "--format",
    "formats",
    metavar="A,B",
    help="Only these of html, md, csv, latex, json, png, svg.  [default: all]",
)


def planned(
    experiment: str,
    profile: str | None,
    sets: tuple[str, ...],
    more: tuple[str, ...],
    grid: tuple[str, ...] = (),
    seeds: str | None = None,
    variants: str | None = None,
):
    """The plan that the options describe."""
    from fastvim.errors import UserError
    from fastvim.experiments.experiment import load
    from fastvim.experiments.plan import make_plan

    for text in more:
        if "=" not in text:
            raise UserError(f"unexpected argument {text!r}: expected KEY=VALUE")
    plan = make_plan(load(experiment), profile, seeds, variants, (*sets, *more), grid)
    for warning in plan.warnings:
        click.echo(f"warning: {warning}", err=True)
    return plan


def default_output(plan) -> Path:
    """`results/<experiment>-<profile>` in the current folder."""
    return Path("results") / f"{plan.experiment.name}-{plan.profile}"
