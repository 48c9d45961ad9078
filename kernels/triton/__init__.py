"""The operators by Triton kernels, fused, forward and backward."""

from fastvim.kernels.triton.mixer import pooled_mixer
from fastvim.kernels.triton.mixer_backward import pooled_mixer_backward
from fastvim.kernels.triton.selective import selective_scan, selective_scan_backward

__all__ = [
    "pooled_mixer",
    "pooled_mixer_backward",
    "selective_scan",
    "selective_scan_backward",
]
