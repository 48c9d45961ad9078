"""`operator_cases` to import, and the instruction sets of the cpu backend, for these tests."""

import sys
from pathlib import Path

import pytest

from fastvim.kernels import native

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(params=["avx512", "avx2", "plain"])
def instruction_set(request):
    """The cpu backend held to one, which a processor may lack."""
    best = native.LIBRARY.fastvim_level()
    if not native.LIBRARY.fastvim_set_level(request.param.encode()):
        pytest.skip(f"this processor lacks {request.param}")
    yield request.param
    assert native.LIBRARY.fastvim_set_level(best)
