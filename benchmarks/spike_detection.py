"""How well and how fast loss spikes are found: `python benchmarks/spike_detection.py`.

Precision and recall on the labelled synthetic suite, by size of the spike in deviations of the
noise, against OLMo-core's StabilityMonitor and OLMo 2's spike score; and the cost of a value
offline, online and read from an event file. `--quick` takes a tenth of the values for the costs;
`--logs FILE...` also reviews real logs; `--json FILE` writes the figures there too.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from timing import JSON, finish

from fastvim.stability import SpikeDetector, detect
from fastvim.stability.readers import read_curves
from fastvim.stability.review import review
from fastvim.stability.scoring import DETECTORS, Score, score
from fastvim.stability.synthetic import ENDINGS, SIZES, suite

console = Console(width=140)


def share(counts: list[int] | None) -> str:
    """Found of labelled, as a share."""
    return f"{counts[0] / counts[1]:.2f} ({counts[1]})" if counts else "-"


def print_scores(scores: dict[str, Score]) -> dict:
    """Precision and recall overall, recall by size, recall of sustained changes."""
    table = Table("detector", "precision", "recall", "found", "false")
    for name, one in scores.items():
        table.add_row(
            name, f"{one.precision:.3f}", f"{one.recall:.3f}", str(one.true), str(one.false)
        )
    console.print(table)
    for title, keys, field in (
        ("recall by size in deviations (labelled)", SIZES, "by_size"),
        ("recall of sustained changes (labelled)", ENDINGS, "by_kind"),
    ):
        table = Table("detector", *[f"{key}" for key in keys], title=title)
        for name, one in scores.items():
            table.add_row(name, *[share(getattr(one, field).get(key)) for key in keys])
        console.print(table)
    return {"title": "labelled curves"} | {
        name: {
            "precision": one.precision,
            "recall": one.recall,
            "false": one.false,
            "recall by size": {f"{size:g}": a / b for size, (a, b) in sorted(one.by_size.items())},
            "recall of changes": {kind: a / b for kind, (a, b) in one.by_kind.items()},
        }
        for name, one in scores.items()
    }


def print_families(curves: list) -> None:
    """False detections and recall of each sort of curve."""
    names = dict.fromkeys(curve.name for curve in curves)
    table = Table("curves", *DETECTORS, title="recall / false detections by sort of curve")
    for name in names:
        members = [curve for curve in curves if curve.name == name]
        labelled = any(curve.labels for curve in members)
        cells = []
        for detector in DETECTORS.values():
            one = score(members, detector)
            cells.append(f"{one.recall:.2f} / {one.false}" if labelled else f"- / {one.false}")
        table.add_row(name, *cells)
    console.print(table)


def curve_of(count: int, tail: bool) -> np.ndarray:
    """A falling loss with normal or heavy-tailed noise."""
    rng = np.random.default_rng(0)
    noise = rng.standard_t(3, count) if tail else rng.standard_normal(count)
    return 2 + np.exp(-np.arange(count) / (count / 3)) + 0.05 * noise


def print_costs(count: int) -> dict:
    """Seconds for `count` values, by the clock and of one core; best of three."""
    result: dict = {"title": "cost, microseconds of one core a value"}
    table = Table("cost", "values", "seconds", "of one core", "microseconds a value")

    def measure(name: str, values: int, work) -> None:
        times = [_seconds(work) for _ in range(3)]
        clock, core = np.min(times, axis=0)
        each = result[name] = 1e6 * core / values
        table.add_row(name, f"{values:,}", f"{clock:.3f}", f"{core:.3f}", f"{each:.2f}")

    steps = np.arange(count)
    for tail, name in ((False, "normal noise"), (True, "heavy tails")):
        values = curve_of(count, tail)
        measure(f"offline, {name}", count, lambda values=values: detect(steps, values))
    few = curve_of(count // 10, False).tolist()

    def online() -> None:
        detector = SpikeDetector()
        for step, value in enumerate(few):
            detector.update(step, value)

    measure("online, a call each", len(few), online)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.out.tfevents.1.benchmark"
        with open(path, "wb") as file:
            writer = RecordWriter(file)
            for step, value in enumerate(curve_of(count, False).tolist()):
                summary = Summary(value=[Summary.Value(tag="loss", simple_value=value)])
                writer.write(Event(step=step, summary=summary).SerializeToString())
        measure("event file, read", count, lambda: read_curves([path]))
        measure("event file, reviewed", count, lambda: review(read_curves([path])[0]))
    console.print(table)
    return result


def _seconds(work) -> tuple[float, float]:
    clock, core = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - core


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the values for the costs")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of the suite")
    parser.add_argument("--logs", type=Path, nargs="*", default=[], help="real logs to review")
    parser.add_argument("--json", type=Path, help=JSON)
    arguments = parser.parse_args()
    curves = suite(arguments.seeds)
    values = sum(len(curve.values) for curve in curves)
    console.print(f"{len(curves)} curves, {values:,} values")
    scores = print_scores({name: score(curves, found) for name, found in DETECTORS.items()})
    print_families(curves)
    for curve in read_curves(arguments.logs) if arguments.logs else []:
        entry = review(curve)
        peaks = ", ".join(f"{e.kind} at {e.peak_step:g} ({e.height:.1f})" for e in entry.episodes)
        console.print(f"{curve.path}: {peaks or 'none'}")
    costs = print_costs(100_000 if arguments.quick else 1_000_000)
    finish([scores, costs], arguments.json)


if __name__ == "__main__":
    main()
