"""What the figures of a study or a benchmark were measured on."""

from collections.abc import Sequence
from pathlib import Path

import torch

from fastvim.kernels import native
from fastvim.kernels.backends import installed_version
from fastvim.training.devices import describe_environment, kernel_backend

# What the suite is timed against, besides PyTorch.
PEERS = ("timm", "mamba-ssm", "mambapy")


def describe(device: torch.device) -> dict:
    """Versions, the peers' too, hardware, threads, and which kernels the models use."""
    environment = describe_environment(device, "float32")
    backend = kernel_backend(device, "float32", "vim")
    if backend == "cpu" and native.LIBRARY is not None:
        level = native.LIBRARY.fastvim_level().decode()
        backend = f"cpu ({level}{'' if native.OPENMP else ', one thread: no OpenMP runtime'})"
    peers = {name: installed_version(name) for name in PEERS}
    packages = environment["packages"] | peers
    return environment | {"kernels": backend, "packages": packages}


def in_words(environment: dict, clocks: Sequence[int | None]) -> str:
    """One line of what `describe` gave, and the clocks that were seen, in MHz."""
    device, packages = environment["device"], environment["packages"]
    name = environment["cpu"] if device == "cpu" else f"{device} on {environment['cpu']}"
    seen = [clock for clock in clocks if clock]
    speeds = sorted({min(seen), max(seen)}) if seen else []
    clock = f"{' to '.join(map(str, speeds))} MHz" if speeds else "clock unknown"
    threads = f"{environment['threads']} threads of {environment['cores']} cores"
    peers = [f"{peer} {packages[peer]}" for peer in PEERS if packages[peer]]
    return ", ".join(
        [
            f"{name}, {clock}, {threads}",
            f"kernels {environment['kernels']}, {environment['precision']}",
            f"torch {packages['torch']}, {', '.join(peers)}, Python {environment['python']}",
            f"{environment['platform']}, fastvim {environment['fastvim']}"
            + (f" at {environment['revision']}" if environment["revision"] else ""),
        ]
    )


def clock_mhz(device: torch.device) -> int | None:
    """The clock at this moment, of the processor's cores the mean; None where nobody says it."""
    if device.type == "cuda":
        try:
            return torch.cuda.clock_rate(device)
        except (ModuleNotFoundError, RuntimeError):
            return None  # NVIDIA's library is not installed, or is not allowed to say.
    try:
        frequencies = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
        clocks = [int(file.read_text()) / 1e3 for file in frequencies]
        if not clocks:  # Virtual machines, and x86 alone.
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            clocks = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
    except (OSError, ValueError):
        return None
    return round(sum(clocks) / len(clocks)) if clocks else None
