"""One thread a process: two processes share two cores, and tiny models gain nothing from more.

On a busy machine OpenMP's threads wait for one another at every small operator, which makes a
test ten times slower. Tests of threading ask for more themselves.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
# In this process, where a test can look; tests of runs side by side ask for them.
os.environ.setdefault("FASTVIM_JOBS", "1")

# Of these a file takes half a minute or more. A long one that starts last leaves a process idle.
LONGEST = (
    "experiments/test_faults.py",
    "kernels_gpu/test_triton.py",
    "profiling/test_study.py",
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
