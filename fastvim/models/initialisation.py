"""Initial values that depend only on the seed and a parameter's name and shape.

Two variants of a model therefore start from the same values wherever they have a parameter in
common, whatever else they have.
"""

import hashlib
import math

import torch
from torch import Tensor, nn

from fastvim.models.config import ModelConfig


def initialise(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Fill the parameters of a `VisionMamba` in place.

    As published: A_log = log(1..N), D = 1, delta's bias the inverse softplus of log-uniform
    [dt_min, dt_max], out_proj kaiming-uniform over sqrt(depth), position embedding and head
    truncated normal 0.02, biases 0. The rest are the usual uniform(+-1/sqrt(fan_in)).
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue  # fixed positions
            place = getattr(model, "class_token_place", None)
            if name == "pos_embed" and place is not None:
                # The grid's rows are those of a model that has no class token.
                _, rows, width = parameter.shape
                grid = _drawn("pos_embed", (1, rows - 1, width), config, seed)
                own = _drawn("cls_token.pos_embed", (1, 1, width), config, seed)
                values = torch.cat([grid[:, :place], own, grid[:, place:]], dim=1)
            else:
                values = _drawn(name, tuple(parameter.shape), config, seed)
            parameter.copy_(values)


def _drawn(name: str, shape: tuple[int, ...], config: ModelConfig, seed: int) -> Tensor:
    digest = hashlib.sha256(f"{seed}:{name}:{shape}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    values = torch.empty(shape, dtype=torch.float32)
    _draw(values, name, config, generator)
    return values


def _draw(values: Tensor, name: str, config: ModelConfig, generator: torch.Generator) -> None:
    kind = name.rsplit(".", 1)[-1]
    if kind == "A_log":
        values.copy_(torch.arange(1, config.d_state + 1).log().expand_as(values))
    elif kind == "D" or (kind == "weight" and "norm" in name):
        values.fill_(1)
    elif kind == "dt_bias":
        low, high = math.log(config.dt_min), math.log(config.dt_max)
        delta = torch.exp(torch.rand(values.shape, generator=generator) * (high - low) + low)
        values.copy_(delta + torch.log(-torch.expm1(-delta)))
    elif kind in ("pos_embed", "cls_token", "mask_token") or name == "head.weight":
        nn.init.trunc_normal_(values, std=0.02, generator=generator)
    elif kind in ("bias", "conv_bias", "pool_query"):
        values.zero_()
    else:
        # The leading 2 of stacked directions, and the channels of a depthwise convolution,
        # are not inputs of one output.
        fan_in = values[0].numel() if kind == "weight" else values.shape[-1]
        bound = 1 / math.sqrt(fan_in)
        if name.endswith("out_proj.weight"):
            bound /= math.sqrt(config.depth)
        values.uniform_(-bound, bound, generator=generator)
