"""A run of seconds on the packaged images."""

import json

import pytest
import torch

from fastvim.data import DataConfig
from fastvim.training import devices
from fastvim.training.recipe import Recipe

DATA = {
    "train_images": 96,
    "validation_images": 40,
    "test_images": 40,
    "mixup": 0.8,
    "cutmix": 1.0,
}
MODEL = {"name": "fastvim_femto", "patch_size": 7, "drop_path_rate": 0.2}
TRAINING = {
    "epochs": 2,
    "batch_size": 16,
    "micro_batch_size": 8,
    "warmup_epochs": 1,
    "ema_decay": 0.8,
    "checkpoint_every": 3,
    "log_every": 2,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small run faster on one thread, by far when the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu(request):
    """Equality to the bit is promised on a CPU, so a GPU is left out but where it is the point."""
    if request.node.get_closest_marker("gpu"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setattr(devices, "choose_device", lambda: torch.device("cpu"))
        yield


def make_settings(seed=3, model=None, data=None, **training):
    return {
        "task": "classification",
        "data": DataConfig(**{**DATA, **(data or {})}),
        "model": {**MODEL, **(model or {})},
        "training": Recipe(**{**TRAINING, **training}),
        "seed": seed,
    }


@pytest.fixture(scope="session")
def settings():
    """`settings(**training)`: the arguments of `train_run` but its directory."""
    return make_settings


@pytest.fixture(scope="session")
def outcome():
    """`outcome(directory)`: all of a finished run that its settings decide, to the bit."""

    def read(directory):
        result = json.loads((directory / "result.json").read_text())
        decided = {key: result[key] for key in ("status", "metrics", "spikes", "steps")}
        costs = ("parameters", "gflops", "peak_memory_mb")
        decided |= {key: result["cost"][key] for key in costs}
        names = ("history.csv", "eval.csv", "checkpoint.safetensors", "predictions.safetensors")
        return decided | {name: (directory / name).read_bytes() for name in names}

    return read
