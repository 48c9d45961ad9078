"""Weights in the published naming: from them a model, from a model them.

The published constructor arguments that change the function are read; those that only change
how it is computed are accepted; any other is an error, since guessing would compute something
else in silence.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fastvim.errors import UserError, nearest
from fastvim.models.backbone import VisionMamba
from fastvim.models.config import IMAGE_AXES, MaskingConfig, ModelConfig
from fastvim.models.masked_autoencoder import MaskedAutoencoder
from fastvim.models.presets import checked_config

_CLASSIFIERS = ("fastvim", "vim")
_AUTOENCODERS = ("mae", "vim-mae")  # Encoders as FastVim and as Vim.

# Arguments without influence on the function in exact arithmetic, or fixed by the weights.
_WITHOUT_INFLUENCE = {
    "model",
    "fused_add_norm",
    "residual_in_fp32",
    "rms_norm",
    "drop_path_rate",
    "drop_rate",
    "num_classes",
    "embed_dim",
    "depth",
    "channels",
    "ssm_cfg",
    "device",
    "dtype",
    "bimamba_type",
    "if_bimamba",
    "if_abs_pos_embed",
    "init_cfg",
    "mask_ratio",
    "norm_pix_loss",
    "decoder_embed_dim",
    "decoder_depth",
}
_DEFAULTS = {
    "img_size": 224,
    "patch_size": 16,
    "stride": None,
    "rotate_every_block": True,
    "scanpath_type": "rowwise",
    "collapse_method": "mean",
    "use_norm_after_ssm": True,
    "scaling_factor": 1.0,
    "if_divide_out": True,
    "if_cls_token": False,
    "use_middle_cls_token": False,
    "norm_epsilon": 1e-5,
    "final_pool_type": "mean",
}

# Our parameter of a block -> its published names, the stacked directions forward and reverse.
_STACKED = {
    "conv_weight": ("conv1d.weight", "conv1d_b.weight"),
    "conv_bias": ("conv1d.bias", "conv1d_b.bias"),
    "x_proj": ("x_proj.weight", "x_proj_b.weight"),
    "dt_proj": ("dt_proj.weight", "dt_proj_b.weight"),
    "dt_bias": ("dt_proj.bias", "dt_proj_b.bias"),
    "A_log": ("A_log", "A_b_log"),
    "D": ("D", "D_b"),
}
_SINGLE = {
    "in_proj.weight": "in_proj.weight",
    "out_proj.weight": "out_proj.weight",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_STEM: dict[str, str] = {
    "patch_embed.weight": "patch_embed.proj.weight",
    "patch_embed.bias": "patch_embed.proj.bias",
    "pos_embed": "pos_embed",
    "cls_token": "cls_token",
    "norm.weight": "norm_f.weight",
    "norm.bias": "norm_f.bias",
    "head.weight": "head.weight",
    "head.bias": "head.bias",
}
_DECODER = {
    "embed.weight": "decoder_embed.weight",
    "embed.bias": "decoder_embed.bias",
    "mask_token": "mask_token",
    "pos_embed": "decoder_pos_embed",
    "norm.weight": "decoder_norm.weight",
    "norm.bias": "decoder_norm.bias",
    "head.weight": "decoder_pred.weight",
    "head.bias": "decoder_pred.bias",
}


def from_official(state: Mapping[str, Tensor], config: dict) -> nn.Module:
    """A model with the published weights `state`, for the published arguments `config`.

    `config["model"]` is fastvim or vim, classifiers, or their masked autoencoders mae and
    vim-mae. A norm that has a bias in `state` is a LayerNorm, one that has none an RMSNorm. The
    model keeps the weights' dtype. Raises UserError for a weight that is missing, left over
    or of the wrong shape, and for an argument that is unknown or not implemented.
    """
    model = _untrained(state, config).to(state["patch_embed.proj.weight"].dtype)
    ours = dict(model.named_parameters())
    used = set()
    with torch.no_grad():
        for name, published in _published_names(model).items():
            for index, official in enumerate(published):
                if official not in state:
                    raise UserError(f"the checkpoint has no {official!r}{nearest(official, state)}")
                target = ours[name][index] if len(published) == 2 else ours[name]
                values = state[official].detach()
                shape = tuple(target.shape)
                if name.endswith("conv_weight"):
                    shape = shape[0], 1, shape[1]  # as a depthwise convolution's is published
                if tuple(values.shape) != shape:
                    raise UserError(
                        f"{official} has shape {tuple(values.shape)}; this configuration needs "
                        f"{shape}"
                    )
                if name.endswith("pos_embed"):
                    values = values[:, _published_places(model).argsort()]
                target.copy_(values.reshape(target.shape))
                used.add(official)
    left_over = sorted(set(state) - used)
    if left_over:
        raise UserError(f"the checkpoint has weights that nothing takes: {', '.join(left_over)}")
    return model


def to_official(
    model: VisionMamba | MaskedAutoencoder,
    values: Callable[[nn.Parameter], Tensor] = lambda parameter: parameter,
) -> dict[str, Tensor]:
    """Published name to tensor, for what `values` says of each parameter (itself, its `.grad`).

    Shapes are the published ones. Fixed parameters are left out where `values` gives None, as of
    a gradient; for any other, None is a UserError.
    """
    ours = dict(model.named_parameters())
    official = {}
    for name, published in _published_names(model).items():
        tensor = values(ours[name])
        if tensor is None and not ours[name].requires_grad:
            continue
        if tensor is None:
            raise UserError(f"{name} has no value to give: run a backward pass first")
        if name.endswith("pos_embed"):
            tensor = tensor[:, _published_places(model)]
        if len(published) == 1:
            official[published[0]] = tensor
            continue
        for index, target in enumerate(published):
            # A depthwise convolution's weight is published as (channels, 1, width).
            official[target] = (
                tensor[index, :, None] if name.endswith("conv_weight") else tensor[index]
            )
    return official


def _published_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Our parameter names to published ones: one, or two for the stacked directions."""
    names: dict[str, tuple[str, ...]] = {}
    for name, _ in model.named_parameters():
        decoding = name.startswith("decoder.")
        local = name.removeprefix("decoder.").removeprefix("encoder.")
        if not local.startswith("blocks."):
            names[name] = ((_DECODER if decoding else _STEM)[local],)
            continue
        _, block, rest = local.split(".", 2)
        prefix = f"{'decoder_blocks' if decoding else 'layers'}.{block}."
        inner = rest.removeprefix("mixer.")
        if rest in ("norm.weight", "norm.bias"):
            names[name] = (prefix + rest,)
        elif inner in _STACKED:
            names[name] = tuple(f"{prefix}mixer.{each}" for each in _STACKED[inner])
        elif inner in _SINGLE:
            names[name] = (f"{prefix}mixer.{_SINGLE[inner]}",)
        else:
            raise UserError(f"{name} has no published counterpart (attention pooling)")
    return names


def _published_places(model: nn.Module) -> Tensor:
    """For each published position embedding, the place of ours: column by column or the same."""
    model = getattr(model, "encoder", model)
    rows, cols = model.config.grid_size
    places = torch.arange(rows * cols)
    if model.config.scan_order == ("col", "row"):
        places = places.reshape(rows, cols).t().reshape(-1)
    token = model.class_token_place
    if token is None:
        return places
    places = places + (places >= token)
    return torch.cat([places[:token], torch.tensor([token]), places[token:]])


def _untrained(state: Mapping[str, Tensor], published: dict) -> nn.Module:
    config = _our_config(state, published)
    if published.get("model") in _AUTOENCODERS:
        model = _untrained_autoencoder(state, published, config)
    else:
        model = VisionMamba(config)
    names = _published_names(model)
    for name, norm in list(model.named_modules()):
        if not isinstance(norm, nn.RMSNorm):
            continue
        weight = names[f"{name}.weight"][0]
        if weight.removesuffix("weight") + "bias" in state:
            model.set_submodule(name, nn.LayerNorm(norm.normalized_shape, eps=norm.eps))
    return model


def _untrained_autoencoder(
    state: Mapping[str, Tensor], published: dict, config: ModelConfig
) -> MaskedAutoencoder:
    if config.scan_order != IMAGE_AXES:
        raise UserError("scanpath_type 'colwise': a masked autoencoder's must be rowwise")
    if "mask_token" not in state:
        raise UserError("the checkpoint has no 'mask_token': it is not a masked autoencoder's")
    depth = _blocks(state, "decoder_blocks.")
    masking = MaskingConfig(
        mask_ratio=published.get("mask_ratio", 0.75),
        decoder_width=state["mask_token"].shape[-1],
        decoder_depth=depth,
        reverse_ids="as_published",
        normalise_targets=published.get("norm_pix_loss", True),
    )
    return MaskedAutoencoder(config, masking)


def _our_config(state: Mapping[str, Tensor], published: dict) -> ModelConfig:
    for key, value in published.items():
        # An unknown argument that is false, 0 or None switches nothing on.
        if value and key not in _DEFAULTS and key not in _WITHOUT_INFLUENCE:
            raise UserError(f"published argument {key!r} is not known{nearest(key, _DEFAULTS)}")
    family = published.get("model", "fastvim")
    if family not in (*_CLASSIFIERS, *_AUTOENCODERS):
        allowed = ", ".join((*_CLASSIFIERS, *_AUTOENCODERS))
        raise UserError(f"model {family!r} is not a published one: {allowed}")
    given = {**_DEFAULTS, **published}
    columnwise = given["scanpath_type"] == "colwise"
    if given["scanpath_type"] not in ("rowwise", "colwise"):
        raise UserError(f"scanpath_type {given['scanpath_type']!r}: it must be rowwise or colwise")
    if given["final_pool_type"] != "mean" and not given["if_cls_token"]:
        raise UserError(f"final_pool_type {given['final_pool_type']!r}: only mean is implemented")
    if not given["if_divide_out"]:
        raise UserError(
            f"if_divide_out {given['if_divide_out']!r}: it must be true, the mean of the directions"
        )
    axes = ("row", "col") if columnwise else ("col", "row")
    schedule: tuple[str, ...] = axes if given["rotate_every_block"] else axes[:1]
    if family in ("vim", "vim-mae"):
        schedule = ()
    class_token = "none"
    if given["if_cls_token"]:
        class_token = "middle" if given["use_middle_cls_token"] else "head"
    depth = _blocks(state, "layers.")

    def shape(name: str, axes: int) -> torch.Size:
        if name not in state:
            raise UserError(f"the checkpoint has no {name!r}{nearest(name, state)}")
        found = state[name].shape
        if len(found) != axes:
            raise UserError(f"{name} has shape {tuple(found)}; it must have {axes} axes")
        return found

    first = "layers.0.mixer."
    d_inner, _, d_conv = shape(first + "conv1d.weight", 3)
    d_model, in_channels = shape("patch_embed.proj.weight", 4)[:2]
    values = dict(
        image_size=given["img_size"],
        patch_size=given["patch_size"],
        stride=given["stride"],
        in_channels=in_channels,
        num_classes=shape("head.weight", 2)[0] if "head.weight" in state else 0,
        d_model=d_model,
        depth=depth,
        d_state=shape(first + "A_log", 2)[1],
        d_conv=d_conv,
        expand=d_inner // d_model,
        dt_rank=shape(first + "dt_proj.weight", 2)[1],
        schedule=schedule,
        scan_order=("col", "row") if columnwise else ("row", "col"),
        pooling=given["collapse_method"],
        pooling_scale=given["scaling_factor"],
        post_ssm_norm=given["use_norm_after_ssm"],
        class_token=class_token,
        norm_eps=given["norm_epsilon"],
    )
    return checked_config("published arguments", values)


def _blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many blocks the names that begin with `prefix` count; UserError if none."""
    numbers = [int(name.split(".")[1]) for name in state if name.startswith(prefix)]
    if not numbers:
        raise UserError(f"the checkpoint has no weight {prefix}0...: not one of these models")
    return 1 + max(numbers)
