"""Interleaved timing for the benchmarks: every contender once a round, so drift hits all alike.

Two clocks: the wall's, and the processor's (over all threads), which other programs on the machine
disturb less.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fastvim.files import write_atomic
from fastvim.profiling.machine import clock_mhz, describe, in_words

JSON = "write the figures there too; benchmarks/compare.py sets two such files side by side"


def arguments(description: str, rounds: int, **more: str | int) -> argparse.Namespace:
    """The options of a benchmark; `more` are those of its own, name=default."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    for name, default in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--json", type=Path, help=JSON)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    return given


def interleave(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, list]:
    """(wall, processor) seconds of each contender in each round, after one round of warm-up."""
    times: dict[str, list] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            wall, processor = time.perf_counter(), time.process_time()
            run()
            if turn:
                times[name].append((time.perf_counter() - wall, time.process_time() - processor))
    return times


def spread(values: list[float]) -> dict:
    """The median and the quartiles."""
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    return {"median": middle, "quartiles": [low, high]}


def compare(title: str, times: dict[str, list], ours: str) -> dict:
    """Print and return the seconds of each contender and how many times faster `ours` is."""
    print(f"\n{title}")
    result = {"title": title, "ours": ours, "contenders": {}}
    for name, seconds in times.items():
        entry = {}
        for i, clock in enumerate(("wall", "processor")):
            entry[clock] = spread([pair[i] for pair in seconds])
            if name != ours:
                pairs = zip(seconds, times[ours], strict=True)
                entry[f"{clock}_ratio"] = spread([a[i] / b[i] for a, b in pairs])
        result["contenders"][name] = entry
        wall = entry["wall"]
        line = f"  {name:32} {wall['median'] * 1e3:9.2f} ms"
        line += f" [{wall['quartiles'][0] * 1e3:.2f} to {wall['quartiles'][1] * 1e3:.2f}]"
        if name != ours:
            ratio, processor = entry["wall_ratio"], entry["processor_ratio"]
            line += f"   {ratio['median']:.2f} x [{ratio['quartiles'][0]:.2f}"
            line += f" to {ratio['quartiles'][1]:.2f}], processor {processor['median']:.2f} x"
        print(line, flush=True)
    return result


def finish(results: list[dict], path: Path | None) -> None:
    """Print the machine, and write everything as JSON if asked."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    machine, clock = describe(device), clock_mhz(device)
    print(f"\n{in_words(machine, [clock])}")
    if path:
        content = {"machine": machine | {"clock_mhz": clock}, "results": results}
        write_atomic(path, json.dumps(content, indent=1, default=float) + "\n")
