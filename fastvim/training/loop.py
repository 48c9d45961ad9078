"""The training loop: steps, records, evaluations and saved states, in that order."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fastvim.data.mixing import create_mixing
from fastvim.errors import UserError
from fastvim.training.costs import Speed, step_memory
from fastvim.training.evaluation import evaluate_finally, evaluate_split, evaluating
from fastvim.training.history import History
from fastvim.training.recipe import Recipe
from fastvim.training.responses import Response
from fastvim.training.state import STATE_FILE, Progress, UnreadableState, load_state, save_state
from fastvim.training.trainer import StepResult, Trainer

# Points of each of the recorder's curves in TensorBoard, at most: there are hundreds of curves.
RECORDER_POINTS = 200
# What is recorded reaches the files at least so often, or with the next step where that takes
# longer: `fastvim status`, `fastvim logs review --follow` and TensorBoard read them meanwhile.
FLUSH_SECONDS = 1.0


class Interrupted(Exception):
    """A run stopped because it was asked to; its state is saved and the next call goes on."""

    def __init__(self, directory: Path, step: int, steps: int) -> None:
        super().__init__(f"{directory} stopped after step {step} of {steps}")
        self.directory, self.step, self.steps = directory, step, steps


class Loop:
    """Trains until the last step, until the loss is no number, or until asked to stop."""

    def __init__(
        self,
        *,
        task,
        dataset,
        trainer: Trainer,
        recipe: Recipe,
        seed: int,
        directory: Path,
        device: torch.device,
        precision: str,
        progress: Progress,
        history: History,
        speed: Speed,
        report: Callable[[dict], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self._task, self._dataset, self._trainer, self._recipe = task, dataset, trainer, recipe
        self._seed, self._directory = seed, directory
        self._device, self._precision = device, precision
        self._history, self._speed = history, speed
        self._report, self._should_stop = report, should_stop
        self._mixing = create_mixing(dataset.config, dataset.num_classes, recipe.smoothing)
        self.progress = progress
        self.per_epoch = dataset.batches_per_epoch(recipe.batch_size)
        self.total = recipe.total_steps(self.per_epoch)
        # Reading a loss waits for the GPU, so there it is done for several steps at once.
        self._window = recipe.log_every if device.type == "cuda" else 1
        points = math.ceil(self.total / RECORDER_POINTS / recipe.log_every)
        self._recorder_every = max(1, points) * recipe.log_every
        self._pending: list[StepResult] = []
        # Of the pending batches, the places of their images in the split.
        self._places: list[Tensor] = []
        self._earlier_seconds = progress.seconds
        self._began = self._mark = self._flushed = time.perf_counter()

    def run(self) -> int | None:
        """Train to the end; the step whose loss was no number, or None.

        Raises Interrupted, with the state saved, when `should_stop` says so.
        """
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        while self.progress.step < self.total:
            epoch, first = divmod(self.progress.step, self.per_epoch)
            batches = self._dataset.train_batches(
                self._seed, epoch, self._recipe.batch_size, start_batch=first
            )
            for batch, (images, labels, places) in enumerate(batches, first):
                self._step(*self._prepared(images, labels, epoch, batch))
                self._places.append(places)
                diverged = self._after_step()
                if diverged is not None:
                    return diverged
                if self.progress.step == self.total:
                    break
        return None

    def evaluate(self, split: str):
        """The task's evaluation of the weights that count, on `split`."""
        return evaluate_split(
            self._task,
            self._trainer.evaluated_model,
            self._dataset,
            split,
            self._recipe,
            self._device,
            self._precision,
        )

    def final(self) -> dict[str, float]:
        """What the task measures at the end alone."""
        return evaluate_finally(
            self._task,
            self._trainer.evaluated_model,
            self._dataset,
            self._recipe,
            self._device,
            self._precision,
        )

    def picture(self) -> bytes | None:
        """What the task shows of the weights that count, a PNG file's bytes."""
        model = self._trainer.evaluated_model
        with evaluating(model, self._precision, self._device):
            return self._task.picture(model, self._dataset)

    def elapsed(self) -> float:
        """Seconds of training and evaluation, over all sessions of the run."""
        return self._earlier_seconds + time.perf_counter() - self._began

    def _prepared(
        self, images: Tensor, labels: Tensor, epoch: int, batch: int
    ) -> tuple[Tensor, Tensor]:
        """The global batch on the device, mixed before it is cut into micro-batches."""
        images = images.to(self._device, non_blocking=True)
        labels = labels.to(self._device, non_blocking=True)
        targets = self._task.targets(self._trainer.model, labels, self._seed, epoch, batch)
        if self._mixing is None:
            return images, targets
        return self._mixing(images, targets, self._seed, epoch, batch)

    def _step(self, images: Tensor, targets: Tensor) -> None:
        done = self.progress.step

        def take() -> None:
            self._pending.append(self._trainer.step(done, images, targets))

        # The optimiser has its state from the second step on.
        measure = done >= min(1, self.total - 1) and not self.progress.peak_memory
        if measure and self._device.type == "cpu":
            average = self._trainer.average_model
            others = [images, targets, *(average.state_dict().values() if average else ())]
            self.progress.peak_memory = step_memory(
                take, self._trainer.model, self._trainer.optimizer, others
            )
            self._mark = None  # The profiler slows the step: no rate from it.
        else:
            take()
        self.progress.step = done + 1
        response = self._pending[-1].response
        if response is not None:
            self._go_back(response)
            self._tell("note", message=response.sentence)

    def _go_back(self, response: Response) -> None:
        if response.to_step is None:
            return
        path = self._trainer.responder.path(response.to_step)
        try:
            load_state(
                path,
                self._trainer.model,
                self._trainer.optimizer,
                ema=self._trainer.average_model,
                scaler=self._trainer.scaler,
                settings=self.progress.settings,
            )
        except UnreadableState as problem:
            raise UserError(f"{path}: the run cannot go back to it ({problem})") from problem

    def _after_step(self) -> int | None:
        step = self.progress.step
        epoch = math.ceil(step / self.per_epoch)
        ended = step == self.total
        evaluate = ended or (step % self.per_epoch == 0 and epoch % self._recipe.eval_every == 0)
        responder = self._trainer.responder
        keep = not ended and responder is not None and responder.keeps(step)
        save = keep or (step % self._recipe.checkpoint_every == 0 and not ended)
        stop = not ended and self._should_stop is not None and self._should_stop()
        if evaluate or save or stop or len(self._pending) == self._window:
            diverged = self._record(ended)
            if diverged is not None:
                return diverged
        if evaluate:
            self._validate(epoch)
        if keep:
            self._save_to(responder.path(step))
            responder.keep(step)
        if save or stop:
            self.save()
        if stop:
            raise Interrupted(self._directory, step, self.total)
        if evaluate or save:
            self._mark = time.perf_counter()
        return None

    def _record(self, ended: bool) -> int | None:
        """Write the pending steps; the first of them whose loss is no number, or None."""
        results, self._pending = self._pending, []
        places, self._places = self._places, []
        first = self.progress.step - len(results) + 1
        recorder = self._trainer.recorder
        if recorder is not None:
            recorder.read(self.progress.step, places)
        for step, result in enumerate(results, first):
            row = {
                "step": step,
                "epoch": math.ceil(step / self.per_epoch),
                "loss": result.loss.item(),
                "lr": result.lr,
                "grad_norm": result.grad_norm.item(),
            }
            self._history.add_step(row)
            taken = result.response is None or result.response.takes_step
            if taken and not math.isfinite(row["loss"]):
                return step
        now = time.perf_counter()
        rate = None
        if self._mark is not None:
            images = len(results) * self._recipe.batch_size
            rate = self._speed.add(images, now - self._mark)
        self._mark = now
        if step % self._recipe.log_every == 0 or ended:
            self._show(row, rate)
        if now - self._flushed >= FLUSH_SECONDS:
            self._history.flush()
            self._flushed = now
        return None

    def _show(self, row: dict, rate: float | None) -> None:
        values = {f"train/{name}": row[name] for name in ("loss", "lr", "grad_norm")}
        if rate is not None:
            values["train/images_per_second"] = rate
        recorder = self._trainer.recorder
        if recorder is not None and row["step"] % self._recorder_every == 0:
            values |= recorder.scalars()
        self._history.add_scalars(row["step"], values)
        self._tell("step", **row, images_per_second=rate, seconds=self.elapsed())

    def _validate(self, epoch: int) -> None:
        self._note_gpu_memory()
        metrics = self.evaluate("validation").metrics
        self.progress.validation = {f"val_{name}": value for name, value in metrics.items()}
        self._history.add_evaluation(self.progress.step, epoch, self.progress.validation)
        # After 1, 2, 4, ... epochs: pictures change less and less.
        if epoch & (epoch - 1) == 0 or self.progress.step == self.total:
            picture = self.picture()
            if picture is not None:
                self._history.add_picture(self.progress.step, picture)
        self._tell("evaluation", step=self.progress.step, epoch=epoch, **self.progress.validation)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def _note_gpu_memory(self) -> None:
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device)
            self.progress.peak_memory = max(self.progress.peak_memory, peak)

    def save(self) -> None:
        """Save all that the next step depends on, after what it has recorded."""
        self._note_gpu_memory()
        self.progress.seconds = self.elapsed()
        steps, evaluations = self._history.sync()
        self.progress.history_bytes, self.progress.history_checksum = steps
        self.progress.eval_bytes, self.progress.eval_checksum = evaluations
        responder = self._trainer.responder
        if responder is not None:
            self.progress.responses = responder.state()
        self._save_to(self._directory / STATE_FILE)
        if responder is not None:
            responder.delete_unused()

    def _save_to(self, path: Path) -> None:
        recorder = self._trainer.recorder
        save_state(
            path,
            self.progress,
            self._trainer.model,
            self._trainer.optimizer,
            ema=self._trainer.average_model,
            scaler=self._trainer.scaler,
            measured={"rates": self._speed.rates, **(recorder.state() if recorder else {})},
        )

    def _tell(self, event: str, **values) -> None:
        if self._report is not None:
            totals = {"steps": self.total, "epochs": math.ceil(self.total / self.per_epoch)}
            self._report({"event": event, **totals, **values})
