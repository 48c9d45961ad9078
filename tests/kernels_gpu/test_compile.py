"""Every kernel compiles for three architectures without a spill; bytes stay near the least.

In a process of its own, without the interpreter, on no GPU: what `make kernels-report` does, for
few shapes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastvim.kernels import backends

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
# A model with a row of three blocks in chunks, and one with five blocks; two dtypes, the oldest
# and the newest architecture. The report has all of them.
CASES = {
    "tiny at 2048": ("tiny", "2048", "mean,none", "bfloat16", "80"),
    "huge at 224": ("huge", "224", "mean", "float32", "100"),
    "base at 2048": ("base", "2048", "mean", "float16", "90"),
}

pytestmark = [
    pytest.mark.skipif(backends.unfit_triton() is not None, reason=backends.unfit_triton() or ""),
    pytest.mark.skipif(not BENCHMARKS.exists(), reason="benchmarks are not beside the tests"),
]


@pytest.mark.parametrize("name", CASES)
def test_no_spills_and_few_bytes(name, tmp_path):
    values = dict(
        zip(("models", "sizes", "poolings", "dtypes", "targets"), CASES[name], strict=True)
    )
    options = [text for key, value in values.items() for text in (f"--{key}", value)]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    figures = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "kernels_report.py"), *options, "--json", str(figures)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    found = json.loads(figures.read_text())
    compiled = [row for rows in found["kernels"].values() for row in rows]
    assert {row["kernel"] for row in compiled} >= {
        "list_members", "pool_tokens", "finish_tokens", "finish_backward", "convolve_backward",
        "scan_forward", "scan_backward",
    }  # fmt: skip
    target = f"sm_{values['targets']}"
    assert all(row[target]["spilled"] == 0 for row in compiled)
    # The exit code holds the bars; here without any border of a tile in a cache.
    for mixer in found["mixers"]:
        assert mixer["pooling"] == "none" or mixer["forward"]["with_halos"] < 1.25


def test_what_misses_a_bar_fails_the_report():
    """Held to too few registers a kernel spills, held to no more than the least a mixer misses."""
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import kernels_report
from fastvim.kernels.triton import scan
scan.REGISTERS = 40
kernels_report.MOST, kernels_report.MOST_OF_CHAIN = 1.0, 0.1
sys.argv = ["", "--models", "tiny", "--sizes", "1024", "--poolings", "mean"]
sys.argv += ["--dtypes", "bfloat16", "--targets", "80"]
sys.exit(kernels_report.main())
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(BENCHMARKS)],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr[-2000:]
    missed = done.stdout.split("missed:")[1]
    assert "scan_forward on sm_80 spills" in missed
    assert "the forward moves" in missed and "the backward moves" in missed
    assert "of the unfused chain" in missed
