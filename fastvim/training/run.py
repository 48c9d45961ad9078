"""One run from its settings to its result."""

import errno
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from fastvim import tasks
from fastvim.data import DataConfig, load
from fastvim.errors import UserError
from fastvim.files import UNWRITABLE, unwritable, write_atomic
from fastvim.models.config import MaskingConfig
from fastvim.stability.detector import detect
from fastvim.stability.episodes import NONFINITE
from fastvim.tasks.transfer import load_pretrained
from fastvim.training import costs, devices
from fastvim.training.evaluation import CONFIG_FILE
from fastvim.training.history import HISTORY_FILE, History, Position, UnreadableHistory
from fastvim.training.loop import Interrupted, Loop
from fastvim.training.recipe import Recipe
from fastvim.training.recorder import Recorder
from fastvim.training.responses import Responder, delete_kept
from fastvim.training.state import (
    STATE_FILE,
    WEIGHTS_FILE,
    Progress,
    UnreadableState,
    load_state,
    settings_digest,
    weights_bytes,
)
from fastvim.training.trainer import Trainer

__all__ = ["Interrupted", "train_run"]

RESULT_FILE = "result.json"
ENVIRONMENT_FILE = "environment.json"
PREDICTIONS_FILE = "predictions.safetensors"
PICTURE_FILE = "picture.png"
# The folder's own name may be at fault, too.
_UNWRITABLE = (*UNWRITABLE, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)


def train_run(
    *,
    task: str,
    data: DataConfig,
    model: Mapping,
    training: Recipe,
    seed: int,
    directory: str | Path,
    masking: MaskingConfig | None = None,
    pretrained: Mapping | None = None,
    pretrained_in: str | Path | None = None,
    report: Callable[[dict], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict:
    """Train, evaluate and record one run in `directory`; returns what result.json holds.

    `model` is the model section of a run: `name` and the settings of that preset, or
    `timm/<name>`; `masking` is for masked autoencoding. With `pretrained`, that section of a run,
    the encoder starts from the checkpoint in the directory `pretrained_in`.

    A run that was stopped or killed goes on from its last saved state and ends with the same
    metrics and history, to the bit on a CPU with the same number of threads, whatever has become
    of the settings WITHOUT_EFFECT; a finished one returns its result at once. A loss that is no
    number ends the run with the status `diverged`.

    `report` receives dictionaries: `event` is `start`, `step`, `evaluation` or `note` (with
    `message`); `should_stop` is asked after every step. Raises Interrupted when it says yes, and
    UserError for settings that do not fit together and for a directory that cannot be written.
    """
    directory = Path(directory)
    settings = {
        "task": task,
        "data": data.model_dump(mode="json"),
        "model": dict(model),
        "training": training.model_dump(mode="json"),
        "seed": seed,
    }
    if masking is not None:
        settings["masking"] = masking.model_dump(mode="json")
    if pretrained is not None:
        settings["pretrained"] = dict(pretrained)
    digest = settings_digest(settings)
    finished = _finished(directory, digest)
    if finished is not None:
        return finished
    try:
        directory.mkdir(parents=True, exist_ok=True)
        start = None if pretrained_in is None else Path(pretrained_in) / WEIGHTS_FILE
        run = _Run(settings, digest, data, training, directory, start, report, should_stop)
        return run.complete()
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise UserError(unwritable(error, directory)) from error


class _Run:
    """The stages of `train_run`."""

    def __init__(
        self,
        settings: dict,
        digest: str,
        data: DataConfig,
        recipe: Recipe,
        directory: Path,
        start: Path | None,
        report: Callable[[dict], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self.settings, self.digest, self.directory = settings, digest, directory
        self.start = start
        self.recipe, self.report, self.should_stop = recipe, report, should_stop
        self.device = devices.choose_device()
        self.precision = devices.choose_precision(recipe, self.device)
        self.backend = devices.kernel_backend(
            self.device, self.precision, settings["model"]["name"]
        )
        masking = settings.get("masking")
        self.task = tasks.create(
            settings["task"], recipe, None if masking is None else MaskingConfig(**masking)
        )
        self.dataset = load(data)
        self.per_epoch = self.dataset.batches_per_epoch(recipe.batch_size)

    def complete(self) -> dict:
        """All stages."""
        trainer, progress, speed, history = self._start_or_resume()
        loop = Loop(
            task=self.task,
            dataset=self.dataset,
            trainer=trainer,
            recipe=self.recipe,
            seed=self.settings["seed"],
            directory=self.directory,
            device=self.device,
            precision=self.precision,
            progress=progress,
            history=history,
            speed=speed,
            report=self.report,
            should_stop=self.should_stop,
        )
        try:
            write_atomic(
                self.directory / ENVIRONMENT_FILE,
                _json(devices.describe_environment(self.device, self.precision)),
            )
            config = self.directory / CONFIG_FILE
            if not config.exists():
                write_atomic(config, _json(self.settings))
            self._tell({"event": "start", "step": progress.step, "steps": loop.total})
            diverged = loop.run()
        finally:
            history.close()
        return self._finish(loop, trainer, speed, diverged)

    def _trainer(self) -> Trainer:
        seed = self.settings["seed"]
        model = self.task.build(self.settings["model"], self.dataset, seed)
        pretrained = self.settings.get("pretrained")
        if pretrained is not None and self.start is not None:
            load_pretrained(model, self.start, pretrained, pretrained["interpolate_positions"])
        return Trainer(
            self.task,
            model,
            self.recipe,
            steps_per_epoch=self.per_epoch,
            seed=seed,
            device=self.device,
            precision=self.precision,
            recorder=partial(Recorder, directory=self.directory) if self.recipe.recorder else None,
            responder=Responder(self.recipe, self.directory) if self.recipe.response else None,
        )

    def _start_or_resume(self) -> tuple[Trainer, Progress, costs.Speed, History]:
        trainer, notes = self._trainer(), []
        state = self.directory / STATE_FILE
        if state.exists():
            try:
                progress, measured = load_state(
                    state,
                    trainer.model,
                    trainer.optimizer,
                    ema=trainer.average_model,
                    scaler=trainer.scaler,
                    settings=self.digest,
                )
                history = self._history(progress)
                if trainer.recorder is not None:
                    trainer.recorder.resume(measured, _losses(self.directory / HISTORY_FILE))
                if trainer.responder is not None:
                    trainer.responder.resume(progress.responses)
                return trainer, progress, costs.Speed(measured["rates"]), history
            except (UnreadableState, UnreadableHistory) as problem:
                notes.append(f"{state} cannot be used ({problem}): the run started afresh")
                self._tell({"event": "note", "message": notes[0]})
                # It may hold half of the damaged state.
                trainer = self._trainer()
        if trainer.recorder is not None:
            trainer.recorder.start_afresh()
        if trainer.responder is not None:
            trainer.responder.start_afresh()
        progress = Progress(self.digest, notes=notes)
        side = self.dataset.config.image_size
        image = torch.zeros(1, self.dataset.in_channels, side, side, device=self.device)
        progress.gflops = costs.count_gflops(trainer.model, image)
        return trainer, progress, costs.Speed(), self._history(progress)

    def _history(self, progress: Progress) -> History:
        return History(
            self.directory,
            tuple(f"val_{name}" for name in self.task.metrics),
            step=progress.step,
            steps=Position(progress.history_bytes, progress.history_checksum),
            evaluations=Position(progress.eval_bytes, progress.eval_checksum),
        )

    def _finish(
        self, loop: Loop, trainer: Trainer, speed: costs.Speed, diverged: int | None
    ) -> dict:
        progress = loop.progress
        if trainer.recorder is not None:
            trainer.recorder.finish()
        metrics = {}
        if diverged is None:
            write_atomic(self.directory / WEIGHTS_FILE, weights_bytes(trainer.evaluated_model))
            evaluation = loop.evaluate("test")
            if evaluation.predictions:
                write_atomic(
                    self.directory / PREDICTIONS_FILE,
                    safetensors.torch.save(evaluation.predictions),
                )
            picture = loop.picture()
            if picture is not None:
                write_atomic(self.directory / PICTURE_FILE, picture)
            metrics = {**evaluation.metrics, **progress.validation, **loop.final()}
        result = {
            "status": "done" if diverged is None else "diverged",
            "metrics": metrics,
            "cost": {
                "parameters": costs.count_parameters(trainer.model),
                "gflops": progress.gflops,
                "train_images_per_second": speed.median(),
                "peak_memory_mb": progress.peak_memory / 1e6,
                "seconds": loop.elapsed(),
            },
            "spikes": _count_spikes(self.directory / HISTORY_FILE),
            "diverged": diverged is not None,
            "diverged_step": diverged,
            "steps": progress.step,
            "backend": self.backend,
            "device": str(self.device),
            "precision": self.precision,
            "data_fingerprint": self.dataset.fingerprint,
            "notes": progress.notes,
            "settings": self.digest,
        }
        write_atomic(self.directory / RESULT_FILE, _json(result))
        _delete_states(self.directory)
        return result

    def _tell(self, event: dict) -> None:
        if self.report is not None:
            self.report(event)


def _finished(directory: Path, digest: str) -> dict | None:
    """The result of a run with these settings that ended earlier, or None."""
    try:
        result = json.loads((directory / RESULT_FILE).read_text())
        if result["settings"] != digest:
            raise UserError(
                f"{directory} holds the result of a run with other settings, which its "
                f"{CONFIG_FILE} says; give this run its own folder"
            )
    except (OSError, KeyError, TypeError, json.JSONDecodeError):
        return None  # Absent, or damaged: the run is done again.
    _delete_states(directory)
    return result


def _delete_states(directory: Path) -> None:
    (directory / STATE_FILE).unlink(missing_ok=True)
    delete_kept(directory)


def _count_spikes(history: Path) -> int:
    """Excursions of the training loss; NaN and infinity are a divergence and not counted here."""
    rows = _losses(history)
    return sum(episode.kind != NONFINITE for episode in detect(rows[:, 0], rows[:, 1]))


def _losses(history: Path) -> np.ndarray:
    """Step and loss of every row of history.csv, (steps, 2)."""
    return np.loadtxt(history, delimiter=",", skiprows=1, usecols=(0, 2), ndmin=2)


def _json(value: dict) -> str:
    return json.dumps(value, indent=2) + "\n"
