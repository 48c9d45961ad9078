"""The C++ extension is optional: a build that fails is silent. Here it is not."""

import shutil

import pytest

from fastvim.kernels import native


@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="no C++ compiler on this machine"
)
def test_the_library_is_there_where_there_is_a_compiler():
    assert native.REASON is None
