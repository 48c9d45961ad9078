"""What a training does about a spike by itself, where `training.response` asks for it.

The loss and the gradient norm are judged before the optimiser steps, by a detector of their own:
the recorder's sees a loss only afterwards. Judging waits for the device in every step.

- `skip`: the step's gradient is thrown away; weights, optimiser and average stay as they are.
- `clip`: the gradient is clipped to `factor` times the median norm of ordinary steps.
- `lower_lr`: the schedule is multiplied by `factor` from this step to the end, once an episode.
- `roll_back`: the step is not taken, and weights, optimiser and average go back to a state kept
  before the episode. Steps, schedule and data go on, so the batches between are not seen again,
  and step n has the batch and the random numbers that it has in every run of the seed.

After `most` responses the run goes on as one without.
"""

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from fastvim.files import write_atomic
from fastvim.stability.detector import SpikeDetector
from fastvim.training.recipe import Recipe

RESPONSES_FILE = "responses.jsonl"
# Norms of ordinary steps whose median `clip` refers to.
NORMS = 64
# A state to go back to is this many steps older than the episode, if one is: what shows in the
# loss began before.
LEAD = 16
# States kept: with the last younger than LEAD steps, there is one before it.
KEPT = 2


@dataclass(frozen=True)
class Response:
    """What is done in one step (from 1), and why: a line of responses.jsonl."""

    step: int
    response: str  # As in `Recipe.response`.
    reason: str
    factor: float = 1.0  # Of the learning rate from here on.
    max_norm: float | None = None  # What the gradient is clipped to.
    to_step: int | None = None  # The kept state that is gone back to.

    @property
    def takes_step(self) -> bool:
        """Whether the optimiser steps."""
        return self.response in ("clip", "lower_lr")

    def to_dict(self) -> dict:
        """Plain values for JSON, with the sentence."""
        return {**vars(self), "sentence": self.sentence}

    @property
    def sentence(self) -> str:
        """For people."""
        done = {
            "skip": "the step was skipped",
            "clip": f"the gradient was clipped to {self.max_norm or 0:.3g}",
            "lower_lr": f"the learning rate is {self.factor:.3g} times the schedule's from here on",
            "roll_back": f"the weights went back to those after step {self.to_step}",
        }
        return f"step {self.step}: {self.reason}; {done[self.response]}"


class Responder:
    """Judges every step of a run in `directory` and says what is to be done about it."""

    def __init__(self, recipe: Recipe, directory: Path) -> None:
        self._kind, self._factor = recipe.response, recipe.response_factor
        self._most, self._every = recipe.response_most, recipe.response_every
        self._directory = directory
        self._detector = SpikeDetector()
        self._norms: list[float] = []
        self._kept: list[int] = []
        self._responses: list[Response] = []

    @property
    def lr_factor(self) -> float:
        """What the schedule's learning rates are multiplied by."""
        return self._responses[-1].factor if self._responses else 1.0

    def judge(self, step: int, loss: float, grad_norm: float) -> Response | None:
        """What to do in `step` (from 1) of this loss and gradient norm, usually nothing.

        Call once a step, in order, before the optimiser steps.
        """
        baseline = self._detector.baseline
        began = any(event.what == "started" for event in self._detector.update(step, loss))
        reason = None
        if not math.isfinite(loss):
            reason = "the loss is not a finite number"
        elif not math.isfinite(grad_norm):
            reason = "the gradient is not finite"
        elif self._detector.excursion is None:
            self._norms = [*self._norms, grad_norm][-NORMS:]
        # Inside an episode the baseline is frozen, and what is no outlier itself is left alone.
        elif began or baseline.height(loss) > baseline.threshold:
            height = baseline.height(loss)
            reason = f"the loss of {loss:.4g} stands {height:.1f} deviations above its past"
        if reason is None or len(self._responses) == self._most:
            return None
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        response = self._respond(step, reason, began, finite)
        if response is not None:
            self._responses.append(response)
            self._write()
        return response

    def _respond(self, step: int, reason: str, began: bool, finite: bool) -> Response | None:
        if self._kind == "skip":
            return Response(step, "skip", reason)
        if self._kind == "clip" and finite and self._norms:
            limit = self._factor * median(self._norms)
            return Response(step, "clip", reason, max_norm=limit)
        if self._kind == "lower_lr" and finite and began:
            return Response(step, "lower_lr", reason, factor=self.lr_factor * self._factor)
        if self._kind == "roll_back" and self._kept and (began or not finite):
            start = self._detector.excursion.start_step if self._detector.excursion else step
            old = [kept for kept in self._kept if kept <= start - LEAD] or self._kept[:1]
            # Younger ones are of the past that is given up.
            self._kept = old
            return Response(step, "roll_back", reason, to_step=old[-1])
        return None

    def keeps(self, step: int) -> bool:
        """Whether the state after `step` is to be kept; then write it and call `keep`."""
        calm = self._detector.excursion is None
        return self._kind == "roll_back" and step % self._every == 0 and calm

    def path(self, step: int) -> Path:
        """Where the state after `step` is kept."""
        return self._directory / f"rollback-{step}.safetensors"

    def keep(self, step: int) -> None:
        """The state after `step` has been written to its path."""
        self._kept = [*self._kept, step][-KEPT:]

    def delete_unused(self) -> None:
        """Delete what `state` does not refer to; call when that has been saved."""
        delete_kept(self._directory, {self.path(step) for step in self._kept})

    def state(self) -> dict:
        """What a resumed run needs, as plain values."""
        return {
            "detector": self._detector.state_dict(),
            "norms": self._norms,
            "kept": self._kept,
            "responses": [vars(response) for response in self._responses],
        }

    def resume(self, state: dict) -> None:
        """Go on from `state`; later lines of the file are of steps that will be done again."""
        self._detector.load_state_dict(state["detector"])
        self._norms, self._kept = state["norms"], state["kept"]
        self._responses = [Response(**fields) for fields in state["responses"]]
        self._write()

    def start_afresh(self) -> None:
        """Delete what an earlier, abandoned start of the run has left."""
        delete_kept(self._directory)
        (self._directory / RESPONSES_FILE).unlink(missing_ok=True)

    def _write(self) -> None:
        lines = [f"{json.dumps(vars(response))}\n" for response in self._responses]
        write_atomic(self._directory / RESPONSES_FILE, "".join(lines))


def delete_kept(directory: Path, used: Collection[Path] = ()) -> None:
    """Delete the states that were kept in `directory` to go back to, but for `used`."""
    for path in directory.glob("rollback-*.safetensors"):
        if path not in used:
            path.unlink()


def read_responses(directory: Path) -> list[Response]:
    """The responses of the run in `directory`, in order; none where there is no such file."""
    try:
        lines = (directory / RESPONSES_FILE).read_text(encoding="utf-8").splitlines()
        return [Response(**json.loads(line)) for line in lines]
    except (OSError, TypeError, ValueError):
        return []
