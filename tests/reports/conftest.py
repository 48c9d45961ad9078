"""Real runs of seconds, made once: two variants with two seeds, and one that diverges."""

import shutil

import pytest
import torch

EXPERIMENT = """
name: tiny
question: Does <b>alternating</b> help, & is $x_1$ "safe"?
base:
  data: {name: fashion-mnist-subset, train_images: 48, validation_images: 20, test_images: 40}
  model: {name: fastvim_femto, patch_size: 7}
  training: {epochs: 2, batch_size: 8, lr: 0.002, warmup_epochs: 0}
baseline: columns
variants:
  columns: {model.schedule: [col]}
  alternating: {model.schedule: [col, row]}
  hot: {training.lr: 1.0e+30}
seeds: 2
"""


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """An output folder as `fastvim ablate` leaves it, before any report. Not to be changed."""
    from fastvim.experiments.experiment import load
    from fastvim.experiments.plan import identified_runs, make_plan
    from fastvim.experiments.record import write_plan
    from fastvim.experiments.runner import carry_out
    from fastvim.experiments.store import Store

    folder = tmp_path_factory.mktemp("reports")
    file = folder / "tiny.yaml"
    file.write_text(EXPERIMENT)
    plan = make_plan(load(str(file)))
    runs, store = identified_runs(plan), Store(folder / "out")
    write_plan(store.output, plan, runs, "fastvim ablate tiny.yaml -o out")
    # Models this small gain nothing from threads, and lose much where others want the cores.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        outcomes = carry_out(runs, store, lambda event: None, lambda: False)
    finally:
        torch.set_num_threads(threads)
    assert [o.state for o in outcomes] == ["done", "done", "diverged"] * 2
    return store.output


@pytest.fixture
def output(finished, tmp_path):
    """A copy of `finished` to write in."""
    folder = tmp_path / "out"
    shutil.copytree(finished, folder)
    return folder


@pytest.fixture(scope="session")
def study(finished):
    """The study of `finished`."""
    from fastvim.reports.study import read_study

    return read_study(finished)


def run_directory(output, variant, seed):
    """The directory of a run."""
    (found,) = (output / "runs").glob(f"{variant}-seed{seed}-*")
    return found


@pytest.fixture(name="run_directory")
def run_directory_of():
    return run_directory
