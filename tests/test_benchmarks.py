"""Figures that two machines wrote are set side by side; the benchmarks themselves are not run."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from fastvim.profiling.machine import describe, in_words

COMPARE = Path(__file__).resolve().parents[1] / "benchmarks" / "compare.py"
pytestmark = pytest.mark.skipif(not COMPARE.exists(), reason="benchmarks are not beside the tests")


def write(path: Path, seconds: float) -> Path:
    spread = {"median": seconds, "quartiles": [seconds, 2 * seconds]}
    result = {"title": "forward", "ours": "a", "contenders": {"a": {"wall": spread}}, "mb": 7}
    machine = describe(torch.device("cpu")) | {"clock_mhz": 2000}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "results": [result]}))
    return path


def compare(*paths: Path) -> None:
    specification = importlib.util.spec_from_file_location("compare", COMPARE)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["compare.py", *map(str, paths)])
        module.main()


def test_two_files_and_two_folders_are_compared(tmp_path, capsys):
    one, other = write(tmp_path / "a" / "x.json", 0.5), write(tmp_path / "b" / "x.json", 1.5)
    write(tmp_path / "b" / "y.json", 1.0)
    for paths in ((one, other), (one.parent, other.parent)):
        compare(*paths)
        printed = capsys.readouterr().out
        wall, megabytes = (" ".join(line.split()) for line in printed.splitlines()[-2:])
        assert wall == "a / wall 0.5 [0.5 to 1] 1.5 [1.5 to 3] 3.00 x"
        assert megabytes == "mb 7 7 1.00 x"
        assert printed.count("2000 MHz") == 2


def test_what_is_not_there_is_named(tmp_path, capsys):
    one = write(tmp_path / "a" / "x.json", 0.5)
    with pytest.raises(SystemExit, match="2"):
        compare(one, tmp_path / "none.json")
    assert "none.json is not there" in capsys.readouterr().err


def test_the_machine_is_described_with_clock_cores_threads_and_peers():
    environment = describe(torch.device("cpu"))
    line = in_words(environment, [2100, 2000, None])
    assert "2000 to 2100 MHz" in line and f"of {environment['cores']} cores" in line
    assert f"torch {torch.__version__.split('+')[0]}" in line and "timm" in line
    assert environment["kernels"] in line and "clock unknown" in in_words(environment, [None])
