"""A model with all that changes it: one optimiser step on a global batch."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from fastvim.training.devices import autocast
from fastvim.training.drop_path import draw_by_image
from fastvim.training.optimizer import Schedule, build_optimizer
from fastvim.training.recipe import Recipe
from fastvim.training.recorder import Recorder
from fastvim.training.responses import Responder, Response
from fastvim.training.seeds import derive_seed, seed_generators


@dataclass(frozen=True)
class StepResult:
    """Loss (mean over the global batch) and gradient norm before clipping, on the device."""

    loss: Tensor
    grad_norm: Tensor
    lr: float
    response: Response | None = None  # To a spike, where one was given.


class Trainer:
    """Model, optimiser, schedule, weight average and gradient scaler of one run."""

    def __init__(
        self,
        task,
        model: nn.Module,
        recipe: Recipe,
        *,
        steps_per_epoch: int,
        seed: int,
        device: torch.device,
        precision: str,
        recorder: Callable[[nn.Module], Recorder] | None = None,
        responder: Responder | None = None,
    ) -> None:
        """`recorder` makes what watches the model, where anything does."""
        self.model = model.to(device).train()
        self.optimizer = build_optimizer(self.model, recipe)
        self.schedule = Schedule(self.optimizer, recipe, steps_per_epoch)
        self.average = ModelEmaV3(self.model, recipe.ema_decay) if recipe.ema_decay else None
        # float16 gradients underflow unless the loss is scaled up.
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
        self._task, self._recipe = task, recipe
        self._seed, self._device, self._precision = seed, device, precision
        self._draws = draw_by_image(self.model, seed)
        self._parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.responder = responder
        # After the average was copied, which nobody watches.
        self.recorder = None if recorder is None else recorder(self.model)

    @property
    def evaluated_model(self) -> nn.Module:
        """What evaluations see and the checkpoint holds: the average where there is one."""
        return self.model if self.average is None else self.average.module

    @property
    def average_model(self) -> nn.Module | None:
        """The averaged copy of the model."""
        return None if self.average is None else self.average.module

    def step(self, number: int, images: Tensor, targets: Tensor) -> StepResult:
        """Step `number` (from 0) on a global batch: images (B, C, H, W), targets (B, ...)."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.recorder is not None:
            self.recorder.before_step()
        loss = self.accumulate(number, images, targets)
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        response = self._judge(number, loss, norm)
        limits = [self._recipe.clip_grad, response.max_norm if response else None]
        limits = [limit for limit in limits if limit is not None]
        if limits:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, min(limits), norm)
        lr = self.schedule.set(number, self.responder.lr_factor if self.responder else 1.0)
        if response is None or response.takes_step:
            self.scaler.step(self.optimizer)
            if self.average is not None:
                self.average.update(self.model)
        self.scaler.update()
        if self.recorder is not None:
            self.recorder.after_step(loss, norm)
        return StepResult(loss, norm, lr, response)

    def _judge(self, number: int, loss: Tensor, norm: Tensor) -> Response | None:
        if self.responder is None:
            return None
        # The scaler leaves out a step whose scaled gradient overflowed, and scales the next less.
        if self.scaler.is_enabled() and not norm.isfinite() and loss.isfinite():
            return None
        return self.responder.judge(number + 1, loss.item(), norm.item())

    def accumulate(self, number: int, images: Tensor, targets: Tensor) -> Tensor:
        """Add the gradients of the mean loss over the global batch, micro-batch by micro-batch."""
        # What a model draws besides stochastic depth depends on the step and not on history.
        seed_generators(derive_seed(self._seed, "step", number), self._device)
        count = len(images)
        self._draws.draw(number, count, self._device)
        total = torch.zeros((), device=self._device)
        for start in range(0, count, self._recipe.forward_size):
            stop = min(start + self._recipe.forward_size, count)
            self._draws.select(start, stop)
            watching = nullcontext() if self.recorder is None else self.recorder.watching()
            with watching, autocast(self._precision, self._device):
                loss = self._task.loss(self.model, images[start:stop], targets[start:stop])
            loss = loss * ((stop - start) / count)
            self.scaler.scale(loss).backward()
            total = total + loss.detach()
        self._draws.clear()
        return total
