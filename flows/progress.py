"""How far are the mapped task runs? Said in a few lines, whatever the number of scans."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from prefect import get_run_logger
from prefect.futures import PrefectFuture, as_completed

STEPS = 10  # lines a stage, at the most
QUIET_S = 5.0  # what is faster than this is not worth a line on the way


def gather(futures: Sequence[PrefectFuture[Any]], doing: str) -> list[Any]:
    """Wait for mapped task runs and return their results in order; says now and then how many are done.

    Args:
        futures: what `task.map` returned.
        doing: what the runs do, such as "converting".

    Raises:
        Exception: the first failed run's own.
    """
    log, total, said = get_run_logger(), len(futures), time.monotonic()
    lines = {-(-total * step // STEPS) for step in range(1, STEPS)}
    for done, future in enumerate(as_completed(list(futures)), start=1):
        future.result()  # the first failure ends the stage
        if done == total or (done in lines and time.monotonic() - said > QUIET_S):
            log.info("%s: %d of %d scans", doing, done, total)
            said = time.monotonic()
    return [future.result() for future in futures]
