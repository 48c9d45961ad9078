"""The labelled suite: curves of every sort that training gives, with injected excursions.

Noise is in units of its own robust deviation (1.4826 times the median absolute one), so a spike
of size 10 rises ten deviations of the noise around it, whatever the noise's law and scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

SIZES = (6, 8, 10, 15, 25, 50, 100)
LENGTH = 4000
# A spike is over, for the labels, where less than this is left of it, in deviations.
OVER = 1.0


@dataclass(frozen=True)
class Label:
    """An injected excursion: values `start` to `end` (both in), its size in deviations, class."""

    start: int
    end: int
    size: float
    kind: str


@dataclass(frozen=True)
class Curve:
    """A labelled curve: steps and values (n,), what was injected, and where to look away.

    `excused` are spans (first and last value) of a true rise that is no instability, as after a
    warm restart of the learning rate: a sustained shift may be reported there, or nothing.
    """

    name: str
    steps: np.ndarray
    values: np.ndarray
    labels: list[Label] = field(default_factory=list)
    excused: list[tuple[int, int]] = field(default_factory=list)


def _unit(noise: np.ndarray) -> np.ndarray:
    centred = noise - np.median(noise)
    return centred / (1.4826 * np.median(np.abs(centred)))


def _smooth(rng: np.random.Generator, count: int) -> np.ndarray:
    """Autocorrelated noise, as from a loss logged as a running average."""
    noise = rng.standard_normal(count)
    for i in range(1, count):
        noise[i] += 0.8 * noise[i - 1]
    return noise


NOISES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, count: rng.standard_normal(count),
    "student t, 5": lambda rng, count: rng.standard_t(5, count),
    "student t, 3": lambda rng, count: rng.standard_t(3, count),
    "laplace": lambda rng, count: rng.laplace(size=count),
    "skewed": lambda rng, count: np.exp(0.4 * rng.standard_normal(count)),
    "autocorrelated": _smooth,
}


def power_law(x: np.ndarray) -> np.ndarray:
    """A loss falling as a power of the step; x in values since the start."""
    return 2 + 6 * (1 + x / 20) ** -0.6


def _inject_spikes(rng, values, sigma, first, gap) -> list[Label]:
    """Spikes of every size, `gap` values apart on average, from value `first` on."""
    labels = []
    start = first + int(rng.integers(0, gap))
    while start < len(values) - 40:
        size = float(rng.choice(SIZES))
        decay = float(rng.choice([0.5, 2, 6, 20]))
        shape = size * np.exp(-np.arange(len(values) - start) / decay)
        end = start + int(np.flatnonzero(shape > OVER)[-1])
        values[start:] += shape * sigma[start]
        labels.append(Label(start, end, size, "spike"))
        start = end + 15 + int(rng.integers(0, gap))
    return labels


def _steps(rng: np.random.Generator, count: int) -> np.ndarray:
    """Steps logged unevenly, with a stretch missing."""
    steps = np.cumsum(rng.integers(1, 100, count))
    steps[count // 3 :] += 10_000
    return steps


def _family(name: str, rng: np.random.Generator, noise: np.ndarray):
    """Trend and noise of a family: values (n,), local deviation (n,), excused spans."""
    count = len(noise)
    x = np.arange(count)
    trend, sigma, excused = power_law(x), np.full(count, 0.05), []
    if name == "restarts":
        period = count // 4
        trend = trend + 0.25 * (1 + np.cos(np.pi * (x % period) / period))
        excused = [(at, at + period // 2) for at in range(period, count, period)]
    elif name == "rate lowered":
        trend = trend - 0.6 * (x > count // 3) - 0.3 * (x > 2 * count // 3)
    elif name == "epochs":
        period = count // 6
        trend = trend - 0.15 * (x // period) + 0.1 * (x % period) / period
    elif name == "noise falls":
        sigma = 0.2 * np.exp(-3 * x / count)
    elif name == "noise with level":
        sigma = 0.02 * trend
    elif name == "noise rises":
        sigma = 0.02 * np.exp(2 * x / count)
    elif name == "noise comes and goes":
        sigma = 0.05 * (1 + 1.5 * ((x // 400) % 2))
    elif name == "gradient norm":
        trend = 0.5 + 2 * np.exp(-x / 100) * (x / 50) + 0.5 * x / count
    return trend + sigma * noise, sigma, excused


FAMILIES = (
    "trend",
    "restarts",
    "rate lowered",
    "epochs",
    "noise falls",
    "noise with level",
    "noise rises",
    "noise comes and goes",
    "gradient norm",
)


def spiked(name: str, noise: str, seed: int, gap: int = 250, first: int = 30) -> Curve:
    """A curve of a family with spikes of known sizes; `gap` 40 makes bursts of them."""
    rng = np.random.default_rng([seed, sum(map(ord, name + noise)), gap])
    unit = _unit(NOISES[noise](rng, LENGTH))
    values, sigma, excused = _family(name, rng, unit)
    labels = _inject_spikes(rng, values, sigma, first, gap)
    return Curve(f"{name}, {noise}", _steps(rng, LENGTH), values, labels, excused)


def clean(name: str, noise: str, seed: int) -> Curve:
    """The same without any spike."""
    rng = np.random.default_rng([seed, sum(map(ord, name + noise)), 1])
    values, _, excused = _family(name, rng, _unit(NOISES[noise](rng, LENGTH)))
    return Curve(f"{name}, {noise}, clean", _steps(rng, LENGTH), values, [], excused)


def short(seed: int) -> Curve:
    """A run of 300 values with spikes from value 20 on."""
    rng = np.random.default_rng([seed, 2])
    values = power_law(np.arange(300)) + 0.05 * rng.standard_normal(300)
    labels = _inject_spikes(rng, values, np.full(300, 0.05), 20, 60)
    return Curve("short", _steps(rng, 300), values, labels)


def rescaled(curve: Curve, factor: float, offset: float) -> Curve:
    """The curve in another unit and from another origin."""
    name = f"{curve.name}, times {factor:g}"
    return Curve(name, curve.steps, factor * (curve.values + offset), curve.labels, curve.excused)


def ending(kind: str, seed: int) -> Curve:
    """A curve with one sustained excursion: shift, plateau, divergence or nonfinite."""
    rng = np.random.default_rng([seed, 3, len(kind)])
    count, at = 2000, int(rng.integers(600, 1400))
    values = power_law(np.arange(count)) + 0.05 * rng.standard_normal(count)
    after = np.arange(count - at)
    size = float(rng.choice([10, 15, 25]))
    if kind == "shift":
        values[at:] += 0.05 * size
    elif kind == "plateau":
        values[at:] += 0.05 * size * (1 + 5 * np.exp(-after / 10))
    elif kind == "divergence":
        size = 200.0
        values[at:] += 0.05 * size * (1 - np.exp(-after / rng.uniform(5, 100)))
    elif kind == "nonfinite":
        size = np.inf
        values[at : at + int(rng.choice([1, 50, 2000]))] = rng.choice([np.nan, np.inf])
    return Curve(kind, _steps(rng, count), values, [Label(at, count - 1, size, kind)])


def suite(seeds: int = 2) -> list[Curve]:
    """The whole suite; deterministic."""
    curves = []
    for seed in range(seeds):
        for family in FAMILIES:
            curves += [spiked(family, noise, seed) for noise in ("normal", "student t, 5")]
            curves += [clean(family, noise, seed) for noise in ("normal", "student t, 5")]
        for noise in ("student t, 3", "laplace", "skewed", "autocorrelated"):
            curves += [spiked("trend", noise, seed), clean("trend", noise, seed)]
        curves += [spiked("trend", "normal", seed, gap=40)]
        curves += [short(seed * 10 + k) for k in range(10)]
        for factor, offset in ((1e-12, 0), (1e12, 0), (1, 1e4)):
            curves.append(rescaled(spiked("trend", "normal", seed + 50), factor, offset))
        curves += [ending(kind, seed * 10 + k) for kind in ENDINGS for k in range(5)]
    return curves


ENDINGS = ("shift", "plateau", "divergence", "nonfinite")
