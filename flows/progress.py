"""How far are the mapped task runs? Said in a few lines, whatever the number of scans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import get_run_logger
from prefect.futures import PrefectFuture, as_completed

STEPS = 4  # lines a stage


def gather(futures: Sequence[PrefectFuture[Any]], doing: str) -> list[Any]:
    """Wait for mapped task runs and return their results in order; says how many are done, every quarter.

    Args:
        futures: what `task.map` returned.
        doing: what the runs do, such as "converting".

    Raises:
        Exception: the first failed run's own.
    """
    log, total = get_run_logger(), len(futures)
    lines = {-(-total * step // STEPS) for step in range(1, STEPS + 1)}
    for done, future in enumerate(as_completed(list(futures)), start=1):
        future.result()  # the first failure ends the stage
        if done in lines:
            log.info("%s: %d of %d scans", doing, done, total)
    return [future.result() for future in futures]
