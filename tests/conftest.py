"""One thread a process: two processes share two cores, and tiny models gain nothing from more.

On a busy machine OpenMP's threads wait for one another at every small operator, which makes a
test ten times slower. Tests of threading ask for more themselves.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
# In this process, where a test can look; tests of runs side by side ask for them.
os.environ.setdefault("FASTVIM_JOBS", "1")
