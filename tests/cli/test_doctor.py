"""`fastvim doctor`: what it says of the machine, and of backends that compute wrongly."""

import pytest
import torch
from click.testing import CliRunner

from fastvim.kernels import cpu, native, reference
from fastvim_cli.main import main

needs_second_backend = pytest.mark.skipif(
    native.REASON is not None, reason=f"no second backend: {native.REASON}"
)


def doctor():
    return CliRunner().invoke(main, ["doctor"], prog_name="fastvim")


def test_doctor_says_what_works_and_why_not():
    result = doctor()
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    proof = next(line.split() for line in lines if line.startswith("reference  "))
    assert proof[1:4] == ["works", "on", "cpu"] and 0 < float(proof[4]) < 1e-5
    assert next(line.split() for line in lines if line.startswith("on cpu"))[2] != "triton"
    assert "fashion-mnist-subset" in result.output and "found" in result.output


@needs_second_backend
def test_doctor_finds_a_backend_that_is_wrong(monkeypatch):
    right = reference.selective_scan

    def wrong(u, *rest):
        y, state = right(u, *rest)
        return (-y if u.dtype == torch.float32 else y), state

    monkeypatch.setattr("fastvim.kernels.cpu.selective_scan", wrong)
    result = doctor()
    assert result.exit_code == 1 and "IS WRONG on cpu" in result.output


@needs_second_backend
def test_doctor_finds_a_gradient_that_is_not_a_number(monkeypatch):
    right = cpu.selective_scan_backward

    def wrong(*inputs):
        u, *others = right(*inputs)
        return [u, *(torch.full_like(gradient, torch.nan) for gradient in others)]

    monkeypatch.setattr(cpu, "selective_scan_backward", wrong)
    result = doctor()
    assert result.exit_code == 1 and "IS WRONG on cpu" in result.output


@needs_second_backend
def test_doctor_says_that_kernels_have_one_thread(monkeypatch):
    monkeypatch.setattr(native, "OPENMP", None)
    result = doctor()
    assert result.exit_code == 0
    assert "works on cpu, on one thread, for torch has no OpenMP runtime" in result.output
