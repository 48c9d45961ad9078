"""The operators of Vision Mamba: one definition, several backends.

>>> from fastvim.kernels import selective_scan, pooled_mixer, use_backend
"""

from fastvim.kernels.backends import available, use_backend
from fastvim.kernels.block import residual_blocks
from fastvim.kernels.block_schema import BlockArguments
from fastvim.kernels.flops import fvcore_handles
from fastvim.kernels.norm import rms_norm
from fastvim.kernels.operator import pooled_mixer, selective_scan
from fastvim.kernels.reference import MixerWeights, ScanLayout

__all__ = [
    "BlockArguments",
    "MixerWeights",
    "ScanLayout",
    "available",
    "fvcore_handles",
    "pooled_mixer",
    "residual_blocks",
    "rms_norm",
    "selective_scan",
    "use_backend",
]
