"""The recorder: what happens inside a model in every step, kept for when the loss spikes.

Magnitudes stay on the device until the loop reads its losses, so nothing waits for a GPU. The
last steps are kept in a ring; when the detector finds an episode, `episodes/<step>.json` says
which block and quantity left its past first.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvim.files import write_atomic
from fastvim.models.backbone import Block
from fastvim.models.mixer import Mixer
from fastvim.stability.attribution import (
    LEAD,
    Quantity,
    departures,
    first_nonfinite,
    summarise,
)
from fastvim.stability.detector import SpikeDetector
from fastvim.stability.episodes import NONFINITE, Event

FOLDER = "episodes"
RING = 64
# No kernel keeps delta and the states, so they are computed again, for the first image of a
# forward pass: delta at about so many steps of the scan, evenly spaced...
REPEATED_IMAGES = 1
DELTA_STEPS = 8
# ... and the state for so many channels, evenly spaced, after the last step of each direction.
STATE_CHANNELS = 32
# The update-to-weight ratio is taken over the first entries of every parameter.
SAMPLE = 1024
# In the order in which a block computes them.
TENSORS = (
    "delta",
    "state",
    "scan output before the norm",
    "scan output after the norm and the gate",
    "residual",
)
STATISTICS = ("rms", "maximum")
WHOLE = (
    Quantity("loss"),
    Quantity("gradient norm"),
    Quantity("update-to-weight ratio"),
)
# Already in history.csv and TensorBoard.
LOGGED = ("loss", "gradient norm")
# Rows of an episode's file that are spelt out.
RANKED = 20


class Magnitudes(NamedTuple):
    """The least and the greatest number of a tensor, its norm (all scalars), and its size."""

    low: Tensor
    high: Tensor
    norm: Tensor
    size: int


def magnitudes(tensor: Tensor) -> Magnitudes:
    """Two passes over the tensor without a temporary, neither of which loses a NaN."""
    # PyTorch's infinity norm takes twenty times as long on a CPU.
    kind = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    norm = torch.linalg.vector_norm(tensor, dtype=kind)
    return Magnitudes(*torch.aminmax(tensor), norm, tensor.numel())


class Recorder:
    """Watches the blocks of a `VisionMamba` (of another model, the whole-model numbers alone).

    A step is `before_step`, any number of forward passes under `watching`, then `after_step`;
    `read` takes the steps since the last call to the host, in order.
    """

    def __init__(self, model: nn.Module, directory: Path) -> None:
        self._model, self._directory = model, directory / FOLDER
        # Views: they see every later value, and a step takes them in one operation.
        self._heads = [p.detach().view(-1)[:SAMPLE] for p in model.parameters() if p.requires_grad]
        named = [(name, module) for name, module in model.named_modules()]
        blocks = [(name, module) for name, module in named if isinstance(module, Block)]
        self.modules = [name for name, _ in blocks]
        self.quantities = [
            Quantity(tensor, statistic, block)
            for block in range(len(blocks))
            for tensor in TENSORS
            for statistic in STATISTICS
        ] + list(WHOLE)
        self._watching = False
        self._passes: list[Tensor] = []
        # Of a forward pass: what a block scanned, and its other TENSORS or their magnitudes.
        self._scans: list[tuple[Mixer, Tensor]] = []
        self._found: list[Tensor | Magnitudes] = []
        self._sample: Tensor | None = None
        self._pending: list[Tensor] = []
        self._samples: list[Tensor] = []
        self._steps: list[int] = []
        self._values = np.empty((0, len(self.quantities)), dtype=np.float32)
        self._detector = SpikeDetector()
        for _, block in blocks:
            block.mixer.observer = self._observe_mixer
            block.register_forward_hook(self._observe_block)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """A context for a forward pass of training; what runs elsewhere is not recorded."""
        self._watching, self._scans, self._found = True, [], []
        try:
            yield
        finally:
            self._watching = False
        if self._scans:
            self._passes.append(self.measured())

    def before_step(self) -> None:
        """Call before anything of a step."""
        self._passes = []
        self._sample = torch.cat(self._heads)

    def after_step(self, loss: Tensor, grad_norm: Tensor) -> None:
        """Call when the optimiser has stepped. Nothing is read from the device."""
        change = torch.cat(self._heads) - self._sample
        ratio = torch.linalg.vector_norm(change) / torch.linalg.vector_norm(self._sample)
        whole = torch.stack([loss, grad_norm, ratio]).float()
        if self._passes:
            # (passes, tensors, 2): equal passes, so the mean square is the mean of theirs.
            passes = torch.stack(self._passes)
            rms = passes[:, :, 0].double().square().mean(0).sqrt().float()
            both = torch.stack([rms, passes[:, :, 1].amax(0)], dim=1)
            whole = torch.cat([both.flatten(), whole])
        self._pending.append(whole)

    def read(self, last_step: int, images: Sequence[Tensor]) -> None:
        """Take the pending steps, the last of which is `last_step` (from 1), to the host.

        `images` are the places in the training split of each step's batch. Writes the file of an
        episode that began, and completes that of one that ended.
        """
        rows = torch.stack(self._pending).cpu().numpy()
        first = last_step - len(rows) + 1
        self._pending = []
        for step, row, places in zip(range(first, last_step + 1), rows, images, strict=True):
            self._steps = [*self._steps, step][-RING:]
            self._values = np.concatenate([self._values, row[None]])[-RING:]
            self._samples = [*self._samples, places][-RING:]
            for event in self._detector.update(step, float(row[-len(WHOLE)])):
                self._write(event)

    def scalars(self) -> dict[str, float]:
        """The last step's values under TensorBoard's tags, one group a quantity."""
        if not self._steps:
            return {}
        pairs = zip(self.quantities, self._values[-1].tolist(), strict=True)
        return {_tag(quantity): value for quantity, value in pairs if quantity.name not in LOGGED}

    def finish(self) -> None:
        """The run is over: an episode that has not ended is closed as it stands."""
        for event in self._detector.finish():
            self._write(event)

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs, beside the losses."""
        if not self._steps:
            return {}
        return {
            "recorder_steps": torch.tensor(self._steps),
            "recorder_values": torch.from_numpy(self._values.copy()),
            "recorder_samples": torch.stack(self._samples),
        }

    def resume(self, state: dict[str, Tensor], losses: np.ndarray) -> None:
        """Go on from `state` and the (steps, losses) of the history, (n, 2)."""
        # The losses were single precision before they were written.
        self._detector.extend(losses[:, 0], losses[:, 1].astype(np.float32))
        known = state.get("recorder_values")
        # A state of a version that recorded other quantities: the ring fills again.
        if known is not None and known.shape[1] == len(self.quantities):
            self._steps = state["recorder_steps"].tolist()
            self._values = known.numpy()
            self._samples = list(state["recorder_samples"])

    def start_afresh(self) -> None:
        """Delete what an earlier, abandoned start of the run has written."""
        for stale in self._directory.glob("*.json"):
            stale.unlink()

    def _observe_mixer(self, mixer: Mixer, pooled: Tensor, scanned: Tensor, gated: Tensor) -> None:
        if self._watching:
            self._scans.append((mixer, pooled[:, :REPEATED_IMAGES].detach()))
            self._see(scanned)
            self._see(gated)

    def _observe_block(self, block: Block, inputs: tuple, output: Tensor) -> None:
        if self._watching:
            self._see(output)

    def _see(self, tensor: Tensor) -> None:
        # The backward pass keeps the tensor anyway, unless the block will be computed again.
        again = getattr(self._model, "grad_checkpointing", False)
        tensor = tensor.detach()
        self._found.append(magnitudes(tensor) if again else tensor)

    @torch.no_grad()
    def measured(self) -> Tensor:
        """The statistics of the forward pass, (blocks * tensors, 2)."""
        # All blocks at once: small operations between large ones find cold caches, and take many
        # times as long.
        scans, found, self._scans, self._found = self._scans, self._found, [], []
        parts = []
        for block, (mixer, u) in enumerate(scans):
            parts += [*_delta_and_state(mixer, u), *found[3 * block : 3 * block + 3]]
        parts = [magnitudes(part) if isinstance(part, Tensor) else part for part in parts]
        scalars = torch.stack([scalar for part in parts for scalar in part[:3]]).float()
        low, high, norms = scalars.view(-1, 3).unbind(1)
        sizes = torch.tensor([part.size for part in parts], dtype=torch.float32)
        rms = norms / sizes.sqrt().to(norms.device, non_blocking=True)
        largest = torch.maximum(high, -low)
        # The squares of float32 numbers overflow long before the numbers do.
        rms = torch.where(rms.isinf() & largest.isfinite(), largest, rms)
        return torch.stack([rms, largest], dim=1)

    def _write(self, event: Event) -> None:
        episode = event.episode
        path = self._directory / f"{int(episode.start_step)}.json"
        # What ended in NaN is described again, with the tensor that left the finite range.
        if event.what == "started" or episode.kind == NONFINITE:
            content = self._describe(int(episode.start_step))
        else:
            content = json.loads(path.read_text(encoding="utf-8"))
        content["episode"] = episode.to_dict()
        write_atomic(path, json.dumps(content, indent=1, allow_nan=False) + "\n")

    def _describe(self, start: int) -> dict:
        arguments = (self._steps, self._values, self.quantities, start)
        ranked = departures(*arguments)
        broken = first_nonfinite(*arguments)
        return {
            "summary": summarise(ranked, broken),
            "found_at_step": self._steps[-1],
            "first_nonfinite": None if broken is None else broken.to_dict(),
            "ranking": [departure.to_dict() for departure in ranked[:RANKED]],
            "modules": self.modules,
            "batches": {
                str(step): places.tolist()
                for step, places in zip(self._steps, self._samples, strict=True)
                if step >= start - LEAD
            },
            "steps": self._steps,
            "quantities": {
                str(quantity): [_plain(value) for value in column]
                for quantity, column in zip(self.quantities, self._values.T, strict=True)
            },
        }


def recorded_summary(directory: Path, start_step: int) -> str | None:
    """What the recorder says of the episode of the run in `directory` that began there, or None
    where nothing was recorded or nothing left its past."""
    try:
        text = (directory / FOLDER / f"{start_step}.json").read_text(encoding="utf-8")
        return json.loads(text)["summary"]
    except (OSError, KeyError, TypeError, ValueError):
        return None


def _tag(quantity: Quantity) -> str:
    """`recorder/scan_output_before_the_norm_rms/block03`: sorts by block."""
    name = f"{quantity.name} {quantity.statistic}".strip().replace(" ", "_").replace("-", "_")
    block = "" if quantity.block is None else f"/block{quantity.block:02d}"
    return f"recorder/{name}{block}"


def _plain(value: np.float32) -> float | str:
    """Six digits; JSON has no NaN and no infinity, so these are text."""
    return float(f"{value:.6g}") if np.isfinite(value) else str(value)


def _delta_and_state(mixer: Mixer, u: Tensor) -> tuple[Tensor, Tensor]:
    """Delta (2, b, s, D) and the last states (2, b, c, N) of the scans of u (2, b, S, D).

    The recurrence h_s = exp(delta_s A) h_{s-1} + delta_s B_s u_s has the closed form
    h_S = sum over s of exp(A (delta_{s+1} + ... + delta_S)) delta_s B_s u_s, which needs no loop
    over the steps. The reverse direction ends at step 0.
    """
    rank, states = mixer.dt_proj.shape[2], mixer.A_log.shape[2]
    with torch.autocast(u.device.type, enabled=False):
        x_proj = mixer.x_proj[:, : rank + states].to(u.dtype)
        projected = (u.flatten(1, 2) @ x_proj.transpose(1, 2)).unflatten(1, u.shape[1:3])
        steps = slice(None, None, max(1, u.shape[2] // DELTA_STEPS))
        channels = slice(None, None, max(1, u.shape[3] // STATE_CHANNELS))
        delta = _delta(mixer, projected[:, :, steps, :rank], slice(None))
        lengths = _delta(mixer, projected[..., :rank], channels).float()
        passed = lengths.cumsum(2)
        after = torch.stack([passed[0, :, -1:] - passed[0], passed[1] - lengths[1]])
        A = -torch.exp(mixer.A_log[:, None, None, channels])
        decay = torch.exp(after.clamp(min=0)[..., None] * A)
        entered = (lengths * u[..., channels])[..., None] * projected[..., None, rank:]
        return delta, (decay * entered).sum(2)


def _delta(mixer: Mixer, low_rank: Tensor, channels: slice) -> Tensor:
    """Delta (2, b, S, c) of some channels from its projection (2, b, S, rank)."""
    dt_proj = mixer.dt_proj[:, channels].to(low_rank.dtype).transpose(1, 2)
    dt_bias = mixer.dt_bias[:, None, channels].to(low_rank.dtype)
    delta = torch.baddbmm(dt_bias, low_rank.flatten(1, 2), dt_proj)
    return F.softplus(delta).unflatten(1, low_rank.shape[1:3])
