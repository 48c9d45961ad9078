"""Proof that a backend computes: a small case of both operators against the definition.

`fastvim doctor` shows the result; the tests go over many more shapes.
"""

import torch
from torch import Tensor

from fastvim.kernels.backends import use_backend
from fastvim.kernels.operator import pooled_mixer, selective_scan
from fastvim.kernels.reference import MixerWeights, ScanLayout

# float32 gives about 1e-6; a wrong sign or a missing term gives 1e-2 or more.
TOLERANCE = 1e-4


def largest_error(backend: str, device: torch.device) -> float:
    """Largest relative error of `backend` on `device` in float32, over outputs and all gradients.

    The error of a tensor is its largest difference from the `reference` backend in float64, as a
    share of that one's largest magnitude; NaN where any value is. Whatever the backend raises
    passes through.
    """
    inputs = _inputs()
    exact = _outputs_and_gradients("reference", [tensor.double() for tensor in inputs])
    found = _outputs_and_gradients(backend, [tensor.to(device) for tensor in inputs])
    errors = [
        (f.cpu().double() - e).abs().max() / e.abs().max()
        for f, e in zip(found, exact, strict=True)
    ]
    # Not Python's max, which passes over NaN.
    return torch.stack(errors).max().item()


def _inputs() -> list[Tensor]:
    """A 3 x 4 grid of two images, 8 channels, 4 states, rank 2; a scan of 12 steps; float32."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weights = MixerWeights(
        conv_weight=draw(2, 8, 4),
        conv_bias=draw(2, 8),
        x_proj=draw(2, 10, 8) / 3,
        dt_proj=draw(2, 8, 2),
        dt_bias=draw(2, 8),
        A=-draw(2, 8, 4).exp(),
        D=draw(2, 8),
        norm_weight=draw(8),
        norm_bias=draw(8),
    )
    scan = [draw(2, 8, 12), draw(2, 8, 12), -draw(8, 4).exp(), draw(2, 4, 12), draw(2, 4, 12)]
    return [draw(2, 12, 16), *weights, *scan, draw(8), draw(2, 8, 12), draw(8)]


def _outputs_and_gradients(backend: str, tensors: list[Tensor]) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    xz, weights, scan = leaves[0], MixerWeights(*leaves[1:10]), leaves[10:]
    tokens = torch.arange(12, dtype=torch.int32, device=xz.device)
    # Columns pooled: neither the order nor the steps are those of memory.
    columns = ScanLayout(tokens.view(3, 4).t().reshape(-1).contiguous(), tokens // 3, None, 4)
    with torch.enable_grad(), use_backend(backend):
        mixed, _, _ = pooled_mixer(xz, weights, columns)
        scanned = selective_scan(*scan, delta_softplus=True)
        gradients = torch.autograd.grad(mixed.square().sum() + scanned.square().sum(), leaves)
    return [mixed.detach(), scanned.detach(), *gradients]
