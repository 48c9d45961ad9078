"""`fastvim doctor`: what this machine offers."""

import click

LIBRARIES = ("torch", "torchvision", "timm", "numpy", "scipy", "pydantic", "safetensors", "rich")
DTYPES = ("float32", "bfloat16", "float16", "float64")


@click.command("doctor")
def command():
    """Say what was found: versions, devices, kernel backends, data sets.

    Each kernel backend that can run here computes a small case, whose error against the definition
    is shown; one that fails it makes the exit code 1.

    \b
    Example:
      fastvim doctor
    """
    import platform

    import torch

    import fastvim
    from fastvim.kernels.backends import installed_version
    from fastvim_cli.display import console, table

    out = console()
    rows = table("versions", "")
    rows.add_row("fastvim", fastvim.__version__)
    rows.add_row("Python", platform.python_version())
    for library in LIBRARIES:
        rows.add_row(library, installed_version(library) or "missing")
    out.print(rows)

    rows = table("devices", "")
    threads = torch.get_num_threads()
    rows.add_row("CPU", f"{platform.machine()}, {threads} thread{'s' if threads != 1 else ''}")
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        rows.add_row(f"CUDA {number}", f"{properties.name}, {memory}")
    if not torch.cuda.is_available():
        rows.add_row("CUDA", "none")
    out.print(rows)
    failures = _print_backends(out)
    out.print(_datasets(table("data sets", "", "where", "licence")))
    if failures:
        raise SystemExit(1)


def _print_backends(out) -> int:
    """The backend of each device and dtype, then every backend's state; how many are wrong."""
    import torch
    from rich.markup import escape

    from fastvim.errors import UserError
    from fastvim.kernels import backends, native
    from fastvim_cli.display import table

    kinds = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    chosen = table("kernel backend", *DTYPES)
    for kind in kinds:
        cells = []
        for name in DTYPES:
            try:
                cells.append(backends.choose(kind, getattr(torch, name)))
            except UserError as error:
                cells.append(escape(str(error)))
        chosen.add_row(f"on {kind}", *cells)
    out.print(chosen)
    out.print(backends.RULE)

    failures = 0
    rows = table("kernel backends", "", "largest error of a small case, gradients too (float32)")
    for name, reason in backends.available().items():
        if reason is not None:
            rows.add_row(name, f"does not work: {escape(reason)}", "")
            continue
        for kind in kinds:
            if backends.takes(name, kind, torch.float32):
                said, error, right = _prove(name, torch.device(kind))
                state = f"{said} on {kind}"
                if name == "cpu" and native.OPENMP is None:
                    state += ", on one thread, for torch has no OpenMP runtime"
                rows.add_row(name, state, escape(error))
                failures += not right
    out.print(rows)
    return failures


def _prove(name: str, device) -> tuple[str, str, bool]:
    """(`works` or not, the error, whether it is small) of a backend on a device."""
    from fastvim.kernels.check import TOLERANCE, largest_error

    try:
        error = largest_error(name, device)
    except Exception as problem:  # Whatever a compiler or a driver raises is the finding.
        lines = str(problem).strip().splitlines() or [""]
        return "FAILS", f"{type(problem).__name__}: {lines[0]}", False
    right = error < TOLERANCE
    return ("works" if right else "IS WRONG"), f"{error:.1e}", right


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
