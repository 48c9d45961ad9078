"""Inputs and comparisons that the tests of the operators share."""

import random

import pytest
import torch

from fastvim.kernels import MixerWeights, ScanLayout, backends, use_backend

needs_cpu_backend = pytest.mark.skipif(
    backends.available()["cpu"] is not None, reason=f"cpu backend: {backends.available()['cpu']}"
)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference as a share of the largest expected magnitude."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    if not expected.numel():
        return 0.0
    assert torch.isfinite(found).all() and torch.isfinite(expected).all()
    scale = expected.abs().max().item()
    return (found - expected).abs().max().item() / (scale or 1.0)


def scan_inputs(
    batch=2, channels=5, length=7, states=3, B="token", C="token", options=True, dtype=torch.float64
) -> dict:
    """Inputs of `selective_scan`; B and C are "token", "fixed" or a number of groups."""
    generator = torch.Generator().manual_seed(batch + 10 * channels + 100 * length + states)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    def matrix(kind):
        if kind == "fixed":
            return draw(channels, states)
        groups = () if kind == "token" else (kind,)
        return draw(batch, *groups, states, length)

    return {
        "u": draw(batch, channels, length),
        "delta": draw(batch, channels, length) if options else draw(batch, channels, length).abs(),
        "A": -torch.exp(draw(channels, states)),
        "B": matrix(B),
        "C": matrix(C),
        "D": draw(channels) if options else None,
        "z": draw(batch, channels, length) if options else None,
        "delta_bias": draw(channels) if options else None,
        "delta_softplus": options,
    }


def random_scan_shape(draw: random.Random) -> dict:
    """Arguments of `scan_inputs`; every backend is tested over the same ones."""
    kinds = ("token", "fixed", 1, 2, 3, 6)
    return {
        "batch": draw.randint(1, 3),
        "channels": draw.choice([6, 12, 18, 30, 66]),
        "length": draw.choice([1, 2, 15, 16, 17, 33, 64, 67]),
        "states": draw.choice([1, 2, 3, 8, 16, 17, 64]),
        "B": draw.choice(kinds),
        "C": draw.choice(kinds),
        "options": draw.random() < 0.5,
    }


def mixer_inputs(
    batch=2,
    length=12,
    channels=5,
    states=3,
    rank=2,
    width=4,
    conv_bias=True,
    norm=True,
    dtype=torch.float64,
) -> tuple[torch.Tensor, MixerWeights]:
    generator = torch.Generator().manual_seed(batch + 10 * channels + 100 * length + states)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    weights = MixerWeights(
        conv_weight=draw(2, channels, width),
        conv_bias=draw(2, channels) if conv_bias else None,
        x_proj=draw(2, rank + 2 * states, channels) * channels**-0.5,
        dt_proj=draw(2, channels, rank),
        dt_bias=draw(2, channels),
        A=-torch.exp(draw(2, channels, states)),
        D=draw(2, channels),
        norm_weight=draw(channels) if norm else None,
        norm_bias=draw(channels) if norm else None,
    )
    return draw(batch, length, 2 * channels), weights


def random_mixer_shape(draw: random.Random) -> tuple[tuple[int, int], dict, dict]:
    """(rows, columns), arguments of `mixer_inputs` and settings of the mixer."""
    batch, rows, columns = draw.randint(1, 3), draw.randint(1, 9), draw.randint(1, 9)
    shape = {
        "batch": batch,
        "length": rows * columns,
        "channels": draw.choice([4, 7, 16, 40, 64]),
        "states": draw.choice([1, 3, 16]),
        "rank": draw.choice([2, 5]),
        "width": draw.randint(1, 5),
        "conv_bias": draw.random() < 0.5,
        "norm": draw.random() < 0.5,
    }
    settings = {
        "pooling": draw.choice(["mean", "max", "sum"]),
        "scale": draw.choice([1.0, 0.37]),
        "merge": draw.choice(["mean", "sum"]),
        "gate": draw.random() < 0.5,
    }
    return (rows, columns), shape, settings


def layout(kind: str, rows: int, columns: int, batch: int) -> ScanLayout:
    """A layout of a rows x columns grid; see the names of `LAYOUTS`."""
    tokens = torch.arange(rows * columns, dtype=torch.int32)
    generator = torch.Generator().manual_seed(rows * columns)
    if kind == "unpooled":
        return ScanLayout()
    if kind == "unpooled, columns first":
        return ScanLayout(tokens.view(rows, columns).t().reshape(-1).contiguous())
    if kind == "rows":
        return ScanLayout(None, tokens // columns, None, rows)
    if kind == "columns":
        order = tokens.view(rows, columns).t().reshape(-1).contiguous()
        return ScanLayout(order, tokens // rows, None, columns)
    if kind == "outer axis":  # the pooled axis is not innermost
        return ScanLayout(None, tokens % columns, None, columns)
    if kind == "empty steps":
        return ScanLayout(tokens.flip(0), tokens % 2 + 1, tokens % 3, 5)
    assert kind == "missing tokens"
    places = [torch.randperm(rows * columns, generator=generator) for _ in range(batch)]
    steps = torch.randint(0, 4, (2, batch, rows * columns), generator=generator)
    return ScanLayout(torch.stack(places).int(), *steps.int().sort(-1).values, 6)


LAYOUTS = (
    "unpooled",
    "unpooled, columns first",
    "rows",
    "columns",
    "outer axis",
    "empty steps",
    "missing tokens",
)


def with_gradients(backend: str, function, tensors: list) -> list[torch.Tensor]:
    """What `function` returns, and the gradients of a weighted sum of it, on a backend.

    The sum weighs every element differently, so no permutation of gradients goes unnoticed.
    """
    leaves = [t if t is None else t.detach().requires_grad_() for t in tensors]
    with use_backend(backend):
        outputs = function(*leaves)
        loss = sum(
            (
                output
                * torch.linspace(0.5, 1.5, output.numel(), dtype=output.dtype).view_as(output)
            ).sum()
            for output in outputs
            if output.requires_grad
        )
        given = [leaf for leaf in leaves if leaf is not None]
        grads = torch.autograd.grad(loss, given, materialize_grads=True)
    return [output.detach() for output in outputs] + list(grads)
