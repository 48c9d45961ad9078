"""The state of an unfinished run: one safetensors file, replaced whole, never a pickle.

Tensors: `model.<name>`, `ema.<name>`, `optimizer.<parameter>.<name>`, `group.<group>.<name>` and
`measured.<name>`. Everything else is JSON in the header, with a checksum of the tensors.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fastvim.errors import UserError
from fastvim.files import write_atomic
from fastvim.training.recipe import WITHOUT_EFFECT

STATE_FILE = "resume.safetensors"
WEIGHTS_FILE = "checkpoint.safetensors"


class UnreadableState(Exception):
    """A saved state that is truncated, damaged or of another kind."""


@dataclass
class Progress:
    """How far a run is; what the loop needs besides weights and optimiser."""

    settings: str  # Digest of what decides the run: a state of another run is refused.
    step: int = 0  # Optimiser steps done.
    seconds: float = 0.0
    history_bytes: int = 0  # Lengths of history.csv and eval.csv at this step.
    eval_bytes: int = 0
    history_checksum: int | None = None  # CRC-32 of these bytes.
    eval_checksum: int | None = None
    peak_memory: int = 0  # Bytes.
    gflops: float | None = None
    validation: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    responses: dict = field(default_factory=dict)  # `Responder.state`, where the run has one.


def settings_digest(settings: Mapping) -> str:
    """Of all that decides the result of a run, and of the run it starts from (hex, 64 digits)."""
    decisive = _decisive(settings)
    if "pretrained" in decisive:
        decisive["pretrained"] = _decisive(decisive["pretrained"])
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _decisive(settings: Mapping) -> dict:
    kept = dict(settings)
    for key in WITHOUT_EFFECT:
        section, _, name = key.partition(".")
        if section in kept:  # A caller of train_run may say less of a pretraining.
            kept[section] = {k: value for k, value in kept[section].items() if k != name}
    return kept


def weights_bytes(model: nn.Module) -> bytes:
    """Parameters and buffers of `model` as a safetensors file."""
    return safetensors.torch.save(_stored(model.state_dict()))


def load_weights(path: Path, model: nn.Module) -> None:
    """Load a file of `weights_bytes` into `model`. UserError names the file and what is wrong."""
    try:
        state = safetensors.torch.load_file(path)
        model.load_state_dict(state)
    except FileNotFoundError as error:
        raise UserError(f"no checkpoint at {path}") from error
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from error
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = " ".join(lines[1:3]) or lines[0]
        raise UserError(f"{path}: weights of another model: {reason[:400]}") from error


def save_state(
    path: Path,
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    ema: nn.Module | None,
    scaler: torch.amp.GradScaler,
    measured: Mapping[str, Tensor],
) -> None:
    """Write everything that the next step depends on. UserError where it cannot be written."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if ema is not None:
        tensors |= {f"ema.{name}": tensor for name, tensor in ema.state_dict().items()}
    tensors |= {f"measured.{name}": tensor for name, tensor in measured.items()}
    saved = optimizer.state_dict()
    scalars: dict[str, dict] = {"optimizer": {}, "group": {}}
    sections = {"optimizer": saved["state"], "group": dict(enumerate(saved["param_groups"]))}
    for section, entries in sections.items():
        for index, values in entries.items():
            kept = {}
            for name, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"{section}.{index}.{name}"] = value
                else:
                    kept[name] = value
            scalars[section][str(index)] = kept
    stored = _stored(tensors)
    header = {
        "progress": json.dumps(vars(progress)),
        "scalars": json.dumps(scalars),
        "scaler": json.dumps(scaler.state_dict()),
        "checksum": _checksum(stored),
    }
    write_atomic(path, safetensors.torch.save(stored, metadata=header))


def load_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    ema: nn.Module | None,
    scaler: torch.amp.GradScaler,
    settings: str,
) -> tuple[Progress, dict[str, Tensor]]:
    """Restore what `save_state` wrote; returns the progress and the measured tensors.

    Raises, before anything is changed, UnreadableState where the file is not whole and UserError
    where it is of a run with other `settings`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header["checksum"] != _checksum(tensors):
            raise UnreadableState("its checksum does not match")
        progress = Progress(**json.loads(header["progress"]))
        scalars = json.loads(header["scalars"])
        scaler_state = json.loads(header["scaler"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UnreadableState(str(error) or type(error).__name__) from error

    if progress.settings != settings:
        raise UserError(
            f"{path} is of a run with other settings: go on with those, which config.json beside "
            "it says, or give this run its own folder"
        )

    sections: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        section, _, rest = name.partition(".")
        sections.setdefault(section, {})[rest] = tensor
    for section, entries in scalars.items():
        for name, tensor in sections.get(section, {}).items():
            index, _, key = name.partition(".")
            entries.setdefault(index, {})[key] = tensor
    model.load_state_dict(sections["model"])
    if ema is not None:
        ema.load_state_dict(sections["ema"])
    groups = scalars["group"]
    optimizer.load_state_dict(
        {
            "state": {int(index): entry for index, entry in scalars["optimizer"].items()},
            "param_groups": [groups[str(index)] for index in range(len(groups))],
        }
    )
    scaler.load_state_dict(scaler_state)
    return progress, sections.get("measured", {})


def _stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy(), value)
    return f"{value:08x}"
