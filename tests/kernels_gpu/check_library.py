"""The Triton backend behind the registered operators and inside a model."""

import pytest
import torch
from comparisons import relative_error, to
from operator_cases import layout, mixer_inputs, scan_inputs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from fastvim.kernels import MixerWeights, ScanLayout, backends, pooled_mixer, triton, use_backend
from fastvim.kernels.triton.launch import list_launches

SHAPE = {"batch": 1, "length": 6, "channels": 4, "states": 2, "rank": 1, "dtype": torch.float32}


def mixer_of(device, dtype=torch.float32):
    """xz and weights as leaves, and a loss of them that runs on the triton backend."""
    xz, weights = mixer_inputs(**SHAPE)
    leaves = [t.to(device).requires_grad_() for t in (xz.to(dtype), *weights)]
    tables = ScanLayout(*to(layout("columns", 2, 3, 1), device))

    def loss(xz, *tensors):
        return pooled_mixer(xz, MixerWeights(*tensors), tables)[0].float().square().sum()

    return leaves, loss


def gradients(function, leaves):
    return torch.autograd.grad(function(*leaves), leaves)


def check_opcheck(device):
    inputs = scan_inputs(1, 3, 4, 2, dtype=torch.float32)
    tensors = [t.to(device).requires_grad_() for t in list(inputs.values())[:-1]]
    torch.library.opcheck(torch.ops.fastvim.selective_scan, (*tensors, True, "triton"))


@pytest.mark.parametrize("kind", ["unpooled", "missing tokens"])
def check_opcheck_of_the_mixer(device, kind):
    xz, weights = mixer_inputs(**SHAPE)
    tensors = [tensor.to(device).requires_grad_() for tensor in (xz, *weights)]
    tables = to(layout(kind, 2, 3, 1), device)
    settings = (*tables, "mean", 1.0, "mean", True, 1e-5, "triton")
    torch.library.opcheck(torch.ops.fastvim.pooled_mixer, (*tensors, *settings))


def check_compile(device):
    """One graph, the same gradients; aot_eager, since inductor needs a compiler of its own."""
    leaves, loss = mixer_of(device)
    with use_backend("triton"):
        expected = gradients(loss, leaves)
        found = gradients(torch.compile(loss, fullgraph=True, backend="aot_eager"), leaves)
    for f, e in zip(found, expected, strict=True):
        assert relative_error(f, e) < 1e-6


def check_checkpointing(device):
    leaves, loss = mixer_of(device)
    with use_backend("triton"):
        expected = gradients(loss, leaves)
        found = gradients(lambda *t: checkpoint(loss, *t, use_reentrant=False), leaves)
    for f, e in zip(found, expected, strict=True):
        assert torch.equal(f, e)


def check_autocast(device):
    """Half inputs under autocast: weights, scan and projections stay in float32."""
    leaves, loss = mixer_of(device, torch.bfloat16)
    with use_backend("triton"):
        expected = gradients(loss, leaves)
        with torch.autocast(device.type, torch.bfloat16):
            found = gradients(loss, leaves)
    for f, e in zip(found, expected, strict=True):
        assert torch.equal(f, e) and f.dtype == e.dtype


def check_same_bits_from_run_to_run(device):
    leaves, loss = mixer_of(device)
    with use_backend("triton"):
        first, second = gradients(loss, leaves), gradients(loss, leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class OnOneDevice(TorchDispatchMode):
    """Fails where an operator touches a tensor that holds data; notes what is allocated."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, torch.Tensor):
                assert tensor.device.type == "meta", f"{function} on {tensor.device}"
        self.shapes += [(str(function), t.shape) for t in tree_leaves(result) if t is not None]
        return result


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("kind", ["columns", "unpooled", "missing tokens"])
def check_nothing_waits_for_the_host(kind, pooling):
    """As CUDA graphs need it: on tensors without data no number is read, nothing is copied from or
    to the host, and what is allocated follows from the shapes alone."""
    xz, weights = mixer_inputs(2, 6, 4, 2, 1, dtype=torch.float32)
    xz, *weights = to((xz, *weights), "meta")
    tables = ScanLayout(*to(layout(kind, 2, 3, 2), "meta"))
    settings = {"pooling": pooling, "scale": 1.0, "merge": "mean", "gate": True, "eps": 1e-5}
    inputs = to(scan_inputs(1, 3, 300, 2, dtype=torch.float32).values(), "meta")
    allocated = []
    for _ in range(2):
        with list_launches() as launches, OnOneDevice() as seen:
            out, *kept = triton.pooled_mixer(xz, MixerWeights(*weights), tables, **settings)
            triton.pooled_mixer_backward(out, xz, MixerWeights(*weights), tables, *kept, **settings)
            y, state = triton.selective_scan(*inputs)
            triton.selective_scan_backward(y, state, tuple(inputs[:-1]), inputs[-1])
        assert {"scan_carry", "convolve_backward"} <= {one.kernel.__name__ for one in launches}
        allocated.append(seen.shapes)
    assert allocated[0] == allocated[1]


def check_choice(device):
    forced = backends._forced
    assert backends.available()["triton"] is None
    if device.type == "cuda" and forced is None:
        assert backends.choose("cuda", torch.bfloat16) == "triton"
        assert backends.choose("cuda", torch.float64) == "reference"
    with use_backend("triton"):
        assert backends.choose(device.type, torch.float16) == "triton"
        with pytest.raises(ValueError, match="float16 tensors"):
            backends.choose(device.type, torch.float64)


@pytest.mark.parametrize("name", ["fastvim_femto", "vim_femto"])
def check_a_model(device, name):
    """A whole model, its loss and gradients, against the reference backend."""
    from fastvim.models import create_model

    torch.manual_seed(0)
    model = create_model(name, image_size=6, d_model=16, d_state=4).to(device)
    images = torch.randn(2, 1, 6, 6, device=device)
    results = []
    for backend in ("reference", "triton"):
        with use_backend(backend):
            model.zero_grad()
            out = model(images)
            out.square().mean().backward()
        results.append([out, *(p.grad.clone() for p in model.parameters())])
    for expected, found in zip(*results, strict=True):
        assert relative_error(found, expected) < 1e-4


def check_distributed(device, tmp_path):
    """A model under DDP has the gradients of the plain model."""
    from fastvim.models import create_model

    torch.manual_seed(0)
    model = create_model("fastvim_femto", image_size=4, d_model=8, d_state=2).to(device)
    images = torch.randn(1, 1, 4, 4, device=device)
    with use_backend("triton"):
        model(images).square().mean().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{tmp_path}/rendezvous",
        rank=0,
        world_size=1,
    )
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        with use_backend("triton"):
            wrapped(images).square().mean().backward()
    finally:
        torch.distributed.destroy_process_group()
    for parameter, right in zip(model.parameters(), expected, strict=True):
        assert relative_error(parameter.grad, right) < 1e-6
