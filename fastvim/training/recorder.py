"""The recorder: what happens inside a model in every step, kept for when the loss spikes.

Magnitudes stay on the device until the loop reads its losses, so nothing waits for a GPU. The
last steps are kept in a ring; when the detector finds an episode, `episodes/<step>.json` says
which block and quantity left its past first.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastvim.files import write_atomic
from fastvim.kernels.magnitudes import magnitudes
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
from fastvim.training.recorded import FOLDER
from fastvim.training.scan_again import deltas_and_states

RING = 64
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


class Measured(NamedTuple):
    """What `magnitudes` says of a tensor that is not kept, (3,), and the tensor's size."""

    values: Tensor
    size: int


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
        self._passes: list[Tensor] = []
        # Of a forward pass: each block's pooled steps, and its other TENSORS or what they measured.
        self._scans: list[tuple[Mixer, Tensor]] = []
        self._found: list[Tensor | Measured] = []
        self._sample: Tensor | None = None
        self._pending: list[Tensor] = []
        self._samples: list[Tensor] = []
        self._steps: list[int] = []
        self._values = np.empty((0, len(self.quantities)), dtype=np.float32)
        self._detector = SpikeDetector()
        self._blocks = [block for _, block in blocks]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """A context for a forward pass of training; what runs elsewhere is not recorded."""
        self._scans, self._found = [], []
        self._observe(self._observe_mixer, self._see)
        try:
            yield
        finally:
            self._observe(None, None)
        if self._scans:
            self._passes.append(self.measured())

    def before_step(self) -> None:
        """Call before anything of a step."""
        self._sample = torch.cat(self._heads)

    def after_step(self, loss: Tensor, grad_norm: Tensor) -> None:
        """Call when the optimiser has stepped. Nothing is read from the device."""
        # Nothing stays from step to step, which would count in the peak memory of the next.
        before, self._sample = self._sample, None
        measured, self._passes = self._passes, []
        change = torch.cat(self._heads) - before
        ratio = torch.linalg.vector_norm(change) / torch.linalg.vector_norm(before)
        whole = torch.stack([loss, grad_norm, ratio]).float()
        if measured:
            # (passes, tensors, 2): equal passes, so the mean square is the mean of theirs.
            passes = torch.stack(measured)
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

    def _observe(self, of_mixer: Callable | None, of_block: Callable | None) -> None:
        for block in self._blocks:
            block.mixer.observer, block.observer = of_mixer, of_block

    def _observe_mixer(self, mixer: Mixer, pooled: Tensor, scanned: Tensor, gated: Tensor) -> None:
        self._scans.append((mixer, pooled))
        self._see(scanned)
        self._see(gated)

    def _see(self, tensor: Tensor) -> None:
        # The backward pass keeps the tensor anyway, unless the block will be computed again.
        again = getattr(self._model, "grad_checkpointing", False)
        self._found.append(Measured(magnitudes([tensor])[0], tensor.numel()) if again else tensor)

    @torch.no_grad()
    def measured(self) -> Tensor:
        """The statistics of the forward pass, (blocks * tensors, 2)."""
        # All blocks at once: small operations between large ones find cold caches, and take many
        # times as long.
        scans, found, self._scans, self._found = self._scans, self._found, [], []
        parts = []
        # No kernel keeps delta and the states: those of the first image are computed again.
        first = [(mixer, pooled[:, 0]) for mixer, pooled in scans]
        for block, repeated in enumerate(deltas_and_states(first)):
            parts += [*repeated, *found[3 * block : 3 * block + 3]]
        kept = [part for part in parts if isinstance(part, Tensor)]
        rows = iter(magnitudes(kept))
        rows = [next(rows) if isinstance(part, Tensor) else part.values for part in parts]
        low, high, norms = torch.stack(rows).unbind(1)
        counts = [part.numel() if isinstance(part, Tensor) else part.size for part in parts]
        sizes = torch.tensor(counts, dtype=torch.float32)
        rms = norms / sizes.sqrt().to(norms.device, non_blocking=True)
        largest = torch.maximum(high, -low)
        # The squares of float32 numbers overflow long before the numbers do.
        rms = torch.where(rms.isinf() & largest.isfinite(), largest, rms)
        return torch.stack([rms, largest], dim=1)

    def _write(self, event: Event) -> None:
        episode = event.episode
        path = self._directory / f"{int(episode.start_step)}.json"
        # What ended in NaN is described again, with the tensor that left the finite range.
        new = event.what == "started" or episode.kind == NONFINITE
        content = (None if new else _read(path)) or self._describe(int(episode.start_step))
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


def _read(path: Path) -> dict | None:
    """What was written when an episode began; None where it is lost or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _tag(quantity: Quantity) -> str:
    """`recorder/scan_output_before_the_norm_rms/block03`: sorts by block."""
    name = f"{quantity.name} {quantity.statistic}".strip().replace(" ", "_").replace("-", "_")
    block = "" if quantity.block is None else f"/block{quantity.block:02d}"
    return f"recorder/{name}{block}"


def _plain(value: np.float32) -> float | str:
    """Six digits; JSON has no NaN and no infinity, so these are text."""
    return float(f"{value:.6g}") if np.isfinite(value) else str(value)
