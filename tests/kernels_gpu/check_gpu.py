"""What only a GPU shows: large shapes, long scans, memory, CUDA graphs."""

import pytest
import torch
from comparisons import WHOLE, mixer_errors, relative_error, scan_errors, to
from operator_cases import layout, mixer_inputs

from fastvim.kernels import MixerWeights, ScanLayout, pooled_mixer, use_backend
from fastvim.kernels.triton import scan

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def large(device, dtype, batch=4, rows=32, channels=384, states=16, kind="columns"):
    """Leaves (xz and weights) and a loss of a mixer of a real size."""
    xz, weights = mixer_inputs(batch, rows * rows, channels, states, rank=12)
    leaves = [t.float().to(device).requires_grad_() for t in weights]
    leaves.insert(0, xz.to(device, dtype).requires_grad_())
    tables = ScanLayout(*to(layout(kind, rows, rows, batch), device))

    def loss(xz, *tensors):
        return pooled_mixer(xz, MixerWeights(*tensors), tables)[0].float().square().mean()

    return leaves, loss


def gradients(backend, loss, leaves):
    with use_backend(backend):
        return torch.autograd.grad(loss(*leaves), leaves)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["columns", "unpooled", "missing tokens"])
def check_large_mixers(device, dtype, kind):
    shape = {"batch": 3, "length": 28 * 28, "channels": 200, "states": 16, "rank": 12}
    errors = mixer_errors(device, layout(kind, 28, 28, 3), dtype, shape=shape)
    assert max(errors.values()) < 2 * WHOLE[dtype], errors


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def check_long_scans(device, dtype):
    """16,384 steps at a batch of one, in chunks."""
    assert scan.plan_scan(1, 64, 16384, 64).chunks > 100
    errors = scan_errors(device, dtype, batch=1, channels=64, length=16384, states=4)
    assert max(errors.values()) < 2 * WHOLE[dtype], errors


@pytest.mark.parametrize("kind", ["columns", "unpooled"])
def check_same_bits(device, kind):
    leaves, loss = large(device, torch.bfloat16, kind=kind)
    first = gradients("triton", loss, leaves)
    for _ in range(5):
        for a, b in zip(first, gradients("triton", loss, leaves), strict=True):
            assert torch.equal(a, b)


def check_memory(device):
    """The forward keeps xz, its output and pooled steps: no tensor of tokens besides."""
    leaves, loss = large(device, torch.bfloat16, batch=8, rows=64)
    with use_backend("triton"):
        loss(*leaves)  # compiles
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        xz, *tensors = leaves
        tables = ScanLayout(*to(layout("columns", 64, 64, 8), device))
        pooled_mixer(xz.detach(), MixerWeights(*(t.detach() for t in tensors)), tables)
        used = torch.cuda.max_memory_allocated() - before
    out = xz.numel() // 2 * xz.element_size()
    assert used < 1.5 * out, (used, out)


def check_cuda_graph(device):
    """Forward and backward are captured, and replayed on other inputs and other tables."""
    xz, weights = mixer_inputs(2, 64, 48, 4, 3, dtype=torch.float32)
    xz = xz.to(device).requires_grad_()
    tensors = [w.to(device) for w in weights]
    tables = ScanLayout(*to(layout("missing tokens", 8, 8, 2), device))

    def step():
        with use_backend("triton"):
            out = pooled_mixer(xz, MixerWeights(*tensors), tables)[0]
            return out, torch.autograd.grad(out.square().sum(), xz)[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        xz.mul_(0.5)
        tables.steps.copy_(tables.steps.flip(0))
    graph.replay()
    torch.cuda.synchronize()
    for found, expected in zip(captured, step(), strict=True):
        assert relative_error(found, expected) < 1e-6


def check_compile_by_inductor(device):
    leaves, loss = large(device, torch.float32, batch=1, rows=8, channels=48, states=4)
    expected = gradients("triton", loss, leaves)
    found = gradients("triton", torch.compile(loss, fullgraph=True), leaves)
    for f, e in zip(found, expected, strict=True):
        assert relative_error(f, e) < 1e-5
