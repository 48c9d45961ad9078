"""Pretrained weights as the start of another run."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from fastvim.errors import UserError
from fastvim.models.backbone import VisionMamba
from fastvim.models.config import ModelConfig
from fastvim.tasks.probing import Probe

ENCODER = "encoder."


def load_pretrained(
    model: nn.Module, checkpoint: Path, pretraining: Mapping, interpolate: bool
) -> None:
    """Give `model` (of classification or a linear probe) the encoder's weights of `checkpoint`.

    `pretraining` is the run of the checkpoint: its `task` and `model` sections are read. The
    head stays as it is. Position embeddings of another grid are interpolated (bicubic) where
    `interpolate` says so. Raises UserError that names the file and what does not fit.
    """
    encoder = model.encoder if isinstance(model, Probe) else model
    try:
        state = safetensors.torch.load_file(checkpoint)
    except FileNotFoundError as error:
        raise UserError(f"no pretrained checkpoint at {checkpoint}") from error
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{checkpoint}: not a whole safetensors file ({error}); "
            "delete its folder to train it again"
        ) from error
    if pretraining["task"] == "masked-autoencoding":
        state = {
            name.removeprefix(ENCODER): value
            for name, value in state.items()
            if name.startswith(ENCODER)
        }
    head = _head_prefix(encoder)
    state = {name: value for name, value in state.items() if not name.startswith(head)}
    if isinstance(encoder, VisionMamba):
        _fit_positions(state, encoder, pretraining, interpolate, checkpoint)
    _load(encoder, state, head, checkpoint)


def _head_prefix(encoder: nn.Module) -> str:
    if isinstance(encoder, VisionMamba):
        return "head."
    return f"{encoder.pretrained_cfg['classifier']}."


def _fit_positions(
    state: dict[str, Tensor],
    encoder: VisionMamba,
    pretraining: Mapping,
    interpolate: bool,
    checkpoint: Path,
) -> None:
    found, wanted = state.get("pos_embed"), encoder.pos_embed
    if found is None or found.shape[1] == wanted.shape[1]:
        return
    config = ModelConfig(
        **{key: value for key, value in pretraining["model"].items() if key != "name"}
    )
    before, now = config.grid_size, encoder.config.grid_size
    if not interpolate:
        raise UserError(
            f"{checkpoint}: position embeddings of a {before[0]} x {before[1]} grid (image size "
            f"{config.image_size[0]}); this model has {now[0]} x {now[1]}. To interpolate them, "
            "set pretrained.interpolate_positions: true"
        )
    if encoder.cls_token is not None:
        raise UserError(
            f"{checkpoint}: positions with a class token are not interpolated; "
            "set model.class_token: none"
        )
    state["pos_embed"] = resample_abs_pos_embed(found, list(now), list(before), num_prefix_tokens=0)


def _load(encoder: nn.Module, state: Mapping[str, Tensor], head: str, checkpoint: Path) -> None:
    ours = encoder.state_dict()
    wanted = {name for name in ours if not name.startswith(head)}
    missing, left_over = sorted(wanted - set(state)), sorted(set(state) - wanted)
    wrong = [name for name in sorted(wanted & set(state)) if ours[name].shape != state[name].shape]
    if missing or left_over or wrong:
        problems = [f"it has no {name}" for name in missing[:2]]
        problems += [f"nothing takes its {name}" for name in left_over[:2]]
        problems += [
            f"its {name} is {tuple(state[name].shape)}, this model's {tuple(ours[name].shape)}"
            for name in wrong[:2]
        ]
        raise UserError(f"{checkpoint}: weights of another model: {'; '.join(problems)}")
    with torch.no_grad():
        for name in wanted:
            ours[name].copy_(state[name])
