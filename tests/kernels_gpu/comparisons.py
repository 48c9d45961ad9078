"""Errors of the Triton kernels against the definition computed in float64 on the CPU."""

import torch
from operator_cases import mixer_inputs, scan_inputs
from torch import Tensor

from fastvim.kernels import MixerWeights, reference, triton

SCAN_NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
WHOLE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference as a share of the largest expected magnitude."""
    assert found.shape == expected.shape
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    assert torch.isfinite(found).all()
    scale = expected.abs().max().item() if expected.numel() else 0.0
    # A gradient that cancels to nothing, as that of a normalised single channel, has no scale.
    return (found - expected).abs().max().item() / max(scale, 1e-3) if expected.numel() else 0.0


def to(tensors, *how):
    return [t.to(*how) if isinstance(t, Tensor) else t for t in tensors]


def scan_errors(device, dtype=torch.float32, module=triton, **shape) -> dict[str, float]:
    """Error of each output and gradient of `selective_scan`, `shape` as of `scan_inputs`.

    Inputs are rounded to `dtype` first, so that the errors are the kernel's.
    """
    drawn = scan_inputs(**shape)
    softplus = drawn["delta_softplus"]
    half = {"u", "delta", "B", "C", "z"}
    given = [
        drawn[name].to(dtype if name in half else torch.float32)
        if isinstance(drawn[name], Tensor)
        else None
        for name in SCAN_NAMES
    ]
    exact = to(given, torch.float64)
    y, state = reference.selective_scan(*exact, softplus)
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in (y, state)]
    grads[0] = grads[0].to(dtype).double()
    expected = reference.selective_scan_backward(*grads, tuple(exact), softplus)

    on_device = to(given, device)
    found = module.selective_scan(*on_device, softplus)
    assert found[0].dtype == dtype and found[1].dtype == torch.float32
    found_grads = module.selective_scan_backward(
        grads[0].to(device, dtype), grads[1].to(device).float(), tuple(on_device), softplus
    )
    names = [name for name, tensor in zip(SCAN_NAMES, given, strict=True) if tensor is not None]
    present = [tensor for tensor in given if tensor is not None]
    assert [g.dtype for g in found_grads] == [t.dtype for t in present]
    errors = {
        "y": relative_error(found[0], y),
        "last state": relative_error(found[1], state),
    }
    for name, grad, right in zip(names, found_grads, expected, strict=True):
        errors[f"grad {name}"] = relative_error(grad, right)
    return errors


def mixer_errors(
    device, layout, dtype=torch.float32, module=triton, shape=None, arrange=None, **settings
) -> dict[str, float]:
    """Error of each output and gradient of `pooled_mixer`, `shape` as of `mixer_inputs`.

    `arrange` makes a view of xz, whose strides the kernels are given.
    """
    xz, weights = mixer_inputs(**(shape or {}))
    settings = {
        "pooling": "mean",
        "scale": 1.0,
        "merge": "mean",
        "gate": True,
        "eps": 1e-5,
        **settings,
    }
    xz = xz.to(dtype)
    there = xz.to(device) if arrange is None else arrange(xz.to(device))
    weights = MixerWeights(*to(weights, torch.float32))
    exact = there.cpu().double(), MixerWeights(*to(weights, torch.float64))
    expected = reference.pooled_mixer(*exact, layout, **settings)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(expected[0].shape, generator=generator, dtype=torch.float64).to(dtype)
    expected_grads = reference.pooled_mixer_backward(
        grad.double(), *exact, layout, *expected[1:], **settings
    )

    there = there, MixerWeights(*to(weights, device))
    tables = type(layout)(*to(layout, device))
    found = module.pooled_mixer(*there, tables, **settings)
    assert [t.dtype for t in found] == [dtype, torch.float32, torch.float32]
    grads = module.pooled_mixer_backward(grad.to(device), *there, tables, *found[1:], **settings)
    errors = {
        name: relative_error(f, e)
        for name, f, e in zip(("out", "pooled", "scanned"), found, expected, strict=True)
    }
    present = [name for name, w in weights._asdict().items() if w is not None]
    for name, g, e in zip(["xz", *present], grads, expected_grads, strict=True):
        errors[f"grad {name}"] = relative_error(g, e)
    return errors
