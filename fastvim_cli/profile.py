"""`fastvim profile`: what the models cost over image sizes."""

import sys
from pathlib import Path

import click

from fastvim_cli.options import Minutes, output_option

PLAIN = ":post_ssm_norm=false"


@click.command(
    name="profile",
    epilog="Example: fastvim profile --resolutions 224,512,1024 --minutes 5",
)
@click.option("--size", default="tiny", show_default=True, help="Preset size.")
@click.option(
    "--models",
    help="Instead of --size: presets, PRESET:key=value, or timm/NAME, separated by commas.",
)
@click.option(
    "--resolutions", default="224,512,1024,2048", show_default=True, help="Pixels a side."
)
@click.option(
    "--modes",
    default="forward,training",
    show_default=True,
    help="Also graph: the forward as a CUDA graph.",
)
@click.option("--batch", type=click.IntRange(1), help="Images a batch; 8 at 224, fewer above.")
@click.option("--repeats", default=7, show_default=True, type=click.IntRange(1))
@click.option(
    "--minutes",
    default=10.0,
    show_default=True,
    type=Minutes(),
    help="Time budget of the whole study.",
)
@output_option("profile")
def command(size, models, resolutions, modes, batch, repeats, minutes, output):
    """Measure speed, memory and FLOPs over image sizes, Vim beside FastVim.

    Times are medians over interleaved repeats, with quartiles. Writes profile.md, .csv, .json
    and plots after each size; Ctrl-C keeps the sizes that are done. The same command goes on with
    those that are left, and with what the budget had no time for.
    Exit code 2 for bad input, 130 after Ctrl-C.
    """
    from fastvim.experiments.runner import Stopped, StopRequest
    from fastvim.files import make_folder
    from fastvim.profiling import machine
    from fastvim.profiling.measurement import with_size
    from fastvim.profiling.models import check
    from fastvim.profiling.study import Study
    from fastvim.reports import profile, profile_tables
    from fastvim.training.devices import choose_device
    from fastvim_cli.display import console, this_command

    fast, vim = f"fastvim_{size}", f"vim_{size}"
    default = [vim, fast, fast + PLAIN] + (["timm/deit_tiny_patch16_224"] if size == "tiny" else [])
    names = default if models is None else models.split(",")
    device = choose_device()
    chosen, sizes = _modes(modes, device), _sizes(resolutions)
    check(names, sizes)
    environment = machine.describe(device) | {"command": this_command()}
    settings = {"models": names, "modes": chosen, "batch": batch, "repeats": repeats}
    settings["resolutions"] = sizes
    output = output or Path("results/profile")
    make_folder(output)
    found, useless = profile.read_unfinished(output, environment, settings)
    missing = _unfinished(found, sizes)
    screen = console(stderr=True)
    if done := [str(size) for size in sizes if size not in missing]:
        screen.print(f"{output}: goes on after {', '.join(done)} pixels", markup=False)
    if useless:
        screen.print(f"{output}: the profile there {useless}; it will be replaced", markup=False)
    paths, compared = [], []
    stop = StopRequest()

    def notify() -> None:
        screen.print("Stopping after this call of a model; Ctrl-C again stops at once.")

    try:
        with stop.listening(notify), screen.status("building the models") as status:
            study = Study(names, device, chosen, batch, repeats, minutes, status.update, stop)
            for part in study.measure(missing, found):
                found = with_size(found, part)
                missing = _unfinished(found, sizes)
                compared = profile_tables.claims(found, fast, vim, fast + PLAIN)
                paths = profile.write(found, compared, environment, settings, not missing, output)
                size = part[0].resolution
                how = "not all done, for want of time" if size in missing else "done"
                screen.print(f"{size} pixels {how} ({len(sizes) - len(missing)} of {len(sizes)})")
        if missing:
            screen.print("not all could be measured in this time: the same command goes on with it")
    except Stopped:
        kept = f"the sizes done are in {output}" if found else "no size was done"
        screen.print(f"Stopped; {kept}. To go on: {this_command()}", markup=False, soft_wrap=True)
        sys.exit(stop.exit_code)
    _show(found, compared, environment)
    for path in paths:
        console().print(f"wrote {path}")


def _modes(text: str, device) -> list[str]:
    from fastvim.errors import UserError, nearest
    from fastvim.profiling.measurement import MODES

    chosen = list(dict.fromkeys(text.split(",")))
    for mode in chosen:
        if mode not in MODES:
            raise UserError(f"--modes: no mode {mode!r}{nearest(mode, MODES)}; {', '.join(MODES)}")
    if "graph" in chosen and device.type != "cuda":
        raise UserError("--modes: graph needs a CUDA device")
    return chosen


def _sizes(text: str) -> list[int]:
    from fastvim.errors import UserError

    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError:
        sizes = []
    if not sizes or sizes[0] < 1:
        raise UserError(f"--resolutions: {text!r} is not a list of pixels, such as 224,512")
    return sizes


def _unfinished(found, sizes: list[int]) -> list[int]:
    """The sizes that are yet to be measured, or for a part of which there was no time."""
    whole = {m.resolution for m in found} - {m.resolution for m in found if m.lacked_time}
    return [size for size in sizes if size not in whole]


def _show(found, compared, environment) -> None:
    from fastvim.reports import profile, profile_tables
    from fastvim_cli.display import console

    screen = console()
    screen.print(profile.machine(found, environment), markup=False)
    title = "Cost over image sizes"
    screen.print(_table(title, profile_tables.MODELS, profile_tables.model_rows(found)))
    title = "Parts of a block, unfused"
    screen.print(_table(title, profile_tables.BLOCKS, profile_tables.block_rows(found)))
    title = "The paper's figures (on a GPU) and ours"
    screen.print(_table(title, profile_tables.CLAIMS, [list(row.values()) for row in compared]))
    for note in profile_tables.NOTES:
        screen.print(f"- {note}", markup=False)


def _table(title: str, heads, rows):
    """Without the columns that are empty in every row."""
    from rich.markup import escape

    from fastvim_cli.display import table

    shown = [i for i in range(len(heads)) if any(row[i] for row in rows)]
    found = table(*(heads[i] for i in shown), title=title)
    for row in rows:
        found.add_row(*(escape(row[i]) for i in shown))
    return found
