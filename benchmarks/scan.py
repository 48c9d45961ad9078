"""The scan against mamba_ssm's selective_scan_ref and mambapy's pscan, forward and backward.

    python benchmarks/scan.py [--rounds 5] [--threads 2] [--json FILE]

A ratio is how many times longer the peer takes, round by round; median and quartiles. Peers that
are not installed are named and left out. The reference's backward is quadratic in the length, so it
only runs at the short one.
"""

import sys
import types

import torch
from timing import arguments, compare, finish, interleave

from fastvim.kernels import selective_scan

SHORT, LONG = (8, 384, 196, 16), (1, 384, 4096, 16)


def inputs(batch: int, channels: int, length: int, states: int) -> list[torch.Tensor]:
    """u, delta, A, B, C as after a softplus: decays between 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(batch, channels, length, generator=generator)
    delta = torch.rand(batch, channels, length, generator=generator) * 0.1
    A = -torch.arange(1.0, states + 1).expand(channels, states).contiguous()
    matrices = torch.randn(2, batch, states, length, generator=generator)
    return [draw, delta, A, matrices[0].contiguous(), matrices[1].contiguous()]


def selective_scan_ref():
    sys.modules.setdefault("selective_scan_cuda", types.ModuleType("selective_scan_cuda"))
    from mamba_ssm.ops.selective_scan_interface import selective_scan_ref

    return selective_scan_ref


def mambapy_scan():
    """mambapy's parallel scan, with the same arithmetic around it (its own MambaBlock's)."""
    from mambapy.pscan import pscan

    def scan(u, delta, A, B, C):
        delta, u = delta.transpose(1, 2), u.transpose(1, 2)
        decay = torch.exp(delta[..., None] * A)
        added = delta[..., None] * B.transpose(1, 2)[:, :, None] * u[..., None]
        states = pscan(decay, added)
        return (states @ C.transpose(1, 2)[..., None]).squeeze(-1).transpose(1, 2)

    return scan


def peers() -> dict:
    found = {}
    for name, get in (("selective_scan_ref", selective_scan_ref), ("pscan", mambapy_scan)):
        try:
            found[name] = get()
        except ImportError as error:
            print(f"without {name}: {error}")
    return found


def forward(function, tensors):
    def run():
        with torch.no_grad():
            return function(*tensors)

    return run


def both(function, tensors):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]

    def run():
        return torch.autograd.grad(function(*leaves).sum(), leaves)

    return run


def main() -> None:
    given = arguments(__doc__, rounds=5)
    contenders = {"fastvim": selective_scan, **peers()}
    results = []
    for title, size, measure in (
        (f"forward {SHORT}", SHORT, forward),
        (f"forward {LONG}", LONG, forward),
        (f"forward and backward {SHORT}", SHORT, both),
    ):
        tensors = inputs(*size)
        expected = selective_scan(*tensors)
        for name, function in contenders.items():
            error = (function(*tensors) - expected).abs().max() / expected.abs().max()
            assert error < 1e-4, f"{name} differs by {error}"
        runs = {name: measure(function, tensors) for name, function in contenders.items()}
        results.append(compare(title, interleave(runs, given.rounds), "fastvim"))
    finish(results, given.json)


if __name__ == "__main__":
    main()
