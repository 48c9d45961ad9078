"""The fused mixer: the cpu backend against the definition, over layouts and options."""

import random

import pytest
import torch
from operator_cases import (
    LAYOUTS,
    layout,
    mixer_inputs,
    needs_cpu_backend,
    random_mixer_shape,
    relative_error,
    with_gradients,
)

from fastvim.kernels import MixerWeights, ScanLayout, pooled_mixer, reference, use_backend

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def errors(xz, weights, scan_layout, **settings) -> float:
    """Largest relative error of cpu against reference over outputs and all gradients."""

    def run(xz, *tensors):
        return pooled_mixer(xz, MixerWeights(*tensors), scan_layout, **settings)

    expected = with_gradients("reference", run, [xz, *weights])
    found = with_gradients("cpu", run, [xz, *weights])
    return max(relative_error(f, e) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_cpu_backend)])
def test_gradcheck(kind, backend):
    xz, weights = mixer_inputs(batch=2, length=6, channels=3, states=2, rank=1, width=3)
    scan_layout = layout(kind, 2, 3, 2)
    pooling = "max" if kind == "outer axis" else "mean"
    tensors = [tensor.requires_grad_() for tensor in (xz, *weights)]
    with use_backend(backend):
        assert torch.autograd.gradcheck(
            lambda xz, *w: pooled_mixer(xz, MixerWeights(*w), scan_layout, pooling, 0.7)[0],
            tensors,
            fast_mode=True,
        )


def test_gradcheck_of_the_definition():
    xz, weights = mixer_inputs(batch=1, length=6, channels=2, states=2, rank=1, width=2)
    tensors = [tensor.requires_grad_() for tensor in (xz, *weights)]
    rows = layout("rows", 2, 3, 1)
    assert torch.autograd.gradcheck(
        lambda xz, *w: reference.pooled_mixer(xz, MixerWeights(*w), rows)[0], tensors
    )


@needs_cpu_backend
@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_random_shapes_and_options(kind, dtype):
    draw = random.Random(kind)
    for _ in range(7):
        grid, shape, settings = random_mixer_shape(draw)
        xz, weights = mixer_inputs(**shape, dtype=dtype)
        error = errors(xz, weights, layout(kind, *grid, shape["batch"]), **settings)
        assert error < TOLERANCE[dtype], (grid, shape, settings)


@needs_cpu_backend
def test_every_instruction_set(instruction_set):
    for dtype, tolerance in TOLERANCE.items():
        xz, weights = mixer_inputs(2, 30, channels=37, dtype=dtype)
        for pooling in ("mean", "max"):
            assert errors(xz, weights, layout("columns", 5, 6, 2), pooling=pooling) < tolerance


@needs_cpu_backend
def test_ties_share_the_gradient():
    xz, weights = mixer_inputs(batch=2, length=12, channels=5, width=1)
    xz[:, 1::2] = xz[:, ::2]  # neighbours are equal, and so are their convolutions of width 1
    assert errors(xz, weights, layout("rows", 3, 4, 2), pooling="max") < 1e-12


@needs_cpu_backend
def test_strided_input():
    xz, weights = mixer_inputs(batch=3, length=12, channels=5)
    rows = layout("rows", 3, 4, 3)
    for strided in (
        xz.transpose(0, 1).contiguous().transpose(0, 1),
        xz.transpose(1, 2).contiguous().transpose(1, 2),
        xz[:1].expand(3, -1, -1),
    ):
        assert errors(strided, weights, rows) < 1e-12
    strided = weights._replace(
        A=weights.A.transpose(1, 2).contiguous().transpose(1, 2),
        x_proj=weights.x_proj.transpose(1, 2).contiguous().transpose(1, 2),
        conv_weight=weights.conv_weight.flip(0).flip(0),
    )
    assert errors(xz, strided, rows) < 1e-12


@needs_cpu_backend
def test_empty_batch():
    xz, weights = mixer_inputs(batch=0)
    assert errors(xz, weights, layout("rows", 3, 4, 0)) == 0


@needs_cpu_backend
def test_norm_without_bias():
    xz, weights = mixer_inputs()
    assert errors(xz, weights._replace(norm_bias=None), layout("rows", 3, 4, 2)) < 1e-12


@needs_cpu_backend
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_nan_stays(pooling):
    xz, weights = mixer_inputs(dtype=torch.float32, norm=False)
    xz[1, 5, 2] = float("nan")
    results = []
    for backend in ("reference", "cpu"):
        with use_backend(backend):
            results.append(pooled_mixer(xz, weights, layout("rows", 3, 4, 2), pooling))
    for expected, found in zip(*results, strict=True):
        assert torch.equal(torch.isnan(expected), torch.isnan(found))
    assert torch.isnan(results[0][0]).any()


@needs_cpu_backend
def test_large_decay():
    xz, weights = mixer_inputs(dtype=torch.float32)
    weights = weights._replace(A=weights.A * 1e5, dt_bias=weights.dt_bias + 30)
    assert errors(xz, weights, layout("rows", 3, 4, 2)) < 1e-5


@needs_cpu_backend
def test_autocast_does_not_reach_inside():
    xz, weights = mixer_inputs(dtype=torch.float32)
    rows = layout("rows", 3, 4, 2)
    for backend in ("reference", "cpu"):
        with use_backend(backend):
            plain = pooled_mixer(xz, weights, rows)[0]
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(pooled_mixer(xz, weights, rows)[0], plain)


def test_reference_gradients_keep_their_precision():
    """Below autograd, the recomputation once ran its products in bfloat16."""

    def run(xz, *tensors):
        return pooled_mixer(xz, MixerWeights(*tensors), layout("rows", 3, 4, 2))

    exact_xz, exact_weights = mixer_inputs()
    exact = with_gradients("reference", run, [exact_xz, *exact_weights])
    xz, weights = mixer_inputs(dtype=torch.float32)
    for found, expected in zip(
        with_gradients("reference", run, [xz, *weights]), exact, strict=True
    ):
        assert relative_error(found.double(), expected) < 1e-5


@needs_cpu_backend
@pytest.mark.parametrize("wrong", ["order", "steps", "duplicate"])
def test_tables_that_do_not_fit(wrong):
    xz, weights = mixer_inputs()
    tokens = torch.arange(12, dtype=torch.int32)
    scan_layout = ScanLayout(tokens, tokens // 4, None, 3)
    if wrong == "duplicate":
        scan_layout = scan_layout._replace(order=tokens.clamp(max=10))
    else:
        scan_layout = scan_layout._replace(**{wrong: tokens + 1})
    with use_backend("cpu"), pytest.raises(ValueError, match="permutation"):
        pooled_mixer(xz, weights, scan_layout)
