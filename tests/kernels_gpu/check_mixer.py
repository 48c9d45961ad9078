"""The fused mixer by Triton against the definition, forward and all gradients."""

import random

import pytest
import torch
from comparisons import WHOLE, mixer_errors
from interpreting import INTERPRETED
from operator_cases import LAYOUTS, layout
from random_errors import random_mixer_errors

from fastvim.kernels import mamba_ssm
from fastvim.kernels.reference import ScanLayout
from fastvim.kernels.triton import mixer_plan, scan


def assert_right(errors: dict, dtype=torch.float32) -> None:
    assert max(errors.values()) < WHOLE[dtype], errors


# Where nothing is pooled, `mean` stands for all.
POOLINGS = [
    (kind, pooling)
    for kind in LAYOUTS
    for pooling in ("mean", "max", "sum")
    if pooling == "mean" or not kind.startswith("unpooled")
]


@pytest.mark.parametrize(("kind", "pooling"), POOLINGS)
def check_layouts(device, kind, pooling):
    batch = 2 if kind == "missing tokens" else 1
    shape = {"batch": batch, "length": 6, "channels": 3, "states": 2, "rank": 1}
    merge = "sum" if pooling == "max" else "mean"
    errors = mixer_errors(
        device, layout(kind, 2, 3, batch), shape=shape, pooling=pooling, scale=0.7, merge=merge
    )
    assert_right(errors)


def check_ties_share_the_gradient_of_a_maximum(device):
    """Tokens that are equal, in images that are, give equal maxima."""
    from operator_cases import mixer_inputs

    from fastvim.kernels import reference, triton
    from fastvim.kernels.reference import MixerWeights

    xz, weights = mixer_inputs(1, 6, 3, 2, 1, width=1)
    xz = xz[:, :1].expand(-1, 6, -1).contiguous()
    grad = torch.linspace(-1, 1, 18, dtype=torch.float64).view(1, 6, 3)
    rows = layout("rows", 2, 3, 1)
    settings = {"pooling": "max", "scale": 1.0, "merge": "mean", "gate": True, "eps": 1e-5}
    expected = reference.pooled_mixer_backward(grad, xz, weights, rows, None, None, **settings)
    there = xz.to(device).float(), MixerWeights(*(w.to(device).float() for w in weights))
    tables = ScanLayout(None, rows.steps.to(device), None, rows.n_steps)
    _, *kept = triton.pooled_mixer(*there, tables, **settings)
    found = triton.pooled_mixer_backward(grad.to(device).float(), *there, tables, *kept, **settings)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f.double().cpu(), e, rtol=1e-4, atol=1e-5)


def check_random_shapes(device):
    """Those of the cpu backend; by the interpreter the small ones among them."""
    draw, cases, steps = random.Random(1), *((2, 100) if INTERPRETED else (30, None))
    for _ in range(cases):
        assert_right(random_mixer_errors(device, torch.float32, draw, steps))


@pytest.mark.parametrize("width", [1, 2, 5])
def check_widths_of_the_convolution(device, width):
    shape = {"batch": 1, "length": 6, "channels": 3, "states": 2, "rank": 1, "width": width}
    assert_right(mixer_errors(device, layout("columns", 2, 3, 1), shape=shape))


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("gate", [True, False])
def check_options(device, norm, gate):
    shape = {"batch": 1, "length": 6, "channels": 3, "states": 2, "norm": norm, "conv_bias": gate}
    assert_right(mixer_errors(device, layout("rows", 3, 2, 1), shape=shape, gate=gate))


def check_blocks_of_channels(device):
    """A row of two blocks, the second incomplete; a step of several tiles and parts."""
    shape = {"batch": 1, "length": 24, "channels": 70, "states": 1, "rank": 1}
    assert mixer_plan.plan_mixer(1, 24, 70, 2, True).segments == 2
    assert mixer_plan.plan_mixer(1, 24, 70, 2, True).parts > 1
    assert_right(mixer_errors(device, layout("rows", 2, 12, 1), shape=shape))


@pytest.mark.parametrize("kind", ["columns", "unpooled"])
def check_programs_that_do_much(device, monkeypatch, kind):
    """Many steps, tokens and tiles a program, as on a large batch."""
    for limit in ("_PROGRAMS", "_BACKWARD_PROGRAMS"):
        monkeypatch.setattr(mixer_plan, limit, 1)
    shape = {"batch": 3, "length": 12, "channels": 3, "states": 1, "rank": 1}
    plan = mixer_plan.plan_mixer(3, 12, 3, 4, kind == "columns")
    assert plan.group > 1 and plan.share > 2 * plan.tokens
    assert_right(mixer_errors(device, layout(kind, 3, 4, 3), shape=shape))


def check_runs_that_meet(device, monkeypatch):
    """Pass one's backward cut in runs: a token's gradient crosses the border both ways.

    Two programs of four warps for the six runs of three images: two warps have none.
    """
    monkeypatch.setattr(mixer_plan, "_WALKERS", 4)
    shape = {"batch": 3, "length": 20, "channels": 3, "states": 1, "rank": 1}
    plan = mixer_plan.plan_mixer(3, 20, 3, 20, False)
    assert (plan.run, plan.walkers) == (10, 4)
    assert_right(mixer_errors(device, layout("unpooled", 1, 20, 3), shape=shape))


def check_long_scans_in_chunks(device, monkeypatch):
    """Both directions of an unpooled scan, each in three chunks."""
    monkeypatch.setattr(scan, "_SHORTEST_CHUNK", 16)
    assert scan.plan_scan(2, 2, 48, 2).chunks == 3
    # Normalised rows of two channels are 1 and -1: their gradients would be what float32 rounds.
    shape = {"batch": 1, "length": 48, "channels": 2, "states": 1, "rank": 1, "norm": False}
    assert_right(mixer_errors(device, layout("unpooled, columns first", 6, 8, 1), shape=shape))


@pytest.mark.parametrize(
    "arrange",
    [
        lambda xz: xz[:, 1:],
        lambda xz: xz[:1, 1:].expand(len(xz), -1, -1),
        lambda xz: xz[:, 1:].transpose(0, 1).contiguous().transpose(0, 1),
    ],
    ids=["rows of a longer sequence", "an image expanded", "time first"],
)
def check_tokens_that_are_not_contiguous(device, arrange):
    """The gradient of xz has strides of its own."""
    shape = {"batch": 2, "length": 7, "channels": 3, "states": 2, "rank": 1}
    errors = mixer_errors(device, layout("columns", 2, 3, 2), shape=shape, arrange=arrange)
    assert_right(errors)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def check_half_precision(device, dtype):
    shape = {"batch": 1, "length": 6, "channels": 8, "states": 2, "rank": 1}
    errors = mixer_errors(device, layout("columns", 2, 3, 1), dtype, shape=shape)
    assert_right(errors, dtype)
    assert max(errors["pooled"], errors["scanned"]) < WHOLE[torch.float32], errors


def check_the_mamba_ssm_backend(device, monkeypatch):
    """That package's scan between Triton's passes, here a plain one in its place."""
    from fastvim.kernels import reference

    def plain(*tensors, delta_softplus=False, return_last_state=False):
        found = reference.selective_scan(*tensors[:8], *tensors[8:] or (delta_softplus,))
        return found if return_last_state else found[0]

    monkeypatch.setattr(mamba_ssm, "_published_scan", lambda: plain)
    shape = {"batch": 2, "length": 6, "channels": 3, "states": 2, "rank": 1}
    errors = mixer_errors(device, layout("rows", 2, 3, 2), module=mamba_ssm, shape=shape)
    assert_right(errors)
