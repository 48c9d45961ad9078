"""`fastvim profile`: what the models cost over image sizes."""

from pathlib import Path

import click

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
@click.option("--modes", default="forward,training", show_default=True)
@click.option("--batch", type=click.IntRange(1), help="Images a batch; 8 at 224, fewer above.")
@click.option("--repeats", default=7, show_default=True, type=click.IntRange(1))
@click.option("--minutes", default=10.0, show_default=True, help="Time budget of the whole study.")
@click.option("--output", default="results/profile", show_default=True, type=Path)
def command(size, models, resolutions, modes, batch, repeats, minutes, output):
    """Measure speed, memory and FLOPs over image sizes, Vim beside FastVim.

    Times are medians over interleaved repeats, with quartiles. Writes profile.md, .csv, .json
    and plots.
    """
    from rich.console import Console
    from rich.table import Table

    from fastvim.errors import UserError, nearest
    from fastvim.profiling.study import MODES, study
    from fastvim.reports import profile
    from fastvim.training.devices import choose_device, describe_environment

    fast, vim = f"fastvim_{size}", f"vim_{size}"
    default = [vim, fast, fast + PLAIN] + (["timm/deit_tiny_patch16_224"] if size == "tiny" else [])
    names = models.split(",") if models else default
    chosen = modes.split(",")
    for mode in chosen:
        if mode not in MODES:
            raise UserError(f"--modes: no mode {mode!r}{nearest(mode, MODES)}; {', '.join(MODES)}")
    try:
        sizes = [int(text) for text in resolutions.split(",")]
    except ValueError:
        raise UserError(f"--resolutions: {resolutions!r} is not a list of pixels") from None
    device = choose_device()
    console = Console()
    found = []
    settings = {"modes": chosen, "device": device, "batch": batch, "repeats": repeats}
    with console.status("building the models") as status:
        for part in study(names, sizes, minutes=minutes, report=status.update, **settings):
            found += part
    table = Table(*profile.COLUMNS, title="Cost over image sizes")
    for row in profile.rows(found):
        table.add_row(*row)
    compared = profile.claims(found, fast, vim, fast + PLAIN)
    beside = Table("claim", "published", "ours", "where", title="The paper's figures and ours")
    for claim in compared:
        beside.add_row(*claim.values())
    console.print(table)
    console.print(beside)
    environment = describe_environment(device, "float32")
    for path in profile.write(found, compared, environment, output):
        console.print(f"wrote {path}", highlight=False)
