"""Responses to spikes, in real trainings of which one batch is damaged."""

import json

import numpy as np
import pytest
import torch

from fastvim.errors import UserError
from fastvim.training.loop import Loop
from fastvim.training.recipe import RESPONSES, Recipe
from fastvim.training.responses import Responder, read_responses
from fastvim.training.run import Interrupted, train_run

DAMAGED = 25  # The step, from 1, of 36.
LONG = {"epochs": 6, "response_every": 6, "checkpoint_every": 5}


@pytest.fixture
def damage(monkeypatch):
    """`damage(step=factor)`: multiplies the targets of a step, so its loss and gradients; the
    weights of the head after every step, and its gradient norm, by step."""
    factors, seen = {}, {}
    prepared, step = Loop._prepared, Loop._step

    def damaged(self, images, labels, epoch, batch):
        images, targets = prepared(self, images, labels, epoch, batch)
        return images, targets * factors.get(epoch * self.per_epoch + batch + 1, 1.0)

    def watched(self, images, targets):
        step(self, images, targets)
        model = self._trainer.model
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        seen[self.progress.step] = model.head.weight.detach().clone(), norm.item()

    monkeypatch.setattr(Loop, "_prepared", damaged)
    monkeypatch.setattr(Loop, "_step", watched)

    def set_damage(chosen):
        factors.update(chosen)
        return seen

    return set_damage


def history(directory):
    return np.genfromtxt(directory / "history.csv", delimiter=",", names=True)


def interrupt(arguments, directory, step):
    asked = iter(range(1, 1000))
    with pytest.raises(Interrupted):
        train_run(**arguments, directory=directory, should_stop=lambda: next(asked) >= step)


@pytest.mark.parametrize("kind", RESPONSES)
def test_it_acts_is_recorded_and_a_resumed_run_is_the_same(
    kind, settings, damage, outcome, tmp_path
):
    seen = damage({DAMAGED: 40.0})
    arguments = settings(response=kind, **LONG)
    notes = []
    whole = tmp_path / "whole"
    train_run(**arguments, directory=whole, report=notes.append)
    (response,) = read_responses(whole)
    assert (response.step, response.response) == (DAMAGED, kind)
    assert [n["message"] for n in notes if n["event"] == "note"] == [response.sentence]
    before, after = seen[DAMAGED - 1][0], seen[DAMAGED][0]
    rows = history(whole)
    if kind == "skip":
        assert torch.equal(before, after)
    elif kind == "clip":
        usual = np.median(rows["grad_norm"][: DAMAGED - 1])
        assert seen[DAMAGED][1] == pytest.approx(0.5 * usual, rel=1e-3)
        assert rows["grad_norm"][DAMAGED - 1] > 5 * usual
    elif kind == "roll_back":
        assert response.to_step == 18
        assert torch.equal(after, seen[18][0]) and not torch.equal(before, after)
    elif kind == "lower_lr":
        train_run(**settings(**LONG), directory=tmp_path / "without")
        ratio = rows["lr"] / history(tmp_path / "without")["lr"]
        assert ratio == pytest.approx(np.where(rows["step"] >= DAMAGED, 0.5, 1.0), rel=1e-6)
        assert not (tmp_path / "without" / "responses.jsonl").exists()
    if kind != "skip":
        assert not torch.equal(before, after)

    # Before the spike, and while its episode is open.
    for step in (DAMAGED - 2, DAMAGED + 1):
        directory = tmp_path / f"interrupted-{step}"
        interrupt(arguments, directory, step)
        if step < DAMAGED:
            # What a killed process did after its last saved state.
            (directory / "responses.jsonl").write_text("{}\n")
        train_run(**arguments, directory=directory)
        assert outcome(directory) == outcome(whole)
        assert read_responses(directory) == [response]
    assert not list(tmp_path.rglob("rollback-*"))


@pytest.mark.parametrize("kind", [None, *RESPONSES])
def test_a_loss_that_is_no_number(kind, settings, damage, tmp_path):
    damage({DAMAGED: float("nan")})
    result = train_run(**settings(response=kind, **LONG), directory=tmp_path)
    survives = kind in ("skip", "roll_back")
    assert result["status"] == ("done" if survives else "diverged")
    assert result["steps"] == (36 if survives else DAMAGED)
    assert len(read_responses(tmp_path)) == survives


def test_after_the_most_it_goes_on_as_without(settings, damage, tmp_path):
    damage({DAMAGED: float("nan"), DAMAGED + 4: float("nan")})
    arguments = settings(response="skip", response_most=1, **LONG)
    result = train_run(**arguments, directory=tmp_path)
    assert result["diverged_step"] == DAMAGED + 4
    assert [response.step for response in read_responses(tmp_path)] == [DAMAGED]


def test_waiting_for_a_spike_changes_nothing(settings, outcome, tmp_path):
    for kind in (None, "roll_back"):
        train_run(**settings(response=kind, **LONG), directory=tmp_path / str(kind))
    assert outcome(tmp_path / "None") == outcome(tmp_path / "roll_back")
    assert not (tmp_path / "roll_back" / "responses.jsonl").exists()


def test_a_damaged_state_to_go_back_to_is_named(settings, damage, tmp_path):
    damage({DAMAGED: 40.0})
    arguments = settings(response="roll_back", **LONG)
    interrupt(arguments, tmp_path, DAMAGED - 1)
    (tmp_path / "rollback-18.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match=r"rollback-18\.safetensors: the run cannot go back to it"):
        train_run(**arguments, directory=tmp_path)


def responder(directory, kind, steps=200, **chosen):
    """A responder that has seen a calm loss and kept the states after steps 100 and 190."""
    found = Responder(Recipe(response=kind, **chosen), directory)
    noise = np.random.default_rng(0).normal(2, 0.01, steps)
    for step, loss in enumerate(noise, 1):
        assert found.judge(step, float(loss), 1.0) is None
        if step in (100, 190):
            found.keep(step)
    return found


def test_it_goes_back_to_before_the_spike_can_have_begun(tmp_path):
    """Twice: the second time not to a state that the first has given up."""
    watching = responder(tmp_path, "roll_back")
    assert watching.judge(201, 9.0, 1.0).to_step == 100
    for step in range(202, 230):
        assert watching.judge(step, 2.0, 1.0) is None
    assert watching.judge(230, 9.0, 1.0).to_step == 100
    assert responder(tmp_path, "roll_back", steps=220).judge(221, 9.0, 1.0).to_step == 190


def test_the_rate_is_lowered_once_an_episode_and_every_outlier_is_skipped(tmp_path):
    lowering, skipping = (responder(tmp_path, kind) for kind in ("lower_lr", "skip"))
    given = [(lowering.judge(s, 9.0, 1.0), skipping.judge(s, 9.0, 1.0)) for s in (201, 202)]
    assert [lowered is not None for lowered, _ in given] == [True, False]
    assert [skipped is not None for _, skipped in given] == [True, True]
    for step in range(203, 230):
        assert lowering.judge(step, 2.0, 1.0) is None
    assert lowering.judge(230, 9.0, 1.0).factor == lowering.lr_factor == 0.25


def test_a_gradient_that_is_not_finite_is_an_outlier(tmp_path):
    assert responder(tmp_path, "skip").judge(201, 2.0, float("inf")).response == "skip"
    assert responder(tmp_path, "clip").judge(201, 2.0, float("inf")) is None


def test_its_state_survives_json(tmp_path):
    first, second = responder(tmp_path, "skip"), Responder(Recipe(response="skip"), tmp_path)
    first.judge(201, float("nan"), float("nan"))
    second.resume(json.loads(json.dumps(first.state())))
    for step, loss in ((202, 2.0), (203, 9.0), (204, float("inf"))):
        assert first.judge(step, loss, 1.0) == second.judge(step, loss, 1.0)
    assert first.state()["responses"] == second.state()["responses"]


def test_an_unknown_response_names_the_nearest():
    with pytest.raises(ValueError, match="no response named 'rollback', did you mean 'roll_back'"):
        Recipe(response="rollback")
