"""FastVim-T against timm's deit_tiny_patch16_224: forward and training step over resolutions.

    python benchmarks/against_deit.py [--rounds 5] [--threads 2] [--json FILE]

Also peak memory of a training step at 512, each in a process of its own.
"""

import subprocess
import sys
from pathlib import Path

import timm
import torch
from timing import arguments, compare, finish, interleave

from fastvim.models import create_model

SIZES = ((224, 8), (512, 2), (1024, 1))


def models(size: int) -> dict:
    return {
        "fastvim_tiny": lambda: create_model("fastvim_tiny", image_size=size),
        "deit_tiny_patch16_224": lambda: timm.create_model("deit_tiny_patch16_224", img_size=size),
    }


def forward(model: torch.nn.Module, images: torch.Tensor):
    def run():
        model.eval()
        with torch.no_grad():
            model(images)

    return run


def training_step(model: torch.nn.Module, images: torch.Tensor):
    labels = torch.zeros(images.shape[0], dtype=torch.long)

    def run():
        model.train()
        model.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(images), labels).backward()

    return run


def peak_memory(name: str, size: int, batch: int) -> float:
    """MiB that a training step adds to the loaded model; in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "--memory-of", name, str(size), str(batch)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _high_water() -> float:
    """Peak resident MiB of this process. (getrusage's would be the parent's if that is larger.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def print_peak_memory(name: str, size: int, batch: int) -> None:
    model = models(size)[name]()
    before = _high_water()
    training_step(model, torch.randn(batch, 3, size, size))()
    print(_high_water() - before)


def main() -> None:
    if "--memory-of" in sys.argv:
        name, size, batch = sys.argv[-3:]
        return print_peak_memory(name, int(size), int(batch))
    given = arguments(__doc__, rounds=5)
    torch.manual_seed(0)
    results = []
    for size, batch in SIZES:
        built = {name: build() for name, build in models(size).items()}
        images = torch.randn(batch, 3, size, size)
        for title, measure in (("forward", forward), ("training step", training_step)):
            runs = {name: measure(model, images) for name, model in built.items()}
            times = interleave(runs, given.rounds)
            results.append(compare(f"{title}, {size}, batch {batch}", times, "fastvim_tiny"))
    if Path("/proc/self/status").exists():
        memory = {name: peak_memory(name, 512, 2) for name in models(512)}
        print(f"\npeak memory of a training step, 512, batch 2: {memory} MiB")
        results.append({"title": "peak memory, 512, batch 2", "mebibytes": memory})
    finish(results, given.json)


if __name__ == "__main__":
    main()
