"""The recorder on real models: damage whose place is known, divergence, resumption."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastvim.models import create_model
from fastvim.training import devices
from fastvim.training.recorder import SAMPLE, Recorder
from fastvim.training.run import Interrupted, train_run
from fastvim.training.scan_again import DELTA_STEPS, STATE_CHANNELS

CPU = torch.device("cpu")
RECORDED_RUN = """
import sys
from fastvim.data import DataConfig
from fastvim.training.recipe import Recipe
from fastvim.training.run import train_run

result = train_run(
    task="classification",
    data=DataConfig(train_images=40, validation_images=10, test_images=10),
    model={"name": "fastvim_femto", "patch_size": 7},
    training=Recipe(epochs=1, batch_size=10, warmup_epochs=0, ema_decay=0.8, recorder=True),
    seed=0,
    directory=sys.argv[1],
)
print(result["status"])
"""
SMALL = {"patch_size": 7, "image_size": 28, "depth": 3}


def stop_after(steps):
    asked = iter(range(1, 1000))
    return lambda: next(asked) >= steps


def train_steps(model, recorder, count, first, images, labels, optimizer):
    for step in range(first, first + count):
        optimizer.zero_grad()
        recorder.before_step()
        with recorder.watching():
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        optimizer.step()
        recorder.after_step(loss.detach(), norm)
        recorder.read(step, [torch.arange(len(images)) + step])


@pytest.fixture
def training(tmp_path):
    """A model that has calmly trained for 40 steps, its recorder, and how to go on."""
    torch.manual_seed(0)
    model = create_model("fastvim_femto", post_ssm_norm=False, **SMALL)
    images, labels = torch.randn(16, 1, 28, 28), torch.arange(16) % 10
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    recorder = Recorder(model, tmp_path)
    train_steps(model, recorder, 40, 1, images, labels, optimizer)

    def go_on():
        train_steps(model, recorder, 1, 41, images, labels, optimizer)
        (file,) = (tmp_path / "episodes").glob("*.json")
        return json.loads(file.read_text())

    return model, go_on, tmp_path


@pytest.mark.parametrize(
    "parameter, change, quantity",
    [
        ("blocks.1.mixer.out_proj.weight", lambda w: w * 2000, "residual"),
        ("blocks.1.mixer.dt_bias", lambda b: b + 12, "delta"),
        ("blocks.1.mixer.x_proj", lambda w: w * 500, "delta"),
    ],
)
def test_a_damaged_block_is_named(training, parameter, change, quantity):
    model, go_on, _ = training
    with torch.no_grad():
        tensor = model.get_parameter(parameter)
        tensor.copy_(change(tensor))
        if quantity == "delta":
            # So that the loss sees it.
            model.blocks[1].mixer.out_proj.weight *= 100
    record = go_on()
    named = [entry["quantity"] for entry in record["ranking"] if entry["quantity"]["block"] == 1]
    assert quantity in [entry["name"] for entry in named]
    assert all(entry["quantity"]["block"] != 0 for entry in record["ranking"])
    assert record["summary"].startswith(("block 1", "block 2"))
    assert record["episode"]["start_step"] == 41
    assert record["batches"]["41"] == list(range(41, 57))
    assert record["steps"][-1] == record["found_at_step"] == 41
    assert record["modules"][1] == "blocks.1"


def test_the_tensor_that_left_the_finite_range_is_named(training):
    model, go_on, _ = training
    with torch.no_grad():
        model.blocks[2].mixer.dt_bias[0, 0] = torch.nan
    record = go_on()
    assert record["first_nonfinite"]["quantity"] == {
        "name": "delta",
        "statistic": "rms",
        "block": 2,
    }
    sentence = "block 2, delta (rms), left the finite range in the step of the loss"
    assert record["summary"] == sentence
    assert record["episode"]["class"] == "nonfinite"


@pytest.mark.parametrize("name", ["fastvim_femto", "vim_femto"])
def test_the_numbers_are_those_of_the_tensors(name, tmp_path):
    model = create_model(name, **SMALL)
    recorder = Recorder(model, tmp_path)
    images, seen = torch.randn(6, 1, 28, 28), {}
    mixer, handles = model.blocks[1].mixer, []
    handles.append(
        mixer.out_proj.register_forward_pre_hook(lambda _, x: seen.update(gated=x[0].detach()))
    )
    handles.append(
        model.blocks[1].register_forward_hook(lambda _, x, y: seen.update(out=y.detach()))
    )
    recorder.before_step()
    for part in images.split(3):  # Two micro-batches.
        with recorder.watching():
            loss = model(part).sum()
        seen = {key: seen.get(key, []) for key in seen}
        for key in ("gated", "out"):
            seen[f"all {key}"] = [*seen.get(f"all {key}", []), seen[key]]
    with torch.no_grad():
        before = torch.cat([p.flatten()[:SAMPLE] for p in model.parameters()])
        model.head.weight *= 1.5
        after = torch.cat([p.flatten()[:SAMPLE] for p in model.parameters()])
    recorder.after_step(loss.detach(), torch.tensor(7.0))
    model(images * 100)  # Not watched.
    recorder.read(1, [torch.arange(6)])
    values = dict(zip(map(str, recorder.quantities), recorder._values[0], strict=True))
    for key, words in (
        ("gated", "scan output after the norm and the gate"),
        ("out", "residual"),
    ):
        tensor = torch.cat(seen[f"all {key}"])
        rms, top = tensor.square().mean().sqrt().item(), tensor.abs().max().item()
        assert values[f"block 1, {words} (rms)"] == pytest.approx(rms, rel=1e-5)
        assert values[f"block 1, {words} (maximum)"] == pytest.approx(top, rel=1e-5)
    assert values["gradient norm"] == 7
    assert max(p.numel() for p in model.parameters()) > SAMPLE
    ratio = ((after - before).norm() / before.norm()).item()
    assert values["update-to-weight ratio"] == pytest.approx(ratio, rel=1e-5)


def test_delta_is_what_the_scan_uses(tmp_path):
    """With one state of decay A, doubling delta's bias changes what is recorded as it should."""
    model = create_model("fastvim_femto", **SMALL)
    mixer = model.blocks[0].mixer
    with torch.no_grad():
        mixer.dt_proj.zero_()
        mixer.dt_bias.fill_(0.7)
    recorder = Recorder(model, tmp_path)
    recorder.before_step()
    with recorder.watching():
        loss = model(torch.randn(2, 1, 28, 28)).sum()
    recorder.after_step(loss.detach(), torch.tensor(1.0))
    recorder.read(1, [torch.arange(8)])
    expected = np.log1p(np.exp(0.7))
    assert recorder._values[0, :2] == pytest.approx([expected, expected], rel=1e-5)


def test_blocks_that_will_be_computed_again_are_measured_alike_and_nothing_is_kept(tmp_path):
    values = []
    for again in (False, True):
        model = create_model("fastvim_femto", **SMALL)
        model.set_grad_checkpointing(again)
        recorder = Recorder(model, tmp_path)
        recorder.before_step()
        with recorder.watching():
            loss = model(torch.randn(4, 1, 28, 28, generator=torch.manual_seed(0))).sum()
            kept = [isinstance(part, torch.Tensor) for part in recorder._found]
            assert kept == [not again] * 9
        loss.backward()
        assert recorder._found == [] and recorder._scans == []
        recorder.after_step(loss.detach(), torch.tensor(1.0))
        recorder.read(1, [torch.arange(4)])
        values.append(recorder._values[0])
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_hooks_beside_the_recorder_change_no_number(tmp_path):
    """They make the blocks run one by one, or in parts."""
    found = []
    for hooked in ((), ("blocks.1",), ("blocks.0.mixer",)):
        model = create_model("fastvim_femto", **SMALL).double()
        recorder = Recorder(model, tmp_path)
        for name in hooked:
            model.get_submodule(name).register_forward_hook(lambda *_: None)
        images = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        with recorder.watching():
            model(images.double())
        found.append(recorder._passes[0])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    torch.testing.assert_close(found[2], found[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "name, size",
    [("fastvim_femto", (28, 28)), ("vim_femto", (28, 28)), ("fastvim_femto", (28, 14))],
)
def test_delta_and_the_state_are_the_scans(name, size, tmp_path):
    """Against the recurrence itself, step by step, in both directions."""
    model, seen = create_model(name, **{**SMALL, "image_size": size}), {}
    recorder, mixer = Recorder(model, tmp_path), model.blocks[1].mixer
    with torch.no_grad():
        mixer.dt_bias += 3  # Long steps: the decay matters.
    recorder.before_step()
    with recorder.watching():
        observe = mixer.observer
        mixer.observer = lambda *a: (seen.update(pooled=a[1].detach()), observe(*a))
        loss = model(torch.randn(2, 1, *size)).sum()
    recorder.after_step(loss.detach(), torch.tensor(1.0))
    recorder.read(1, [torch.arange(4)])
    weights, states, deltas = mixer.weights(), [], []
    rank, n = mixer.dt_proj.shape[2], mixer.A_log.shape[2]
    for direction in (0, 1):
        u = seen["pooled"][direction, :1].double()
        u = u.flip(1) if direction else u
        dt, B, _ = (u @ weights.x_proj[direction].double().T).split([rank, n, n], dim=2)
        delta = F.softplus(dt @ weights.dt_proj[direction].double().T + weights.dt_bias[direction])
        h = torch.zeros(*u[:, 0].shape, n, dtype=torch.float64)
        for s in range(u.shape[1]):
            decay = torch.exp(delta[:, s, :, None] * weights.A[direction])
            h = decay * h + (delta[:, s] * u[:, s])[..., None] * B[:, s, None]
        in_place = delta.flip(1) if direction else delta
        deltas.append(in_place[:, :: max(1, u.shape[1] // DELTA_STEPS)])
        states.append(h[:, :: max(1, u.shape[2] // STATE_CHANNELS)])
    assert name == "fastvim_femto" or deltas[0].shape[1] < u.shape[1]
    values = dict(zip(map(str, recorder.quantities), recorder._values[0], strict=True))
    for quantity, parts in (("state", states), ("delta", deltas)):
        whole = torch.stack(parts).detach()
        rms, top = whole.square().mean().sqrt().item(), whole.abs().max().item()
        assert values[f"block 1, {quantity} (rms)"] == pytest.approx(rms, rel=1e-4)
        assert values[f"block 1, {quantity} (maximum)"] == pytest.approx(top, rel=1e-4)


def test_tensorboard_has_every_block_under_its_quantity(settings, tmp_path):
    train_run(**settings(recorder=True, epochs=1, warmup_epochs=0), directory=tmp_path)
    board = EventAccumulator(str(tmp_path)).Reload()
    tags = [tag for tag in board.Tags()["scalars"] if tag.startswith("recorder/state_rms/")]
    depth = len(create_model("fastvim_femto", patch_size=7).blocks)
    assert tags == [f"recorder/state_rms/block{block:02d}" for block in range(depth)]
    points = board.Scalars("recorder/scan_output_before_the_norm_maximum/block00")
    assert [point.step for point in points] == [2, 4, 6]
    assert all(point.value > 0 for point in points)
    assert "recorder/update_to_weight_ratio" in board.Tags()["scalars"]


def test_what_is_huge_is_not_called_infinite(tmp_path):
    model = create_model("fastvim_femto", **SMALL)
    recorder = Recorder(model, tmp_path)
    with torch.no_grad():
        model.blocks[0].mixer.out_proj.weight *= 1e30
    recorder.before_step()
    with recorder.watching():
        loss = model(torch.randn(2, 1, 28, 28)).sum()
    recorder.after_step(loss.detach(), torch.tensor(1.0))
    recorder.read(1, [torch.arange(2)])
    values = dict(zip(map(str, recorder.quantities), recorder._values[0], strict=True))
    largest = values["block 0, residual (maximum)"]
    assert 1e25 < values["block 0, residual (rms)"] <= largest < np.inf


def test_half_precision_and_all_parameters_are_measured(tmp_path):
    model = create_model("fastvim_femto", **SMALL)
    recorder = Recorder(model, tmp_path)
    recorder.before_step()
    with recorder.watching(), torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(2, 1, 28, 28)).sum()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.25
    recorder.after_step(loss.detach(), torch.tensor(1.0))
    recorder.read(1, [torch.arange(2)])
    assert np.isfinite(recorder._values).all() and (recorder._values[0, :-3] > 0).all()
    assert recorder._values[0, -1] == pytest.approx(0.25)


def test_a_state_with_fewer_quantities_leaves_the_ring_empty(tmp_path):
    recorder = Recorder(create_model("fastvim_femto", **SMALL), tmp_path)
    older = {
        "recorder_steps": torch.arange(1, 4),
        "recorder_values": torch.ones(3, len(recorder.quantities) - 2),
        "recorder_samples": torch.zeros(3, 16, dtype=torch.long),
    }
    recorder.resume(older, np.array([[1, 2.0], [2, 2.0], [3, 2.0]]))
    assert recorder.state() == {}


@pytest.mark.parametrize("damage", [b"", b"{", b"null", b"\xff", None])
def test_a_lost_record_of_an_episode_is_written_again_when_it_ends(tmp_path, damage):
    recorder = Recorder(torch.nn.Linear(2, 2), tmp_path)
    calm = [2 + 0.01 * (i % 3) for i in range(40)]
    for step, loss in enumerate([*calm, *[9.0] * 4, *calm]):
        recorder.before_step()
        recorder.after_step(torch.tensor(loss), torch.tensor(1.0))
        recorder.read(step, [torch.arange(2)])
        if step == 43:
            (file,) = (tmp_path / "episodes").glob("*.json")
            began = json.loads(file.read_text())
            file.unlink() if damage is None else file.write_bytes(damage)
    recorder.finish()
    ended = json.loads(file.read_text())
    assert ended["episode"]["recovered"]
    assert ended.keys() == began.keys()


def test_recording_changes_nothing_and_a_resumed_run_writes_the_same(tmp_path, settings, outcome):
    """A divergence that is real: momentum, no norm, and a rate that rises without end."""
    wild = {"lr": 10.0, "optimizer": "momentum", "epochs": 6, "warmup_epochs": 5.9}
    model = {"post_ssm_norm": False, "direction_merge": "sum"}
    runs = {}
    for name, recorder in (("plain", False), ("recorded", True), ("resumed", True)):
        chosen = settings(model=model, recorder=recorder, ema_decay=None, **wild)
        if name == "resumed":
            with pytest.raises(Interrupted):
                train_run(**chosen, directory=tmp_path / name, should_stop=stop_after(10))
        runs[name] = train_run(**chosen, directory=tmp_path / name)
    assert runs["plain"]["steps"] == runs["recorded"]["steps"]
    histories = {name: (tmp_path / name / "history.csv").read_bytes() for name in runs}
    assert len(set(histories.values())) == 1
    files = {
        name: {f.name: f.read_bytes() for f in (tmp_path / name / "episodes").glob("*.json")}
        for name in runs
    }
    assert not files["plain"]
    assert files["recorded"] and files["recorded"] == files["resumed"]
    records = [json.loads(content) for content in files["recorded"].values()]
    assert any(
        entry["quantity"]["block"] is not None for record in records for entry in record["ranking"]
    )


def test_nothing_is_printed_while_memory_is_measured(tmp_path):
    """PyTorch's profiler warns of memory that is given back and was taken before it began."""
    run = subprocess.run(
        [sys.executable, "-c", RECORDED_RUN, str(tmp_path)], capture_output=True, text=True
    )
    assert (run.stdout, run.stderr) == ("done\n", "")


def test_float16_on_a_cpu_rounds_and_overflows():
    x = torch.tensor([[300.0, 1.0]], requires_grad=True)
    weight = torch.tensor([[300.0, 1 + 2**-12]])
    with devices.autocast("float16", CPU):
        assert F.linear(x, weight).isinf().all()
        small = F.linear(x[:, 1:], weight[:, 1:])
        assert (x[:, 1:] * weight[:, 1:]).item() == 1 + 2**-12
    assert small.item() == 1 and small.dtype == torch.float32
    backend = devices.kernel_backend(CPU, "float16", "vim_tiny")
    assert backend == devices.kernel_backend(CPU, "float32", "vim_tiny")
