"""The operators as PyTorch sees them, and the choice of a backend."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from operator_cases import layout, mixer_inputs, needs_cpu_backend, relative_error, scan_inputs
from torch.utils.flop_counter import FlopCounterMode

from fastvim.errors import UserError
from fastvim.kernels import (
    MixerWeights,
    ScanLayout,
    backends,
    fvcore_handles,
    native,
    pooled_mixer,
    selective_scan,
    use_backend,
)

BACKENDS = ["reference", pytest.param("cpu", marks=needs_cpu_backend)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_scan(backend):
    inputs = scan_inputs(2, 4, 5, 3)
    tensors = [t.requires_grad_() if hasattr(t, "shape") else t for t in inputs.values()]
    torch.library.opcheck(torch.ops.fastvim.selective_scan, (*tensors, backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["unpooled", "missing tokens"])
def test_opcheck_mixer(backend, kind):
    xz, weights = mixer_inputs(batch=2, length=6, channels=4)
    tensors = [tensor.requires_grad_() for tensor in (xz, *weights)]
    settings = (*layout(kind, 2, 3, 2), "mean", 1.0, "mean", True, 1e-5, backend)
    torch.library.opcheck(torch.ops.fastvim.pooled_mixer, (*tensors, *settings))


def test_importing_the_operators_does_not_import_the_compiler():
    """It takes as long as torch itself, and most commands do not compile."""
    code = "import sys, fastvim.kernels; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.slow
@needs_cpu_backend
@pytest.mark.filterwarnings("error:.*cache:UserWarning")
def test_compile():
    xz, weights = mixer_inputs(dtype=torch.float32)
    columns = layout("columns", 3, 4, 2)

    def loss(xz, *tensors):
        out, _, _ = pooled_mixer(torch.tanh(xz), MixerWeights(*tensors), columns)
        y = selective_scan(
            out.transpose(1, 2),
            out.transpose(1, 2).abs(),
            *tensors[5][:1],
            *(torch.ones(2, 3, 12),) * 2,
        )
        return (torch.sin(out) * y.transpose(1, 2)).sum()

    results = []
    with use_backend("cpu"):
        for function in (loss, torch.compile(loss, fullgraph=True)):
            leaves = [tensor.clone().requires_grad_() for tensor in (xz, *weights)]
            value = function(*leaves)
            results.append([value.detach(), *torch.autograd.grad(value, leaves)])
    for eager, compiled in zip(*results, strict=True):
        assert relative_error(compiled, eager) < 1e-5


@needs_cpu_backend
def test_same_bits_from_run_to_run():
    xz, weights = mixer_inputs(3, 30, channels=40, dtype=torch.float32)
    leaves = [tensor.requires_grad_() for tensor in (xz, *weights)]
    rows = layout("rows", 5, 6, 3)

    def gradients():
        out = pooled_mixer(leaves[0], MixerWeights(*leaves[1:]), rows)[0]
        return torch.autograd.grad(out.square().sum(), leaves)

    first = gradients()
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, gradients(), strict=True))


@needs_cpu_backend
def test_threads_agree_and_are_honoured():
    """One thread and several give the same numbers, and one means one: the process gets no more."""
    code = """
import os, torch
from fastvim.kernels import selective_scan, use_backend
torch.set_num_threads(1)
before = len(os.listdir('/proc/self/task'))
x = torch.ones(1, 64, 300)
with use_backend('cpu'):
    one = selective_scan(x, x, -torch.ones(64, 4), torch.ones(1, 4, 300), torch.ones(1, 4, 300))
    assert len(os.listdir('/proc/self/task')) == before
    torch.set_num_threads(3)
    many = selective_scan(x, x, -torch.ones(64, 4), torch.ones(1, 4, 300), torch.ones(1, 4, 300))
assert torch.equal(one, many)
runtimes = {line.split()[-1] for line in open('/proc/self/maps')
            if 'libgomp' in line or 'libomp' in line or 'libiomp' in line}
assert len(runtimes) == 1, runtimes
assert len(os.listdir('/proc/self/task')) > before
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


@needs_cpu_backend
def test_without_an_openmp_runtime_one_thread_computes_the_same():
    inputs = scan_inputs(2, 64, 50, 4)
    with use_backend("cpu"):
        expected = selective_scan(**inputs)
        native.LIBRARY.fastvim_use_openmp(ctypes.byref(native.OpenMP()))
        try:
            assert torch.equal(selective_scan(**inputs), expected)
        finally:
            native.LIBRARY.fastvim_use_openmp(ctypes.byref(native.OPENMP or native.OpenMP()))


@needs_cpu_backend
def test_loading_leaves_denormal_numbers_alone():
    assert (torch.tensor([1e-310], dtype=torch.float64) / 2).item() > 0
    assert (torch.full((64,), 1e-40) / 2).min().item() > 0


def test_flops_by_hand():
    u = torch.randn(2, 4, 5)
    matrices = torch.randn(2, 3, 5), torch.randn(2, 3, 5)

    class Scan(torch.nn.Module):
        def forward(self, u):
            return selective_scan(u, u, -torch.ones(4, 3), *matrices)

    # 2 x 4 x 5 elements, 3 states. Each state: delta A, exp, B times the input, and two
    # multiply-adds; each element: delta u.
    count = FlopCountAnalysis(Scan(), u).set_op_handle(**fvcore_handles())
    assert count.total() == 2 * 4 * 5 * (3 * (3 + 2) + 1)
    with FlopCounterMode(display=False) as counter:
        Scan()(u)
    assert counter.get_total_flops() == 2 * 4 * 5 * (3 * (3 + 2 * 2) + 1)


def test_mixer_flops_by_hand():
    batch, length, channels, states, rank, width, steps = 2, 12, 5, 3, 2, 4, 3
    xz, weights = mixer_inputs(batch, length, channels, states, rank, width, dtype=torch.float32)
    tokens = torch.arange(length, dtype=torch.int32)

    class Mixer(torch.nn.Module):
        def forward(self, xz):
            return pooled_mixer(xz, weights, ScanLayout(None, tokens // 4, None, steps))[0]

    convolutions = 2 * batch * length * channels * width
    projections = 2 * batch * steps * channels * (2 * states + rank + rank)
    updates = 2 * batch * steps * channels * states * 2
    skips = 2 * batch * length * channels
    multiply_adds = convolutions + projections + updates + skips
    # Per token: 2 SiLU, 2 to pool, 2 to add the steps, 1 mean, 5 for the norm, 2 for the gate.
    # Per step and direction: bias, softplus, delta u, and three for each state.
    others = batch * length * channels * 14 + 2 * batch * steps * channels * (3 + 3 * states)
    count = FlopCountAnalysis(Mixer(), xz).set_op_handle(**fvcore_handles())
    assert count.total() == multiply_adds + others
    assert not count.unsupported_ops()
    with FlopCounterMode(display=False) as counter:
        Mixer()(xz.requires_grad_()).sum().backward()
    by_operator = counter.get_flop_counts()["Global"]
    forward = by_operator[torch.ops.fastvim.pooled_mixer]
    assert forward == 2 * multiply_adds + others
    assert by_operator[torch.ops.fastvim.pooled_mixer_backward] > 2 * forward


def test_unknown_backend():
    with pytest.raises(UserError, match="did you mean 'reference'"), use_backend("referense"):
        pass


def test_environment_forces_a_backend():
    code = (
        "from fastvim.kernels import backends; import torch;"
        "print(backends.choose('cpu', torch.float32))"
    )
    environment = {**os.environ, "FASTVIM_KERNELS": "reference"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "reference", run.stderr


def test_nothing_needs_triton():
    """Without Triton everything imports, and a forced backend says why it cannot run."""
    code = """
import sys
class Absent:
    def find_spec(self, name, *rest):
        if name.split('.')[0] == 'triton':
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Absent())
import importlib.metadata
version = importlib.metadata.version
def absent(name):
    if 'triton' in name:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = absent
import torch
from fastvim.kernels import selective_scan, use_backend
from fastvim.models import create_model
create_model('fastvim_femto')(torch.zeros(1, 1, 28, 28))
try:
    use_backend('triton').__enter__()
except ValueError as error:
    print(error)
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "'triton' cannot run here: Triton is not installed; it comes with" in run.stdout, run


@needs_cpu_backend
def test_cpu_is_chosen_where_it_fits():
    assert backends.choose("cpu", torch.float32) == "cpu"
    assert backends.choose("cpu", torch.bfloat16) == "reference"
    with use_backend("cpu"), pytest.raises(UserError, match="float32 and float64"):
        backends.choose("cpu", torch.bfloat16)
