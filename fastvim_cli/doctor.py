"""`fastvim doctor`: what this machine offers."""

import click

LIBRARIES = ("torch", "torchvision", "timm", "numpy", "scipy", "pydantic", "safetensors", "rich")


@click.command("doctor")
def command():
    """Say what was found: versions, devices, which backends work and why others don't, data sets.

    \b
    Example:
      fastvim doctor
    """
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    import fastvim
    from fastvim_cli.display import console, table

    out = console()
    rows = table("versions", "")
    rows.add_row("fastvim", fastvim.__version__)
    rows.add_row("Python", platform.python_version())
    for library in LIBRARIES:
        try:
            rows.add_row(library, version(library))
        except PackageNotFoundError:
            rows.add_row(library, "missing")
    out.print(rows)

    rows = table("devices", "")
    rows.add_row("CPU", f"{platform.machine()}, {torch.get_num_threads()} threads")
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        rows.add_row(f"CUDA {number}", f"{properties.name}, {memory}")
    if not torch.cuda.is_available():
        rows.add_row("CUDA", "none")
    out.print(rows)
    out.print(_backends(table("kernel backends", "")))
    out.print(_datasets(table("data sets", "", "where", "licence")))


def _backends(rows):
    from rich.markup import escape

    from fastvim.kernels import backends

    for name, reason in backends.available().items():
        rows.add_row(name, "works" if reason is None else f"does not: {escape(reason)}")
    return rows


def _datasets(rows):
    from rich.markup import escape

    from fastvim.data import find_datasets

    for found in find_datasets():
        if found.found:
            rows.add_row(found.name, "found", escape(str(found.path)), found.licence)
        else:
            looked = "\n".join(found.looked)
            rows.add_row(found.name, "not found", escape(looked), found.licence)
    return rows
