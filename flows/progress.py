"""How far are the mapped task runs? Said in a few lines and on one bar, whatever the number of scans."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.futures import PrefectFuture, as_completed

from lungml.errors import one_line

STEPS = 10  # lines a stage, at the most
QUIET_S = 5.0  # what is faster than this is not worth a line on the way
REDRAWN_S = 2.0  # between two updates of the bar: each is a request to Prefect's server


def gather(futures: Sequence[PrefectFuture[Any]], doing: str, kept: Counter[str] | None = None) -> list[Any]:
    """Wait for mapped task runs and return their results in order; shows how many are done.

    A progress artifact of the flow run stands for all of them; where it cannot be drawn, the work goes on without.

    Args:
        futures: what `task.map` returned; a run whose result is None set its scan aside.
        doing: what the runs do, such as "converting".
        kept: where to count, under `doing`, the runs that found their work done.

    Raises:
        Exception: the first failed run's own.
    """
    log, total, said = get_run_logger(), len(futures), time.monotonic()
    lines = {-(-total * step // STEPS) for step in range(1, STEPS)}
    bar, unchanged, aside = _Bar(doing, total), 0, 0
    for done, future in enumerate(as_completed(list(futures)), start=1):
        aside += future.result() is None  # the first failure ends the stage
        unchanged += future.state.name == "Cached"
        bar.show(done, unchanged, aside)
        if done == total or (done in lines and time.monotonic() - said > QUIET_S):
            log.info("%s: %s", doing, _words(done, total, unchanged, aside))
            said = time.monotonic()
    if kept is not None:
        kept[doing] += unchanged
    return [future.result() for future in futures]


def _words(done: int, total: int, kept: int, aside: int) -> str:
    return (
        f"{done} of {total} scans"
        + (f", {kept} kept from before" if kept else "")
        + (f", {aside} set aside" if aside else "")
    )


class _Bar:
    """A progress artifact that is drawn now and then, and costs no run when it is not."""

    def __init__(self, doing: str, total: int) -> None:
        self._doing, self._total = doing, total
        self._started = self._drawn = time.monotonic()
        self._artifact: Any = None
        self._lost = not total  # of nothing there is no bar
        if total:
            self._draw(0.0, f"{doing}: 0 of {total} scans")

    def show(self, done: int, kept: int, aside: int) -> None:
        """Say how many are done; what comes soon after the last time is not drawn, the end always is."""
        now = time.monotonic()
        if self._lost or (done < self._total and now - self._drawn < REDRAWN_S):
            return
        self._drawn = now
        words = _words(done, self._total, kept, aside)
        if done < self._total:
            left_s = (now - self._started) / done * (self._total - done)
            words += f", {_length(left_s)} left"
        self._draw(100.0 * done / self._total, f"{self._doing}: {words}")

    def _draw(self, percent: float, text: str) -> None:
        try:
            if self._artifact is None:
                self._artifact = create_progress_artifact(percent, description=text)
            else:
                update_progress_artifact(self._artifact, progress=percent, description=text)
        except Exception as error:  # whatever Prefect's server says, the scans go on
            self._lost = True
            get_run_logger().warning("%s: no progress is shown: %s", self._doing, one_line(str(error)))


def _length(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
