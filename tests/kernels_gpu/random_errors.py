"""Largest errors of the Triton kernels over random shapes, against the definition in float64.

Prints a table of outputs and gradients by dtype; here by Triton's interpreter:

    TRITON_INTERPRET=1 python tests/kernels_gpu/random_errors.py
    python tests/kernels_gpu/random_errors.py --cases 30    on a GPU
"""

import argparse
import random
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))

from comparisons import mixer_errors, scan_errors
from interpreting import device_of_this_process, quick_interpreter
from operator_cases import LAYOUTS, layout, random_mixer_shape, random_scan_shape

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def random_scan_errors(device, dtype, draw: random.Random, steps: int | None = None) -> dict:
    """Errors of one random scan of at most `steps` state updates; other draws are passed over."""
    while True:
        shape = random_scan_shape(draw)
        updates = shape["batch"] * -(-shape["channels"] // 32) * shape["length"] * shape["states"]
        if steps is None or updates <= steps:
            return scan_errors(device, dtype, **shape)


def random_mixer_errors(device, dtype, draw: random.Random, steps: int | None = None) -> dict:
    """The same of a mixer, by tokens times states of both directions."""
    while True:
        kind = draw.choice(LAYOUTS)
        grid, shape, settings = random_mixer_shape(draw)
        if steps is None or 2 * shape["batch"] * shape["length"] * shape["states"] <= steps:
            tables = layout(kind, *grid, shape["batch"])
            return mixer_errors(device, tables, dtype, shape=shape, **settings)


def largest(errors: Callable, device, dtype, cases: int, steps: int | None) -> dict[str, float]:
    draw, worst = random.Random(0), {}
    for case in range(cases):
        for name, error in errors(device, dtype, draw, steps).items():
            worst[name] = max(worst.get(name, 0.0), error)
        print(f"\r{errors.__name__} {dtype} {case + 1}/{cases}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=12, help="of each operator and dtype")
    parser.add_argument("--steps", type=int, help="at most so many state updates a case")
    given = parser.parse_args()
    device = device_of_this_process()
    with quick_interpreter():
        for errors in (random_scan_errors, random_mixer_errors):
            columns = [largest(errors, device, dtype, given.cases, given.steps) for dtype in DTYPES]
            print(f"\n| {errors.__name__} | " + " | ".join(map(str, DTYPES)) + " |")
            print("|---" * (1 + len(DTYPES)) + "|")
            for name in columns[0]:
                cells = " | ".join(f"{column[name]:.1e}" for column in columns)
                print(f"| {name} | {cells} |")


if __name__ == "__main__":
    main()
