"""What every test relies on: threads that do not wait for one another, and examples that are not timed."""

import os
from contextlib import suppress

if "PYTEST_XDIST_WORKER" in os.environ:  # two processes on two cores: with two threads each they would wait
    os.environ.setdefault("OMP_NUM_THREADS", "1")

with suppress(ImportError):  # a GPU machine may have PyTorch and pytest only
    from hypothesis import settings

    # How long an example takes says more of the machine than of the code.
    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")
