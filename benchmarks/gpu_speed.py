"""Time the operators on a GPU: triton, mamba_ssm where installed, plain PyTorch, and the roofline.

Prints milliseconds, medians of interleaved rounds, forward and forward with backward, beside the
time that the bytes alone would take at the speed at which this GPU copies.

    python benchmarks/gpu_speed.py [--rounds 20] [--json FILE]
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from timing import JSON, finish
from torch import Tensor

from fastvim.kernels import (
    MixerWeights,
    ScanLayout,
    available,
    pooled_mixer,
    selective_scan,
    use_backend,
)

STATES = 16
# name: d_model, tokens along an edge, batch
MIXERS = {
    "tiny at 224": (192, 14, 128),
    "base at 224": (768, 14, 128),
    "tiny at 2048": (192, 128, 1),
    "base at 2048": (768, 128, 1),
    "huge at 2044": (1280, 146, 1),
}
SCANS = {"196 steps": (64, 768, 196), "16,384 steps": (1, 768, 16384)}
# The definition takes a step of the scan a launch; at these lengths it would take minutes.
TOO_LONG = 1024


def mixer_case(
    width: int, edge: int, batch: int, pooled: bool
) -> tuple[Callable, list[Tensor], int]:
    """A loss of a bfloat16 mixer, its leaves, and the bytes that two passes cannot but move."""
    channels, rank = 2 * width, -(-width // 16)
    generator = torch.Generator("cuda").manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", generator=generator) / shape[-1] ** 0.5

    weights = MixerWeights(
        conv_weight=draw(2, channels, 4),
        conv_bias=draw(2, channels),
        x_proj=draw(2, rank + 2 * STATES, channels),
        dt_proj=draw(2, channels, rank),
        dt_bias=draw(2, channels),
        A=-torch.exp(draw(2, channels, STATES)),
        D=draw(2, channels),
        norm_weight=draw(channels),
        norm_bias=draw(channels),
    )
    xz = draw(batch, edge * edge, 2 * channels).bfloat16()
    places = torch.arange(edge * edge, device="cuda", dtype=torch.int32).view(edge, edge).t()
    steps = torch.arange(edge * edge, device="cuda", dtype=torch.int32) // edge
    layout = ScanLayout(places.reshape(-1), steps, None, edge)
    if not pooled:
        layout = ScanLayout(places.reshape(-1).contiguous())

    def loss(xz: Tensor, *tensors: Tensor) -> Tensor:
        return pooled_mixer(xz, MixerWeights(*tensors), layout)[0].float().sum()

    return loss, [t.requires_grad_() for t in (xz, *weights)], 4 * xz.numel() // 2 * 2


def scan_case(batch: int, channels: int, length: int) -> tuple[Callable, list[Tensor], int]:
    generator = torch.Generator("cuda").manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", generator=generator)

    u, delta, z = (draw(batch, channels, length).bfloat16() for _ in range(3))
    B, C = (draw(batch, STATES, length).bfloat16() for _ in range(2))
    leaves = [u, delta, -torch.exp(draw(channels, STATES)), B, C, draw(channels), z, draw(channels)]

    def loss(*tensors: Tensor) -> Tensor:
        return selective_scan(*tensors, delta_softplus=True).float().sum()

    return loss, [t.requires_grad_() for t in leaves], 4 * u.numel() * 2


def milliseconds(run: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def copy_speed() -> float:
    """Bytes a second, read and written, of a copy that no cache holds."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = [milliseconds(lambda: target.copy_(source)) for _ in range(20)]
    return 2 * source.numel() / (min(times) / 1e3)


def measure(case: tuple, backends: list[str], rounds: int, speed: float) -> dict:
    loss, leaves, least = case
    runs: dict[str, dict[str, list[float]]] = {b: {"forward": [], "both": []} for b in backends}
    for turn in range(rounds + 3):
        for backend in backends:
            with use_backend(backend):
                with torch.no_grad():
                    forward = milliseconds(lambda: loss(*leaves))
                both = milliseconds(lambda: torch.autograd.grad(loss(*leaves), leaves))
            if turn >= 3:
                runs[backend]["forward"].append(forward)
                runs[backend]["both"].append(both)
    found = {
        backend: {name: statistics.median(times) for name, times in of.items()}
        for backend, of in runs.items()
    }
    return {"bytes alone, forward": 1e3 * least / speed, **found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, help=JSON)
    given = parser.parse_args()
    reason = available()["triton"]
    if reason is not None:
        print(f"nothing to measure: {reason}")
        return 0
    works = [name for name in ("triton", "mamba_ssm") if available()[name] is None]
    speed = copy_speed()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {speed / 1e12:.2f} TB/s")
    results = {}
    for name, shape in MIXERS.items():
        for pooled in (True, False):
            length = shape[1] if pooled else shape[1] ** 2
            backends = [*works, "reference"] if length < TOO_LONG else works
            title = f"mixer, {name}, {'pooled' if pooled else 'not pooled'}"
            results[title] = measure(mixer_case(*shape, pooled), backends, given.rounds, speed)
            print(title, results[title])
    for name, shape in SCANS.items():
        backends = [*works, "reference"] if shape[2] < TOO_LONG else works
        results[f"scan, {name}"] = measure(scan_case(*shape), backends, given.rounds, speed)
        print(f"scan, {name}", results[f"scan, {name}"])
    finish([{"title": title} | rest for title, rest in results.items()], given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
