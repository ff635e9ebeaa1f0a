"""Two test processes on two cores: with two threads each, PyTorch's threads would wait for one another."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
