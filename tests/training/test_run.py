import json
import math
import time
from contextlib import closing

import numpy as np
import pytest
import safetensors.torch
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastvim.errors import UserError
from fastvim.training.evaluation import evaluate_run
from fastvim.training.history import CsvLog, Position, UnreadableHistory
from fastvim.training.loop import FLUSH_SECONDS
from fastvim.training.run import Interrupted, train_run

STEPS = 12


@pytest.fixture(scope="module")
def finished(tmp_path_factory, settings):
    """A finished run: its directory, result and events."""
    directory = tmp_path_factory.mktemp("run")
    events = []
    result = train_run(**settings(), directory=directory, report=events.append)
    return directory, result, events


def stop_after(steps):
    asked = iter(range(1, 10_000))
    return lambda: next(asked) >= steps


def test_result_says_what_came_out(finished):
    directory, result, _ = finished
    assert json.loads((directory / "result.json").read_text()) == result
    assert result["status"] == "done"
    assert not result["diverged"]
    assert result["steps"] == STEPS
    names = {"top1", "top5", "loss", "val_top1", "val_top5", "val_loss"}
    assert set(result["metrics"]) == names
    assert 0 <= result["metrics"]["top1"] <= result["metrics"]["top5"] <= 100
    assert all(value > 0 for value in result["cost"].values())
    weights = safetensors.torch.load_file(directory / "checkpoint.safetensors")
    assert result["cost"]["parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert not (directory / "resume.safetensors").exists()
    environment = json.loads((directory / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
    assert environment["threads"] == torch.get_num_threads()


def test_what_is_recorded_is_seen_while_it_runs(settings, tmp_path):
    seen = []

    def look():
        """Called after every step, before it is recorded."""
        _, *rows = (tmp_path / "history.csv").read_text().splitlines()
        (events,) = tmp_path.glob("events.out.tfevents.*")
        seen.append((len(rows), events.read_bytes().count(b"train/loss")))
        if len(seen) == 2:
            time.sleep(FLUSH_SECONDS)
        return len(seen) == 3

    with pytest.raises(Interrupted):
        train_run(**settings(checkpoint_every=100), directory=tmp_path, should_stop=look)
    # Step 2 was recorded and, as every second step, put into TensorBoard's file.
    assert seen[2] == (2, 1)


def test_history_has_every_step(finished):
    directory, result, events = finished
    history = np.genfromtxt(directory / "history.csv", delimiter=",", names=True)
    assert history.dtype.names == ("step", "epoch", "loss", "lr", "grad_norm")
    assert history["step"].tolist() == list(range(1, STEPS + 1))
    assert history["epoch"].tolist() == [1] * 6 + [2] * 6
    assert history["lr"][0] == 1e-6
    assert history["lr"].argmax() == 5
    evaluations = np.genfromtxt(directory / "eval.csv", delimiter=",", names=True)
    assert evaluations["step"].tolist() == [6, 12]
    assert evaluations["val_top1"][-1] == pytest.approx(result["metrics"]["val_top1"])
    steps = [event["step"] for event in events if event["event"] == "step"]
    assert steps == [2, 4, 6, 8, 10, 12]
    assert [event["step"] for event in events if event["event"] == "evaluation"] == [6, 12]


def test_tensorboard_reads_the_events(finished):
    directory, _, _ = finished
    board = EventAccumulator(str(directory)).Reload()
    history = np.genfromtxt(directory / "history.csv", delimiter=",", names=True)
    losses = board.Scalars("train/loss")
    assert [scalar.step for scalar in losses] == [2, 4, 6, 8, 10, 12]
    assert [scalar.value for scalar in losses] == pytest.approx(history["loss"][1::2].tolist())
    assert [scalar.step for scalar in board.Scalars("validation/val_top1")] == [6, 12]


def test_predictions_and_checkpoint_give_the_metrics_again(finished, settings):
    directory, result, _ = finished
    tensors = safetensors.torch.load_file(directory / "predictions.safetensors")
    right = (tensors["label"] == tensors["predicted"]).double().mean().item()
    assert 100 * right == result["metrics"]["top1"]
    assert tensors["label"].dtype == torch.int16
    assert tensors["label"].bincount().tolist() == [4] * 10
    assert evaluate_run(directory)["metrics"] == result["metrics"]


def test_the_same_call_returns_the_result(finished, settings):
    directory, result, _ = finished
    written = (directory / "history.csv").stat().st_mtime_ns
    assert train_run(**settings(), directory=directory) == result
    assert (directory / "history.csv").stat().st_mtime_ns == written
    with pytest.raises(UserError, match="other settings"):
        train_run(**settings(seed=4), directory=directory)


def test_the_same_seed_gives_the_same_bits(finished, settings, outcome, tmp_path):
    directory, result, _ = finished
    torch.rand(7)
    train_run(**settings(), directory=tmp_path / "again")
    assert outcome(tmp_path / "again") == outcome(directory)
    other = train_run(**settings(seed=4), directory=tmp_path / "other")
    assert other["metrics"]["loss"] != result["metrics"]["loss"]


@pytest.mark.parametrize("stop", [1, 6, 8])
def test_a_stopped_run_goes_on(finished, settings, outcome, tmp_path, stop):
    directory, _, _ = finished
    with pytest.raises(Interrupted) as interrupted:
        train_run(**settings(), directory=tmp_path, should_stop=stop_after(stop))
    assert interrupted.value.step == stop
    assert not (tmp_path / "result.json").exists()
    events = []
    train_run(**settings(), directory=tmp_path, report=events.append)
    assert events[0]["event"] == "start"
    assert events[0]["step"] == stop
    assert outcome(tmp_path) == outcome(directory)
    board = EventAccumulator(str(tmp_path)).Reload()
    assert [scalar.step for scalar in board.Scalars("train/loss")] == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "history gone", "not safetensors"])
def test_a_damaged_state_is_named_and_not_used(finished, settings, outcome, tmp_path, damage):
    directory, _, _ = finished
    with pytest.raises(Interrupted):
        train_run(**settings(), directory=tmp_path, should_stop=stop_after(4))
    state = tmp_path / "resume.safetensors"
    content = bytearray(state.read_bytes())
    if damage == "truncated":
        state.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[-100] ^= 1
        state.write_bytes(content)
    elif damage == "history gone":
        (tmp_path / "history.csv").unlink()
    else:
        state.write_bytes(b"x" * 100)
    events = []
    again = train_run(**settings(), directory=tmp_path, report=events.append)
    assert outcome(tmp_path) == outcome(directory)
    assert [event["message"] for event in events if event["event"] == "note"] == again["notes"]
    assert "resume.safetensors cannot be used" in again["notes"][0]


@pytest.mark.parametrize("name", ["history.csv", "eval.csv"])
def test_a_damaged_record_starts_the_run_afresh(settings, tmp_path, name):
    events = []
    for _ in range(2):
        with pytest.raises(Interrupted):
            train_run(
                **settings(ema_decay=None),
                directory=tmp_path,
                report=events.append,
                should_stop=stop_after(1),
            )
        content = (tmp_path / name).read_bytes()
        # As a loss of power leaves it.
        (tmp_path / name).write_bytes(content[:-5] + bytes(5))
    (note,) = [event["message"] for event in events if event["event"] == "note"]
    assert f"({name} has changed since the state was saved)" in note
    assert [event["step"] for event in events if event["event"] == "start"] == [0, 0]


def test_a_record_goes_on_only_after_what_it_held(tmp_path):
    path = tmp_path / "record.csv"
    with closing(CsvLog(path, ("step", "loss"), Position())) as log:
        log.write({"step": 1, "loss": 0.5})
        position = log.sync()
        log.write({"step": 2, "loss": 0.25})
    for _ in range(2):
        with closing(CsvLog(path, ("step", "loss"), position)) as log:
            log.write({"step": 2, "loss": 0.125})
            later = log.sync()
    assert path.read_text() == "step,loss\n1,0.5\n2,0.125\n"
    with closing(CsvLog(path, ("step", "loss"), later)):
        pass
    path.write_text("step,loss\n1,0.6\n2,0.125\n")
    with pytest.raises(UnreadableHistory, match="has changed"):
        CsvLog(path, ("step", "loss"), position)


@pytest.mark.parametrize("of", ["the run", "its pretraining"])
def test_a_stopped_run_goes_on_with_other_bookkeeping(finished, settings, outcome, tmp_path, of):
    first = settings()
    again = settings(checkpoint_every=5, log_every=3, data={"workers": 1})
    other = {**first, **{key: again[key] for key in ("data", "training")}}
    if of == "its pretraining":
        sections = [
            {**arguments, **{k: arguments[k].model_dump() for k in ("data", "training")}}
            for arguments in (first, again)
        ]
        first, other = ({**first, "pretrained": each} for each in sections)
    with pytest.raises(Interrupted):
        train_run(**first, directory=tmp_path, should_stop=stop_after(4))
    events = []
    train_run(**other, directory=tmp_path, report=events.append)
    assert events[0]["step"] == 4
    assert outcome(tmp_path) == outcome(finished[0])


def test_a_state_of_other_settings_is_refused(settings, tmp_path):
    with pytest.raises(Interrupted):
        train_run(**settings(), directory=tmp_path, should_stop=stop_after(2))
    with pytest.raises(UserError, match="other settings"):
        train_run(**settings(lr=1e-4), directory=tmp_path)


def test_a_loss_that_is_no_number_ends_the_run(settings, tmp_path):
    arguments = settings(
        lr=1e30, optimizer="momentum", warmup_epochs=0, min_lr=0, ema_decay=None, epochs=4
    )
    result = train_run(**arguments, directory=tmp_path)
    assert result["status"] == "diverged"
    assert result["diverged"] is True
    assert result["metrics"] == {}
    history = np.genfromtxt(tmp_path / "history.csv", delimiter=",", names=True, ndmin=1)
    assert history["step"][-1] == result["diverged_step"] < 24
    assert [math.isfinite(loss) for loss in history["loss"]].index(False) == len(history) - 1
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_a_broken_checkpoint_is_named(finished, tmp_path):
    directory, _, _ = finished
    (tmp_path / "config.json").write_bytes((directory / "config.json").read_bytes())
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(UserError, match=r"no checkpoint at .*checkpoint\.safetensors"):
        evaluate_run(tmp_path)
    whole = (directory / "checkpoint.safetensors").read_bytes()
    path.write_bytes(whole[:-200])
    with pytest.raises(UserError, match=r"checkpoint\.safetensors: not a whole safetensors file"):
        evaluate_run(tmp_path)
    path.write_bytes(safetensors.torch.save({"head.weight": torch.zeros(10, 3)}))
    with pytest.raises(UserError, match=r"checkpoint\.safetensors: weights of another model"):
        evaluate_run(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json does not hold the settings"):
        evaluate_run(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(settings, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file"):
        train_run(**settings(), directory=tmp_path / "file" / "run")


def test_timm_models_train(settings, tmp_path):
    arguments = settings(epochs=1, warmup_epochs=0, ema_decay=None)
    arguments["model"] = {"name": "timm/test_mambaout", "drop_path_rate": 0.1}
    result = train_run(**arguments, directory=tmp_path)
    assert result["status"] == "done"
    arguments["model"] = {"name": "timm/test_mambaoot"}
    with pytest.raises(UserError, match="did you mean 'timm/test_mambaout'"):
        train_run(**arguments, directory=tmp_path / "other")


def test_bfloat16_runs_on_a_cpu(settings, tmp_path):
    arguments = settings(precision="bfloat16", epochs=1, warmup_epochs=0)
    result = train_run(**arguments, directory=tmp_path)
    assert result["status"] == "done"
    assert result["precision"] == "bfloat16"
    assert evaluate_run(tmp_path)["metrics"] == result["metrics"]
