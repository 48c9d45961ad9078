"""The compiled CPU kernels: a plain C++ library without Python in it, loaded by ctypes.

The structures mirror csrc/interface.h field by field.
"""

import ctypes
import sysconfig
from itertools import cycle
from pathlib import Path

import torch

_PATH = Path(__file__).parent / f"_cpu{sysconfig.get_config_var('EXT_SUFFIX')}"


def _fields(description: str) -> list[tuple[str, type]]:
    """ctypes fields from "name name*count | name ...": integers | pointers, alternating."""
    fields = []
    kinds = cycle((ctypes.c_int64, ctypes.c_void_p))
    for part, kind in zip(description.split("|"), kinds, strict=False):
        for word in part.split():
            name, _, count = word.partition("*")
            fields.append((name, kind * int(count) if count else kind))
    return fields


class OpenMP(ctypes.Structure):
    """`OpenMP` of csrc/interface.h."""

    _fields_ = _fields("| parallel thread_num num_threads")


class ScanCall(ctypes.Structure):
    """`ScanCall` of csrc/interface.h."""

    _fields_ = _fields(
        "batch channels length states threads softplus | u delta z |"
        "u_stride*3 delta_stride*3 z_stride*3 | A | A_stride*2 | B C |"
        "B_stride*4 C_stride*4 B_shared C_shared | D bias y | y_stride*3 | state"
    )


class ScanGradients(ctypes.Structure):
    """`ScanGradients` of csrc/interface.h."""

    _fields_ = (
        ("forward", ScanCall),
        *_fields(
            "| y state | y_stride*3 state_stride*3 | u delta z |"
            "u_stride*3 delta_stride*3 z_stride*3 | A B C | B_stride*4 C_stride*4 | D bias"
        ),
    )


class MixerCall(ctypes.Structure):
    """`MixerCall` of csrc/interface.h."""

    _fields_ = (
        *_fields("batch length channels steps width threads pooling gate"),
        ("scale", ctypes.c_double),
        ("merge", ctypes.c_double),
        ("eps", ctypes.c_double),
        *_fields(
            "| x z | x_stride*2 | conv_weight conv_bias skip norm_weight norm_bias "
            "order step reverse_step | order_stride step_stride reverse_step_stride "
            "direction_stride |"
            "out pooled scanned grad_out grad_scanned grad_pooled grad_x grad_z grad_conv_weight "
            "grad_conv_bias grad_skip grad_norm_weight grad_norm_bias"
        ),
    )


class NormCall(ctypes.Structure):
    """`NormCall` of csrc/interface.h."""

    _fields_ = (
        *_fields("rows channels threads"),
        ("eps", ctypes.c_double),
        *_fields("| x weight y scale grad_y grad_x grad_weight addend"),
    )


class MagnitudesCall(ctypes.Structure):
    """`MagnitudesCall` of csrc/interface.h."""

    _fields_ = _fields("tensors threads | x sizes y")


class ProductCall(ctypes.Structure):
    """`ProductCall` of csrc/interface.h."""

    _fields_ = _fields(
        "rows inner outputs threads adds | a weight |"
        "a_stride weight_stride*2 out_stride | out space"
    )


class RowsProductCall(ctypes.Structure):
    """`RowsProductCall` of csrc/interface.h."""

    _fields_ = _fields("rows outputs columns threads | a b | a_stride b_stride | out space")


class StepsCall(ctypes.Structure):
    """`StepsCall` of csrc/interface.h."""

    _fields_ = _fields(
        "batch steps channels rank states threads shared | pooled grad_scanned "
        "x_proj dt_proj dt_bias A "
        "grad_pooled grad_x_proj grad_dt_proj grad_dt_bias grad_A space"
    )


class BlockCall(ctypes.Structure):
    """`BlockCall` of csrc/interface.h."""

    _fields_ = (
        ("mixer", MixerCall),
        *_fields("width rank states"),
        ("eps", ctypes.c_double),
        *_fields(
            "| x norm_weight in_proj out_proj x_proj dt_proj dt_bias A_log y space seconds "
            "normal scale xz merged pooled scanned"
        ),
    )


class BlockGradients(ctypes.Structure):
    """`BlockGradients` of csrc/interface.h."""

    _fields_ = (
        ("forward", BlockCall),
        *_fields(
            "| grad_y grad_x grad_norm_weight grad_in_proj grad_out_proj "
            "grad_x_proj grad_dt_proj grad_dt_bias grad_A_log space"
        ),
    )


# The stages that a block adds its seconds to, as `Stage` of csrc/interface.h orders them.
BLOCK_STAGES = ("pack", "norm", "products", "convolve", "scan", "finish")

_ENTRIES = {
    "fastvim_scan_forward": ScanCall,
    "fastvim_scan_backward": ScanGradients,
    "fastvim_mixer_convolve": MixerCall,
    "fastvim_mixer_finish": MixerCall,
    "fastvim_mixer_finish_backward": MixerCall,
    "fastvim_mixer_convolve_backward": MixerCall,
    "fastvim_norm_forward": NormCall,
    "fastvim_norm_backward": NormCall,
    "fastvim_magnitudes": MagnitudesCall,
    "fastvim_product": ProductCall,
    "fastvim_product_space": ProductCall,
    "fastvim_rows_product": RowsProductCall,
    "fastvim_rows_product_space": RowsProductCall,
    "fastvim_steps_backward": StepsCall,
    "fastvim_steps_space": StepsCall,
    "fastvim_block_forward": BlockCall,
    "fastvim_block_space": BlockCall,
    "fastvim_block_backward": BlockGradients,
    "fastvim_block_backward_space": BlockGradients,
}


def _find_openmp() -> OpenMP | None:
    """The OpenMP runtime that torch has loaded, whatever its file is called."""
    # A symbol is looked up in a library and in all that it depends on. Whether others see it too
    # differs from one build of torch to the next.
    torch_library = ctypes.CDLL(torch._C.__file__)
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    if not all(hasattr(torch_library, name) for name in names):
        return None
    functions = (getattr(torch_library, name) for name in names)
    return OpenMP(*(ctypes.cast(function, ctypes.c_void_p) for function in functions))


def _load() -> tuple[ctypes.CDLL | None, str | None]:
    if not _PATH.exists():
        return None, (
            "its C++ library was not built at install time (no compiler, or an error that "
            "pip install -v shows); install g++ or clang++, then install fastvim again"
        )
    try:
        library = ctypes.CDLL(str(_PATH))
    except OSError as error:
        return None, f"its library does not load: {error}"
    missing = [name for name in ("fastvim_use_openmp", *_ENTRIES) if not hasattr(library, name)]
    if missing:
        return None, f"its library is older than its Python ({missing[0]}); install fastvim again"
    for name, structure in _ENTRIES.items():
        entry = getattr(library, name)
        entry.argtypes = (ctypes.POINTER(structure), ctypes.c_int)
        entry.restype = ctypes.c_int
    for name in ("product", "rows_product", "steps", "block", "block_backward"):
        getattr(library, f"fastvim_{name}_space").restype = ctypes.c_int64
    if OPENMP is not None:
        library.fastvim_use_openmp(ctypes.byref(OPENMP))
    library.fastvim_level.restype = ctypes.c_char_p
    library.fastvim_set_level.argtypes = (ctypes.c_char_p,)
    return library, None


# None: everything runs on one thread.
OPENMP = _find_openmp()
# ctypes releases the interpreter lock during calls. REASON is None when the library works.
LIBRARY, REASON = _load()
