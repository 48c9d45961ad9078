"""The compiled CPU kernels: a plain C++ library without Python in it, loaded by ctypes."""

import ctypes
import sysconfig
from pathlib import Path

# Imported first, so that the library finds torch's OpenMP runtime already loaded: one serves both.
import torch  # noqa: F401

_PATH = Path(__file__).parent / f"_cpu{sysconfig.get_config_var('EXT_SUFFIX')}"


def _load() -> tuple[ctypes.CDLL | None, str | None]:
    if not _PATH.exists():
        return None, (
            "its C++ library was not built (no working compiler at install time); "
            "install g++ or clang++, then install fastvim again"
        )
    try:
        return ctypes.CDLL(str(_PATH)), None
    except OSError as error:
        return None, f"its library does not load: {error}"


# ctypes releases the interpreter lock during calls. REASON is None when the library works.
LIBRARY, REASON = _load()
