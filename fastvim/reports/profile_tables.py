"""The resolution study as tables: whole models, parts of a block, the paper's figures beside."""

import statistics
from collections.abc import Iterator, Sequence

import numpy as np

from fastvim.profiling.measurement import MODES, Measurement
from fastvim.profiling.stages import BLOCK_STAGES, UNFUSED_STAGES

# The parts that a block's time is shared out to, and the stages of the chain that each is.
SHARES = {
    "matrix products": ("in_proj", "out_proj"),
    "projections": ("projections",),
    "convolution": ("convolution",),
    "pooling": ("pooling",),
    "scan": ("scan",),
    "broadcast": ("broadcast",),
    "norm": ("norm",),
    "gate": ("gate",),
    "rest": ("transpose", "flip", "merge", "residual"),
}
MODELS = ("model", "pixels", "batch", "tokens L", "steps h", "GFLOPs fvcore", "GFLOPs own")
MODELS += ("forward img/s", "train img/s", "graph img/s", "forward MB", "train MB", "problem")
BLOCKS = ("model", "pixels", *SHARES, "scan ms", "growth", "block", "operator", "sum")
CLAIMS = ("claim", "published", "ours", "where")
NOTES = (
    "img/s: median over interleaved rounds, quartiles in brackets; train: forward and backward; "
    "graph: the forward as one CUDA graph. MB: the most that is held at once.",
    "GFLOPs are of one image's forward, a multiply-add is one. fvcore reads a trace; the own count "
    "takes the operator's from the model's sizes and the rest as PyTorch dispatches it. fvcore "
    "adds layer norms outside the operator. Attention's products are in both. Of a scan's step, "
    "channel and state both count 5 operations; the literature, and the claim on FLOPs, counts 9 "
    "(github.com/state-spaces/mamba/issues/110).",
    "Parts of a block, unfused: percent of its forward time, as published, where every step stores "
    "what it makes. Matrix products: in_proj and out_proj; projections: x_proj and dt_proj, on the "
    "pooled steps; rest: flips, transposes, the sum of the directions, the norm and the sum around "
    "the mixer.",
    "scan ms: all selective scans of one forward pass of a batch; growth: of an image, since the "
    "model's first size.",
    "block: its time as the models run it, fused, over the unfused one's; operator: the same of "
    "what is between in_proj and out_proj; sum: the parts, each timed alone, over the unfused "
    "block timed in one go.",
)


def model_rows(measurements: Sequence[Measurement]) -> list[list[str]]:
    """Cells under `MODELS`, a row a model and size."""
    return [
        [
            *_place(m),
            str(m.batch),
            str(m.tokens or ""),
            str(m.steps or ""),
            _number(m.gflops, ".4g"),
            _number(m.own_gflops, ".4g"),
            *(_rate(m, mode) for mode in ("forward", "training", "graph")),
            *(_number(m.peak_memory_mb.get(mode), ".0f") for mode in ("forward", "training")),
            m.problem or "",
        ]
        for m in measurements
    ]


def block_rows(measurements: Sequence[Measurement]) -> list[list[str]]:
    """Cells under `BLOCKS`, a row a model and size that was taken apart."""
    table = []
    for m in measurements:
        scan = m.scan_timing()
        if scan is not None:
            parts, ratios = shares(m), block_ratios(m)
            table.append(
                [
                    *_place(m),
                    *(
                        _number(100 * parts[name], ".1f") if name in parts else ""
                        for name in SHARES
                    ),
                    f"{1e3 * scan.median:.3g} ({1e3 * scan.lower:.3g}-{1e3 * scan.upper:.3g})",
                    f"{scan_growth(measurements, m):.3g}x",
                    *(f"{ratio:.2f}" for ratio in ratios.values()),
                ]
            )
    return table


def figures(measurements: Sequence[Measurement]) -> list[dict[str, object]]:
    """All figures of the tables as numbers, a row a model and size; times in seconds a batch."""
    table = []
    for m in measurements:
        row: dict[str, object] = {
            "model": m.model,
            "pixels": m.resolution,
            "batch": m.batch,
            "tokens": m.tokens,
            "steps": m.steps,
            "parameters": m.parameters,
            "gflops_fvcore": m.gflops,
            "gflops_own": m.own_gflops,
            "clock_mhz": m.clock_mhz,
        }
        timings = {mode: m.seconds.get(mode) for mode in MODES} | {"scan": m.scan_timing()}
        for name, timing in timings.items():
            for key in ("median", "lower", "upper"):
                row[f"{name}_seconds_{key}"] = getattr(timing, key) if timing else None
            row[f"{name}_rounds"] = len(timing.calls) if timing else None
            if name in MODES:
                row[f"{name}_images_per_second"] = m.images_per_second(name)
                row[f"{name}_peak_mb"] = m.peak_memory_mb.get(name)
        parts, ratios = (shares(m), block_ratios(m)) if m.stages else ({}, {})
        row["scan_growth"] = scan_growth(measurements, m) if m.stages else None
        row |= {f"share_{name.replace(' ', '_')}": parts.get(name) for name in SHARES}
        row |= {f"ratio_{name}": ratios.get(name) for name in ("block", "operator", "parts")}
        table.append(row | {"problem": m.problem})
    return table


def _place(m: Measurement) -> list[str]:
    return [m.model, str(m.resolution)]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _rate(m: Measurement, mode: str) -> str:
    timing = m.seconds.get(mode)
    if timing is None:
        return ""
    middle, low, high = (m.batch / t for t in (timing.median, timing.upper, timing.lower))
    spread = f"{low:.3g}-{high:.3g}" if len(timing.calls) > 1 else "one round"
    return f"{middle:.3g} ({spread})"


def shares(m: Measurement) -> dict[str, float]:
    """Each part's share of the sum of the parts of an unfused block, forward."""
    parts = {
        name: sum(m.stages[stage].median for stage in stages if stage in m.stages)
        for name, stages in SHARES.items()
        if any(stage in m.stages for stage in stages)
    }
    return {name: value / sum(parts.values()) for name, value in parts.items()}


def block_ratios(m: Measurement) -> dict[str, float]:
    """`block` and `operator`, fused over unfused; `parts`, their sum over the whole in one go."""

    def total(names: Sequence[str]) -> float:
        return sum(m.stages[name].median for name in names if name in m.stages)

    whole = m.stages["unfused"].median
    return {
        "block": m.stages["block"].median / whole,
        "operator": m.stages["fused"].median / total(UNFUSED_STAGES),
        "parts": total(BLOCK_STAGES) / whole,
    }


def repeat_shares(m: Measurement) -> list[float]:
    """The repeat's share of an unfused block in percent, round by round."""
    parts = [m.stages[name].calls for name in BLOCK_STAGES if name in m.stages]
    wholes = map(sum, zip(*parts, strict=True))
    repeats = m.stages["broadcast"].calls
    return [100 * part / whole for part, whole in zip(repeats, wholes, strict=True)]


def scan_growth(measurements: Sequence[Measurement], row: Measurement) -> float:
    """The time of an image's scans over that at the model's first size, whatever the batches."""
    first = next(m for m in measurements if m.model == row.model and m.stages)
    return row.scan_seconds / first.scan_seconds * first.batch / row.batch


def claims(
    measurements: Sequence[Measurement], pooled: str, unpooled: str, plain: str
) -> list[dict[str, str]]:
    """The paper's figures of cost beside ours, each a row under `CLAIMS`.

    `pooled`, `unpooled` and `plain` name the FastVim, the Vim and the FastVim without the
    post-SSM norm among the measured models. The published figures are of a GPU.
    """
    at = {(m.model, m.resolution): m for m in measurements}
    sizes = sorted({m.resolution for m in measurements})

    def pairs(one: str, other: str) -> Iterator[tuple[int, Measurement, Measurement]]:
        for size in sizes:
            if (one, size) in at and (other, size) in at:
                yield size, at[one, size], at[other, size]

    found = []
    for size, fast, vim in pairs(pooled, unpooled):
        for text, count in (
            ("FLOPs fewer than Vim", "gflops"),
            ("the same by the literature's count", "literature_gflops"),
        ):
            ours, theirs = getattr(fast, count), getattr(vim, count)
            if ours and theirs:
                fewer = f"{100 - 100 * ours / theirs:.1f} %"
                found.append((text, "about 35 %", fewer, f"at {size}"))
    for mode, text, published in (
        ("forward", "faster than Vim, forward", "72.5 % at 2048"),
        ("training", "faster than Vim, forward and backward", ""),
    ):
        for size, fast, vim in pairs(pooled, unpooled):
            gain = _paired(fast, vim, mode, lambda ours, theirs: theirs / ours - 1)
            if gain:
                found.append((text, published, gain, f"at {size}"))
    for name, published in ((unpooled, "about 74x, 224 to 2048"), (pooled, "nearly constant")):
        measured = [at[name, s] for s in sizes if (name, s) in at and at[name, s].stages]
        for m in measured[1:]:
            growth = f"{scan_growth(measured, m):.1f}x"
            where = f"{measured[0].resolution} to {m.resolution}"
            found.append((f"SSM time of an image grows, {name}", published, growth, where))
    for mode, text in (("forward", "forward"), ("training", "forward and backward")):
        for size, fast, bare in pairs(pooled, plain):
            cost = _paired(fast, bare, mode, lambda ours, theirs: 1 - theirs / ours)
            if cost:
                found.append((f"post-SSM norm's cost, {text}", "5 to 10 %", cost, f"at {size}"))
    for m in (at[pooled, size] for size in sizes if (pooled, size) in at):
        if m.stages:
            repeats = _spread([share / 100 for share in repeat_shares(m)])
            place = f"at {m.resolution}"
            found.append(("repeat's share of an unfused block", "up to 25 %", repeats, place))
    return [dict(zip(CLAIMS, row, strict=True)) for row in found]


def _paired(ours: Measurement, theirs: Measurement, mode: str, compare) -> str:
    """`compare` of the seconds a batch round by round; empty where either was not measured."""
    if mode not in ours.seconds or mode not in theirs.seconds:
        return ""
    rounds = zip(ours.seconds[mode].calls, theirs.seconds[mode].calls, strict=True)
    return _spread([compare(*seconds) for seconds in rounds])


def _spread(values: Sequence[float]) -> str:
    middle = f"{100 * statistics.median(values):.1f} %"
    if len(values) == 1:
        return f"{middle} (one round)"
    low, high = np.quantile(values, [0.25, 0.75])
    return f"{middle} ({100 * low:.1f} to {100 * high:.1f})"
