"""The bytes that `make kernels-report` states are those that the kernels load and store.

Counted by the interpreter, address by address; the report's figures are formulas of the shapes.
"""

import os
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from operator_cases import layout, mixer_inputs, scan_inputs

from fastvim.kernels import MixerWeights, triton
from fastvim.kernels.triton import scan

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") != "1", reason="the interpreter counts, not a GPU"
    ),
    pytest.mark.skipif(not BENCHMARKS.exists(), reason="benchmarks are not beside the tests"),
]


class Traffic:
    """What one launch touches: bytes by address, and of x also program by program."""

    def __init__(self, x: torch.Tensor | None):
        self.read: dict[int, int] = {}
        self.written: dict[int, int] = {}
        # Addresses of x: those of this program, and how many programs touch each.
        self.x = range(0)
        if x is not None:
            self.x = range(x.data_ptr(), x.data_ptr() + x.numel() * x.element_size())
        self.program: set[int] = set()
        self.visits: Counter[int] = Counter()

    def touch(self, pointers, mask, store: bool) -> None:
        size = pointers.get_element_ty().primitive_bitwidth // 8
        for address in pointers.data[mask.data.astype(bool)].ravel().tolist():
            if store:
                self.written[address] = size
            # What the launch itself wrote is read from a cache.
            elif address not in self.written:
                self.read[address] = size
            if address in self.x:
                self.program.add(address)

    def next_program(self) -> None:
        self.visits.update(self.program)
        self.program = set()

    @property
    def borders(self) -> int:
        """Bytes of x that a second program, a third and so on read again."""
        return sum((visits - 1) * self.read[address] for address, visits in self.visits.items())

    @property
    def once(self) -> int:
        return sum(self.read.values()) + sum(self.written.values())


@pytest.fixture
def launches(monkeypatch) -> list:
    """(launch, traffic) of every kernel that is run."""
    from triton.runtime import interpreter

    found, now = [], []
    run = interpreter.GridExecutor.__call__
    load, store = (
        getattr(interpreter.InterpreterBuilder, f"create_masked_{name}")
        for name in ("load", "store")
    )
    step = interpreter.InterpreterBuilder.set_grid_idx

    def counted_run(self, *args, **arguments):
        now.append(Traffic(arguments.get("x")))
        run(self, *args, **arguments)
        now[-1].next_program()
        kernel = SimpleNamespace(__name__=self.fn.__name__)
        found.append(
            (SimpleNamespace(kernel=kernel, grid=self.grid, arguments=arguments), now.pop())
        )

    def counted_load(self, pointers, mask, *rest, **more):
        now[-1].touch(pointers, mask, store=False)
        return load(self, pointers, mask, *rest, **more)

    def counted_store(self, pointers, value, mask, *rest, **more):
        now[-1].touch(pointers, mask, store=True)
        return store(self, pointers, value, mask, *rest, **more)

    def counted_step(self, *place):
        now[-1].next_program()
        return step(self, *place)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", counted_run)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_load", counted_load)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_store", counted_store)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "set_grid_idx", counted_step)
    return found


def assert_stated(launches) -> set[str]:
    """The statements hold; returns the names of the kernels."""
    from kernel_costs import launch_cost

    for launch, traffic in launches:
        stated, name = launch_cost(launch), launch.kernel.__name__
        # Never too little; too much by the slots of a table that no program needs.
        assert 0.9 * stated.bytes <= traffic.once <= stated.bytes, (name, traffic.once, stated)
        assert traffic.borders <= stated.halo_bytes, (name, traffic.borders, stated)
    return {launch.kernel.__name__ for launch, _ in launches}


@pytest.mark.parametrize("kind", ["columns", "unpooled, columns first"])
def check_bytes_of_the_mixer(device, launches, monkeypatch, kind):
    monkeypatch.setattr(scan, "_SHORTEST_CHUNK", 16)
    xz, weights = mixer_inputs(1, 48, 16, 2, 1, dtype=torch.float32)
    tables = layout(kind, 6, 8, 1)
    settings = {"pooling": "mean", "scale": 1.0, "merge": "mean", "gate": True, "eps": 1e-5}
    out, *kept = triton.pooled_mixer(xz.bfloat16(), weights, tables, **settings)
    triton.pooled_mixer_backward(
        out, xz.bfloat16(), MixerWeights(*weights), tables, *kept, **settings
    )
    names = assert_stated(launches)
    assert names >= {"pool_tokens", "finish_tokens", "finish_backward", "convolve_backward"}
    chunked = {"scan_carry", "scan_adjoint_ends"}
    assert names >= {"list_members"} if kind == "columns" else names >= chunked


def check_bytes_of_the_scan(device, launches):
    *given, softplus = scan_inputs(1, 32, 40, 3, dtype=torch.float32).values()
    y, state = triton.selective_scan(*given, softplus)
    triton.selective_scan_backward(y, state, tuple(given), softplus)
    assert assert_stated(launches) == {"scan_forward", "scan_backward"}
