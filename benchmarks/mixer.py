"""Where a model's time goes: matrix products, the mixer's C++ kernels, everything else.

    python benchmarks/mixer.py [--rounds 5] [--threads 2] [--json FILE]

FastVim-T at 224, and a training step of the small models at batch 128, taken apart by PyTorch's
profiler, the fused block by its own clock; then FastVim-T's and Vim-T's forward against the same
models on the reference backend.
Shares are of the time inside operators.
"""

import ctypes
from collections import Counter

import torch
from timing import arguments, compare, finish, interleave
from torch.profiler import ProfilerActivity, profile

from fastvim.kernels import calls, use_backend
from fastvim.kernels.native import BLOCK_STAGES
from fastvim.models import create_model


def kind(name: str) -> str | None:
    """The share an operator's own time counts to; None for what is not an operator."""
    if name.startswith(("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm")):
        return "matrix products"
    if "mkldnn" in name or "convolution" in name:
        return "patch embedding"
    if name.startswith("kernel::"):
        return name.removeprefix("kernel::fastvim_")
    if "norm" in name:
        return "norm of the block"
    return "everything else" if "::" in name or "Backward" in name else None


def breakdown(title: str, run) -> dict:
    """Print and return the shares of one call of `run`."""
    plain_run = calls.run
    seconds = (ctypes.c_double * len(BLOCK_STAGES))()

    def named_run(name, call, dtype):
        if name == "fastvim_block_forward":
            call.seconds = ctypes.addressof(seconds)
        with torch.profiler.record_function(f"kernel::{name}"):
            plain_run(name, call, dtype)

    calls.run = named_run
    try:
        run()
        ctypes.memset(seconds, 0, ctypes.sizeof(seconds))
        with profile(activities=[ProfilerActivity.CPU]) as trace:
            for _ in range(3):
                run()
    finally:
        calls.run = plain_run
    shares = Counter()
    for event in trace.key_averages():
        name = kind(event.key)
        if name:
            shares[name] += event.self_cpu_time_total
    # A fused block in its stages: all but the products are the mixer's, or the norm before it.
    for stage, spent in zip(BLOCK_STAGES, seconds if any(seconds) else (), strict=False):
        name = {"products": "matrix products", "norm": "norm of the block"}.get(stage, stage)
        shares[f"block: {name}" if name == stage else name] += spent * 1e6
        shares["block_forward"] -= spent * 1e6
    total = sum(shares.values())
    print(f"\n{title}: {total / 3e3:.1f} ms")
    for name, time in shares.most_common():
        print(f"  {name:28} {time / 3e3:9.2f} ms  {100 * time / total:5.1f} %")
    return {"title": title, "milliseconds": {name: time / 3e3 for name, time in shares.items()}}


def training_step(name: str, batch: int, size: int, **overrides):
    model = create_model(name, **overrides)
    images = torch.randn(batch, overrides.get("in_channels", 3), size, size)

    def step():
        model.zero_grad(set_to_none=True)
        model(images).square().sum().backward()

    return step


def forward(name: str, batch: int, size: int, backend: str):
    model = create_model(name, image_size=size).eval()
    images = torch.randn(batch, 3, size, size)

    def run():
        with torch.no_grad(), use_backend(backend):
            model(images)

    return run


def main() -> None:
    given = arguments(__doc__, rounds=5)
    torch.manual_seed(0)
    results = [
        breakdown("FastVim-T forward, 224, batch 8", forward("fastvim_tiny", 8, 224, "cpu")),
        breakdown("FastVim-T training step, 224, batch 8", training_step("fastvim_tiny", 8, 224)),
    ]
    for name in ("fastvim_pico", "fastvim_nano"):
        step = training_step(name, 128, 28, image_size=28, patch_size=2, in_channels=1)
        results.append(breakdown(f"{name} training step, 14 x 14 tokens, batch 128", step))
    for name, size, batch in (("vim_tiny", 224, 2), ("vim_tiny", 512, 1), ("fastvim_tiny", 224, 2)):
        runs = {backend: forward(name, batch, size, backend) for backend in ("cpu", "reference")}
        title = f"{name} forward, {size}, batch {batch}"
        results.append(compare(title, interleave(runs, given.rounds), "cpu"))
    finish(results, given.json)


if __name__ == "__main__":
    main()
