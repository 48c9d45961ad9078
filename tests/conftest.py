"""One thread a process: two processes share two cores, and tiny models gain nothing from more.

On a busy machine OpenMP's threads wait for one another at every small operator, which makes a
test ten times slower. Tests of threading ask for more themselves.
"""

import ctypes
import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
# In this process, where a test can look; tests of runs side by side ask for them.
os.environ.setdefault("FASTVIM_JOBS", "1")

# Of these a file takes half a minute or more. A long one that starts last leaves a process idle.
LONGEST = (
    "experiments/test_faults.py",
    "kernels_gpu/test_triton.py",
    "profiling/test_study.py",
    "profiling/test_memory.py",
    "kernels/test_registration.py",
    "analysis/test_false_verdicts.py",
    "cli/test_threshold.py",
    "kernels_gpu/test_compile.py",
    "reports/test_files.py",
    "cli/test_commands.py",
    "training/test_responses.py",
)


def pytest_collection_modifyitems(items):
    """The longest files first, and the others as they were."""

    def place(item) -> int:
        file = item.path.as_posix()
        return next((i for i, name in enumerate(LONGEST) if file.endswith(name)), len(LONGEST))

    items.sort(key=place)


CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2


@pytest.fixture
def unreadable():
    """Takes the permission to read a file or folder away until the test ends.

    Root, who needs none, gives up the capabilities by which that is so; skipped where it cannot.
    """
    libc, taken = ctypes.CDLL(None), []
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    before = (ctypes.c_uint32 * 6)()
    if not hasattr(libc, "capset") or libc.capget(header, before):
        pytest.skip("capabilities cannot be read here")
    fewer = (ctypes.c_uint32 * 6)(*before)
    fewer[0] &= ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)
    libc.capset(header, fewer)

    def take(path):
        taken.append((path, path.stat().st_mode))
        path.chmod(0)
        if os.access(path, os.R_OK, effective_ids=True):
            pytest.skip("this process may read everything")

    yield take
    libc.capset(header, before)
    for path, mode in taken:
        path.chmod(mode)
