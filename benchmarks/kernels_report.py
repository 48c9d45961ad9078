"""Compile every Triton kernel ahead of time and tabulate what it needs; no GPU is needed.

For each model size, image size and architecture: registers, shared memory, spills, theoretical
occupancy; and for a mixer as a whole: bytes against the least that the two-pass design moves,
arithmetic per byte, and the time a roofline of an A100 and an H100 gives, beside the unfused chain
and mamba-ssm. `make kernels-report` prints all of it. The exit code is 1 if a kernel spills, a
mixer moves more than MOST times the least, or one that pools at 1024 pixels or more moves more than
MOST_OF_CHAIN of what the unfused chain does.

    python benchmarks/kernels_report.py --models tiny --sizes 2048 --targets 80
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import triton
from kernel_costs import (
    Cost,
    Operations,
    launch_cost,
    least,
    published_chain,
    unpooled_mamba_ssm,
)
from rich.console import Console
from rich.progress import track
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastvim.files import write_atomic
from fastvim.kernels import MixerWeights, ScanLayout
from fastvim.kernels import triton as kernels
from fastvim.kernels.triton.launch import Launch, list_launches

# (d_model, patch); images of 224 pixels in the batches of a training on eight GPUs.
MODELS = {"tiny": (192, 16), "base": (768, 16), "huge": (1280, 14)}
BATCHES = {224: 128, 1024: 1, 2048: 1}
STATES = 16
MOST, MOST_OF_CHAIN = 1.25, 1 / 3
# Peaks of the SXM cards: bytes/s, float32 operations/s outside tensor cores, special functions/s.
GPUS = {
    "A100": {"bytes": 2.039e12, "flops": 19.5e12, "special": 16 * 108 * 1.41e9},
    "H100": {"bytes": 3.35e12, "flops": 66.9e12, "special": 16 * 132 * 1.83e9},
}
# Of a multiprocessor: registers, warps, programs, bytes of shared memory.
LIMITS = {80: (65536, 64, 32, 164 << 10), 90: (65536, 64, 32, 228 << 10)}
LIMITS[100] = LIMITS[90]
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int32: "i32"}


def mixer_launches(
    model: str, pixels: int, pooling: str, dtype: torch.dtype
) -> tuple[dict, list[Launch], list[Launch], Cost]:
    """A mixer's sizes, its launches forward and backward, and what torch does between them."""
    width, patch = MODELS[model]
    rows, channels, rank = pixels // patch, 2 * width, -(-width // 16)
    batch, length = BATCHES[pixels], rows * rows

    def empty(*shape: int, dtype: torch.dtype = torch.float32):
        return torch.empty(*shape, dtype=dtype, device="meta")

    weights = MixerWeights(
        conv_weight=empty(2, channels, 4),
        conv_bias=empty(2, channels),
        x_proj=empty(2, rank + 2 * STATES, channels),
        dt_proj=empty(2, channels, rank),
        dt_bias=empty(2, channels),
        A=empty(2, channels, STATES),
        D=empty(2, channels),
        norm_weight=empty(channels),
        norm_bias=empty(channels),
    )
    pooled = pooling != "none"
    table = empty(length, dtype=torch.int32)
    layout = ScanLayout(table, table, None, rows) if pooled else ScanLayout(table)
    how = {"pooling": pooling if pooled else "mean", "scale": 1.0, "merge": "mean"}
    how |= {"gate": True, "eps": 1e-5}
    xz = empty(batch, length, 2 * channels, dtype=dtype)
    with list_launches() as listed, Operations() as forward:
        out, *kept = kernels.pooled_mixer(xz, weights, layout, **how)
    with list_launches() as listed_back, Operations() as backward:
        kernels.pooled_mixer_backward(out, xz, weights, layout, *kept, **how)
    sizes = {"batch": batch, "length": length, "channels": channels, "states": STATES}
    sizes |= {"steps": rows if pooled else length, "rank": rank, "element": xz.element_size()}
    return sizes, listed, listed_back, (forward.cost, backward.cost)


def scan_launches(channels: int, length: int, gated: bool, dtype: torch.dtype) -> list[Launch]:
    """The launches of `selective_scan` and its backward, with all options or the fewest."""

    def empty(*shape: int):
        return torch.empty(*shape, dtype=dtype, device="meta")

    sequence, matrix = empty(1, channels, length), empty(1, STATES, length)
    options = (empty(channels), sequence, empty(channels)) if gated else (None, None, None)
    given = (sequence, sequence, empty(channels, STATES), matrix, matrix, *options)
    with list_launches() as listed:
        y, state = kernels.selective_scan(*given, gated)
        kernels.selective_scan_backward(y, state, given, gated)
    return listed


def compile_launch(launch: Launch, capability: int):
    """The compiled kernel, specialised as Triton would when launching it."""
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[(i,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + TYPES[value.dtype]
            if value.storage_offset() * value.element_size() % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        elif value == 1 and not parameter.do_not_specialize:
            signature[parameter.name], constants[(i,)] = "constexpr", 1
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(i,)] = [["tt.divisibility", 16]]
    options = {"num_warps": launch.num_warps, "enable_fp_fusion": True}
    if launch.max_registers:
        options["maxnreg"] = launch.max_registers
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(compiled, warps: int, capability: int) -> dict:
    """Registers of a thread, spilled and shared bytes of a program, and warps that fit, in %."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        command = [str(tool), "--dump-resource-usage", str(cubin)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
    registers, most_warps, most_programs, shared = LIMITS[capability]
    per_warp = -(-found["REG"] * 32 // 256) * 256
    programs = min(registers // per_warp // warps, most_warps // warps, most_programs)
    if compiled.metadata.shared:
        programs = min(programs, shared // (compiled.metadata.shared + 1024))
    return {
        "registers": found["REG"],
        "spilled": found["STACK"] + found["LOCAL"],
        "shared": compiled.metadata.shared,
        "occupancy": round(100 * programs * warps / most_warps),
    }


def kernel_rows(launches: list[Launch], targets: list[int]) -> Iterator[dict]:
    """A row for each kernel as it is launched: options, and resources for each target."""
    seen = set()
    for launch in launches:
        flags = {k: v for k, v in launch.arguments.items() if k.isupper() and v is True}
        tiles = tuple(launch.arguments.get(k, 1) for k in ("TILE", "G", "BLOCK"))
        key = launch.kernel.__name__, *flags, tiles, launch.num_warps
        if key in seen:
            continue
        seen.add(key)
        row = {
            "kernel": launch.kernel.__name__,
            "options": sorted(flags),
            "tile": tiles,
            "warps": launch.num_warps,
            "programs": launch.grid[0] * launch.grid[1] * launch.grid[2],
        }
        for target in targets:
            compiled = compile_launch(launch, target)
            row[f"sm_{target}"] = resources(compiled, launch.num_warps, target)
        yield row


def mixer_row(model: str, pixels: int, pooling: str, dtype: torch.dtype) -> dict:
    """Bytes, arithmetic and roofline times of a mixer and of its peers."""
    sizes, forward, backward, between = mixer_launches(model, pixels, pooling, dtype)
    row = {"model": model, "pixels": pixels, "pooling": pooling, **sizes}
    split = any(launch.kernel.__name__ == "scan_carry" for launch in forward)
    minima = least(**sizes, pooled=pooling != "none", split=split)
    for name, launches, extra, bound in zip(
        ("forward", "backward"), (forward, backward), between, minima, strict=True
    ):
        cost = sum((launch_cost(launch) for launch in launches), extra)
        row[name] = {
            "bytes": cost.bytes,
            "least": bound,
            "ratio": cost.bytes / bound,
            "with_halos": (cost.bytes + cost.halo_bytes) / bound,
            "flops_per_byte": cost.flops / cost.bytes,
            "microseconds": {gpu: 1e6 * cost.seconds(peak) for gpu, peak in GPUS.items()},
        }
    chain = published_chain(**sizes)
    plain = {name: sizes[name] for name in ("batch", "length", "channels", "states", "rank")}
    vim = unpooled_mamba_ssm(**plain, element=sizes["element"])
    for name, peer in (("chain", chain), ("mamba_ssm", vim)):
        row[name] = {
            "bytes": peer.bytes,
            "share": row["forward"]["bytes"] / peer.bytes,
            "microseconds": {gpu: 1e6 * peer.seconds(peak) for gpu, peak in GPUS.items()},
        }
    return row


def print_kernels(title: str, rows: list[dict], targets: list[int]) -> None:
    columns = " | ".join(f"sm_{t}: reg / spill / smem / occ." for t in targets)
    print(f"\n## {title}\n\n| kernel | tile | warps | programs | {columns} |")
    print("|---" * (4 + len(targets)) + "|")
    for row in rows:
        cells = []
        for target in targets:
            r = row[f"sm_{target}"]
            cells.append(f"{r['registers']} / {r['spilled']} / {r['shared']} / {r['occupancy']} %")
        shown = {"OUTPUT", "ENDS", "CARRIED", "BACKWARD", "TIES", "HAS_Z"}
        options = [o.lower() for o in row["options"] if o in shown]
        name = " ".join([row["kernel"], *options])
        tile = "x".join(str(t) for t in row["tile"])
        print(f"| {name} | {tile} | {row['warps']} | {row['programs']} | {' | '.join(cells)} |")


def print_mixers(rows: list[dict]) -> None:
    print(
        "\n## Bytes of a mixer and roofline times (bfloat16)\n\n"
        "`x least`: DRAM bytes over the least that the two-pass design moves, and, in brackets, "
        "had no border of a tile been in the cache. Peers: forward only.\n\n"
        "| model | pixels | pooling | batch | pass | MB | x least | FLOP/B | A100 us | H100 us |\n"
        "|---|---|---|---|---|---|---|---|---|---|"
    )
    for row in rows:
        what = f"| {row['model']} | {row['pixels']} | {row['pooling']} | {row['batch']}"
        for name in ("forward", "backward"):
            r = row[name]
            times = " | ".join(f"{r['microseconds'][gpu]:.0f}" for gpu in GPUS)
            print(
                f"{what} | {name} | {r['bytes'] / 1e6:.0f} | {r['ratio']:.2f} "
                f"({r['with_halos']:.2f}) | {r['flops_per_byte']:.0f} | {times} |"
            )
        for name, title in (("chain", "unfused chain"), ("mamba_ssm", "Vim by mamba-ssm")):
            r = row[name]
            times = " | ".join(f"{r['microseconds'][gpu]:.0f}" for gpu in GPUS)
            share = f"ours moves {r['share']:.2f} of it"
            print(f"{what} | {title} | {r['bytes'] / 1e6:.0f} | {share} | | {times} |")


def failures(mixers: list[dict], tables: dict[str, list[dict]], targets: list[int]) -> list[str]:
    """What does not meet a bar, a line each."""
    found = [
        f"{title}: {row['kernel']} on sm_{target} spills {row[f'sm_{target}']['spilled']} bytes"
        for title, rows in tables.items()
        for row in rows
        for target in targets
        if row[f"sm_{target}"]["spilled"]
    ]
    for row in mixers:
        what = f"{row['model']}, {row['pixels']} pixels, pooling {row['pooling']}"
        found += [
            f"{what}: the {name} moves {row[name]['ratio']:.3f} times the least, above {MOST}"
            for name in ("forward", "backward")
            if row[name]["ratio"] > MOST
        ]
        pools = row["pooling"] != "none" and row["pixels"] >= 1024
        if pools and row["chain"]["share"] > MOST_OF_CHAIN:
            share = row["chain"]["share"]
            found.append(f"{what}: {share:.3f} of the unfused chain, above {MOST_OF_CHAIN:.3f}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="tiny,base,huge")
    parser.add_argument("--sizes", default="224,1024,2048")
    parser.add_argument("--poolings", default="mean,none")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--targets", default="80,90,100")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    given = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("unset TRITON_INTERPRET: interpreted kernels are not compiled")
    targets = [int(target) for target in given.targets.split(",")]
    dtypes = [getattr(torch, name) for name in given.dtypes.split(",")]
    shapes = list(
        itertools.product(
            given.models.split(","), map(int, given.sizes.split(",")), given.poolings.split(",")
        )
    )
    mixers = [mixer_row(*shape, torch.bfloat16) for shape in shapes]
    listed = {}
    for (model, pixels, pooling), dtype in itertools.product(shapes, dtypes):
        _, forward, backward, _ = mixer_launches(model, pixels, pooling, dtype)
        listed[f"{model}, {pixels} pixels, pooling {pooling}, {dtype}"] = forward + backward
    for gated, dtype in itertools.product((True, False), dtypes):
        title = f"selective_scan, {'all' if gated else 'no'} options, {dtype}"
        listed[title] = scan_launches(1536, 16384, gated, dtype)
    tables = {}
    for title in track(listed, "compiling", console=Console(stderr=True)):
        tables[title] = list(kernel_rows(listed[title], targets))
    for title, rows in tables.items():
        print_kernels(title, rows, targets)
    print_mixers(mixers)
    if given.json:
        write_atomic(given.json, json.dumps({"mixers": mixers, "kernels": tables}, indent=1))
    missed = failures(mixers, tables, targets)
    print("\n" + ("missed:\n" + "\n".join(missed) if missed else "No kernel spills; all bars met."))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
