"""A second count of a model's operations, to hold against fvcore's."""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastvim.kernels import flops
from fastvim.models.backbone import VisionMamba
from fastvim.profiling import models


def own_gflops(model: nn.Module, resolution: int) -> float:
    """Billions of operations of one image's forward pass; a multiply-add is one, as in fvcore.

    Matrix products, convolutions and attention as PyTorch dispatches them, and the mixers by the
    operator's own count from the model's sizes. fvcore instead reads a trace, and adds the layer
    norms of timm's models. Nothing is computed.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        image = torch.empty(1, models.channels(model), resolution, resolution, device="meta")
        copy.deepcopy(model).to("meta").eval()(image)
    counts = counter.get_flop_counts()["Global"]
    # PyTorch's counter takes a multiplication and its addition for two operations.
    total = sum(n for name, n in counts.items() if "pooled_mixer" not in str(name)) / 2
    if isinstance(model, VisionMamba):
        # With attention pooling the mixers are not the operator's, but PyTorch's.
        total += model.uncounted_operations() or _mixers(model)
    return total / 1e9


def literature_gflops(model: nn.Module, counted: float) -> float:
    """`counted` GFLOPs of an image, if a scan's step, channel and state were 9 operations.

    They are 5 in `SCAN_STEP`. The 9 come from the authors of Mamba, and papers on vision count
    with them: github.com/state-spaces/mamba/issues/110.
    """
    if not isinstance(model, VisionMamba):
        return counted
    width = model.config.d_inner * model.config.d_state
    steps = sum(2 * model.layouts[axis].n_steps for axis in model.schedule)
    return counted + (9 - flops.SCAN_STEP.fvcore) * steps * width / 1e9


def _mixers(model: VisionMamba) -> int:
    config, total = model.config, 0
    for axis in model.schedule:
        layout = model.layouts[axis]
        total += flops.mixer_work(
            len(model.grid) * config.d_inner,
            layout.n_steps * config.d_inner,
            config.d_conv,
            config.delta_rank,
            config.d_state,
            pools=layout.steps is not None,
            norm=config.post_ssm_norm,
            gate=config.gates,
            mean=config.direction_merge == "mean",
        ).fvcore
    return total
