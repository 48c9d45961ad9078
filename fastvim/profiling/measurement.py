"""What the resolution study measures of one model at one image size."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields

from fastvim.profiling.timing import Timing

MODES = ("forward", "training", "graph")
NO_TIME = "no time left in the budget"


@dataclass
class Measurement:
    """One model at one image size. Times in seconds a batch, memory in MB, GFLOPs an image.

    `gflops` are fvcore's, `own_gflops` and `literature_gflops` those of `fastvim.profiling.flops`.
    `stages` are seconds of
    the parts of a cycle of blocks (see `block_stages`), `scan_seconds` those of the model's scans.
    `scale` says where it was measured, as in `fastvim.analysis.claims`.
    """

    model: str
    resolution: int
    batch: int
    tokens: int = 0
    steps: int = 0
    parameters: int = 0
    gflops: float | None = None
    own_gflops: float | None = None
    literature_gflops: float | None = None
    seconds: dict[str, Timing] = field(default_factory=dict)
    peak_memory_mb: dict[str, float] = field(default_factory=dict)
    stages: dict[str, Timing] = field(default_factory=dict)
    scan_seconds: float | None = None
    clock_mhz: int | None = None
    scale: dict[str, int] = field(default_factory=dict)
    problem: str | None = None

    def images_per_second(self, mode: str) -> float | None:
        """The median over repeats; None where it was not measured."""
        timing = self.seconds.get(mode)
        return self.batch / timing.median if timing else None

    def scan_timing(self) -> Timing | None:
        """Seconds of all scans of a forward pass, with their spread."""
        if self.scan_seconds is None:
            return None
        scan = self.stages["scan"]
        times = self.scan_seconds / scan.median
        calls = tuple(times * seconds for seconds in scan.calls)
        return Timing(self.scan_seconds, times * scan.lower, times * scan.upper, calls)

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        rates = {mode: self.images_per_second(mode) for mode in self.seconds}
        return asdict(self) | {"images_per_second": rates}

    @classmethod
    def from_dict(cls, values: dict) -> "Measurement":
        """What `to_dict` gave."""
        known = {f.name: values[f.name] for f in fields(cls)}
        for name in ("seconds", "stages"):
            known[name] = {
                key: Timing(**timing | {"calls": tuple(timing["calls"])})
                for key, timing in known[name].items()
            }
        return cls(**known)

    @property
    def lacked_time(self) -> bool:
        """Whether the budget ended before all of it was measured."""
        return NO_TIME in (self.problem or "")

    def add_problem(self, problem: str) -> None:
        """One more thing that could not be measured."""
        self.problem = f"{self.problem}; {problem}" if self.problem else problem


def with_size(found: Sequence[Measurement], part: list[Measurement]) -> list[Measurement]:
    """`found` with `part`, all models of one size, in place of what was found at that size before.

    As it was, if now there was no time for any of it: rows of a size are comparable because they
    were measured together.
    """
    resolution = part[0].resolution
    before = [m for m in found if m.resolution == resolution]
    if before and not any(m.seconds for m in part):
        return list(found)
    others = [m for m in found if m.resolution != resolution]
    return sorted(others + part, key=lambda m: m.resolution)
