"""Which piece of work takes longer than anything of its kind should? Said while it still hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

OVERDUE_S = 600.0  # the largest scan is converted in a tenth of it, from a slow disk


@contextmanager
def said_when_overdue(log: Any, doing: str, *, after_s: float | None = None) -> Iterator[None]:
    """Log a warning every ten minutes for as long as the block takes; it is not ended, and its result is the same.

    A read from a disk or a share that does not answer can be ended by nothing within the process: Prefect's own limit
    of a task's time is not heeded in a thread either. Whoever reads the warning can.

    Args:
        log: of the run.
        doing: what the block does, such as "reading 1.2.3".
        after_s: between two warnings.
    """
    every_s = OVERDUE_S if after_s is None else after_s
    done, began = threading.Event(), time.monotonic()

    def watch() -> None:
        while not done.wait(every_s):
            minutes = (time.monotonic() - began) / 60
            log.warning(
                "%s has taken %.0f min: see whether its disk or share answers; a run that is stopped goes on here",
                doing,
                minutes,
            )

    watcher = threading.Thread(target=watch, daemon=True, name="overdue")
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
