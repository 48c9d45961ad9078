"""The arguments that all of a mixer's operators take: as torch's schema, and as what they are."""

from collections.abc import Sequence
from typing import Any

from fastvim.kernels.reference import MixerWeights, ScanLayout

MIXER = (
    "Tensor conv_weight, Tensor? conv_bias, Tensor x_proj, Tensor dt_proj, Tensor dt_bias, "
    "Tensor A, Tensor D, Tensor? norm_weight, Tensor? norm_bias, "
    "Tensor? order, Tensor? steps, Tensor? reverse_steps, SymInt n_steps, "
    "str pooling, float scale, str merge, bool gate, float eps"
)
WEIGHTS = len(MixerWeights._fields)
TABLES = len(ScanLayout._fields) - 1  # and the number of steps
SETTINGS = ("pooling", "scale", "merge", "gate", "eps")


def take_apart(arguments: Sequence) -> tuple[MixerWeights, ScanLayout, dict[str, Any]]:
    """Weights, layout and settings of arguments as in `MIXER`; what follows them is left out."""
    weights, layout = arguments[:WEIGHTS], arguments[WEIGHTS:][: TABLES + 1]
    settings = arguments[WEIGHTS + TABLES + 1 :][: len(SETTINGS)]
    return MixerWeights(*weights), ScanLayout(*layout), dict(zip(SETTINGS, settings, strict=True))
