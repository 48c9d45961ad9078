"""How many runs go side by side, and with how many threads."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from fastvim.experiments import sharing, workers
from fastvim.experiments.estimate import seconds_side_by_side
from fastvim.experiments.experiment import load
from fastvim.experiments.plan import identified_runs, make_plan
from fastvim_cli.main import main


def jobs(name, profile, *sets):
    return sharing.choose_jobs(identified_runs(make_plan(load(name), profile, sets=sets)))


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.setattr(sharing, "cores", lambda: 4)
    monkeypatch.setattr(workers, "cores", lambda: 4)
    monkeypatch.setattr("fastvim.training.devices.choose_device", lambda: torch.device("cpu"))


def test_small_models_go_side_by_side_and_large_ones_one_by_one(four_cores):
    assert jobs("pooling-alternation", "quick") == 4
    assert jobs("pooling-alternation", "quick", "training.batch_size=1000") == 1
    # With a vision transformer of timm's, whose size the file says.
    assert jobs("mae-recipe", "quick") == 4


def test_one_large_run_is_enough_even_a_pretraining(four_cores):
    runs = identified_runs(make_plan(load("mae-scaling"), "quick"))
    assert sharing.choose_jobs(runs) == 4
    start = next(run.pretraining for run in runs if run.pretraining)
    training = start.config.training.model_copy(update={"batch_size": 1000})
    config = start.config.model_copy(update={"training": training})
    large = replace(start, config=config, identity="large")
    assert sharing.choose_jobs([*runs, replace(runs[-1], pretraining=large)]) == 1


def test_a_gpu_is_not_shared(four_cores, monkeypatch):
    monkeypatch.setattr("fastvim.training.devices.choose_device", lambda: torch.device("cuda"))
    assert jobs("pooling-alternation", "quick") == 1


@pytest.mark.parametrize(("count", "threads"), [(1, 4), (2, 2), (3, 1), (4, 1), (9, 1)])
def test_cores_are_shared_out(four_cores, count, threads):
    assert workers.threads_each(count) == threads


def test_time_of_runs_side_by_side():
    assert seconds_side_by_side([5, 3, 3, 4], 1) == 15
    assert seconds_side_by_side([5, 3, 3, 4], 2) == 9  # 5 + 4 beside 3 + 3
    assert seconds_side_by_side([5, 3], 4) == 5
    assert seconds_side_by_side([], 2) == 0


@pytest.mark.parametrize("value", ["x", "0", "65", "1.5", ""])
def test_other_numbers_of_jobs_are_refused_with_the_range(value):
    result = CliRunner().invoke(main, ["ablate", "pooling-alternation", "--jobs", value])
    assert result.exit_code == 2
    assert f"{value!r} is neither auto nor from 1 to 64" in result.output


@pytest.mark.slow
def test_one_run_left_has_the_threads_it_would_have_had_beside_others(tmp_path, monkeypatch):
    """Else a run that is taken up again would end with other bits."""
    monkeypatch.setattr(workers, "cores", lambda: 4)
    (tmp_path / "x.yaml").write_text(
        "name: x\n"
        "base:\n"
        "  data: {train_images: 40, validation_images: 20, test_images: 20}\n"
        "  model: {name: fastvim_femto, patch_size: 7, depth: 1}\n"
        "  training: {epochs: 1, batch_size: 20, lr: 1e-3, warmup_epochs: 0}\n"
        "variants: {one: {}}\n"
        "seeds: 1\n"
    )
    call = ["ablate", str(tmp_path / "x.yaml"), "-o", str(tmp_path / "out"), "--jobs", "2"]
    result = CliRunner().invoke(main, call)
    assert result.exit_code == 0, result.output
    assert "To train: 1 of 1 runs, 2 at a time, 2 threads each" in result.output
    (environment,) = (tmp_path / "out/runs").glob("*/environment.json")
    assert json.loads(environment.read_text())["threads"] == 2
