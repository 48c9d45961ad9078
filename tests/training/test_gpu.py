"""What differs on a GPU: autocast, loss scaling, records of several steps at once, memory."""

import numpy as np
import pytest
import torch

from fastvim.training.evaluation import evaluate_run
from fastvim.training.run import Interrupted, train_run
from fastvim.training.seeds import seed_generators

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("precision", ["auto", "float16", "float32"])
def test_a_stopped_run_goes_on(settings, tmp_path, precision):
    arguments = settings(precision=precision, log_every=5)
    asked = iter(range(1, 100))
    with pytest.raises(Interrupted):
        train_run(**arguments, directory=tmp_path, should_stop=lambda: next(asked) == 7)
    result = train_run(**arguments, directory=tmp_path)
    assert result["status"] == "done"
    assert result["precision"] == ("bfloat16" if precision == "auto" else precision)
    assert result["device"] == "cuda:0"
    assert result["cost"]["peak_memory_mb"] > 0
    history = np.genfromtxt(tmp_path / "history.csv", delimiter=",", names=True)
    assert history["step"].tolist() == list(range(1, 13))
    assert np.isfinite(history["loss"]).all()
    again = evaluate_run(tmp_path)["metrics"]
    assert again["top1"] == pytest.approx(result["metrics"]["top1"], abs=5)


def test_generators_are_seeded_as_by_torch():
    places = ["cpu", "cuda"]
    seed_generators(5, torch.device("cuda"))
    drawn = [torch.rand(4, device=place).tolist() for place in places]
    torch.manual_seed(5)
    assert drawn == [torch.rand(4, device=place).tolist() for place in places]


def test_divergence_is_found_at_its_step(settings, tmp_path):
    arguments = settings(
        lr=1e30, optimizer="momentum", warmup_epochs=0, min_lr=0, precision="float32", log_every=5
    )
    result = train_run(**arguments, directory=tmp_path)
    assert result["status"] == "diverged"
    history = np.genfromtxt(tmp_path / "history.csv", delimiter=",", names=True, ndmin=1)
    assert history["step"][-1] == result["diverged_step"]
    assert np.isfinite(history["loss"][:-1]).all()
