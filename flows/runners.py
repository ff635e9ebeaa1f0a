"""Who does the mapped data tasks, and how many scans are in the air at once?"""

from __future__ import annotations

import os
import re
import socket
from contextlib import ExitStack
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from lungml.errors import LunaError

WORKERS = "threads:2"  # left alone, Prefect's thread runner starts all 888 scans at once
THREADS_PER_DASK_WORKER = 1  # a worker's memory is one scan's, about 1.2 GB at most
KINDS = "threads:N, processes:N, dask:N (a cluster on this machine) or the address of a Dask scheduler (tcp://...)"


ANSWER_S = 5.0  # a scheduler that lets one wait longer is none to send scans to


class WorkersError(LunaError):
    """LUNA_WORKERS says nothing that we know, or a Dask scheduler that does not answer."""


class MappedRunner(TaskRunner[Any]):
    """The runner that LUNA_WORKERS asks for when the first scan is submitted.

    Not sooner: a module that is imported looks at nothing, and what is wrong is said by the flow run, whose state
    would otherwise stay Running.
    """

    def __init__(self) -> None:
        super().__init__()
        self._runner: TaskRunner[Any] | None = None
        self._open = ExitStack()

    def duplicate(self) -> MappedRunner:
        """Another one, which asks again."""
        return MappedRunner()

    def submit(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """See `TaskRunner.submit`; errors as of `mapped_runner`."""
        return self._chosen().submit(*args, **kwargs)

    def map(self, *args: Any, **kwargs: Any) -> Any:
        """See `TaskRunner.map`; errors as of `mapped_runner`."""
        return self._chosen().map(*args, **kwargs)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(exc_type, exc, trace)
        super().__exit__(exc_type, exc, trace)

    def _chosen(self) -> TaskRunner[Any]:
        if self._runner is None:
            self._runner = self._open.enter_context(mapped_runner())
        return self._runner


def mapped_runner(workers: str | None = None) -> TaskRunner:
    """The task runner of the mapped data tasks, as $LUNA_WORKERS or the argument says; two threads if neither does.

    Args:
        workers: `threads:N`, `processes:N`, `dask:N` for N worker processes of a Dask cluster on this machine, or the
            address of a Dask scheduler that is running. N scans are in the air at once.

    Raises:
        WorkersError: it is none of these, Dask is not installed, or no scheduler answers at the address.
    """
    wanted = (workers or os.environ.get("LUNA_WORKERS") or WORKERS).strip()
    if re.fullmatch(r"(tcp|tls|ws|wss|ucx)://\S+", wanted):
        runner = _dask(address=wanted)
        _check_answers(wanted)
        return runner
    match = re.fullmatch(r"(?:(threads|processes|dask):)?([1-9][0-9]{0,3})", wanted)
    if not match:
        raise WorkersError(f"LUNA_WORKERS is {wanted!r}; give {KINDS}")
    count = int(match[2])
    if match[1] == "processes":
        return ProcessPoolTaskRunner(max_workers=count)
    if match[1] == "dask":
        local = {"n_workers": count, "threads_per_worker": THREADS_PER_DASK_WORKER, "dashboard_address": None}
        return _dask(cluster_kwargs=local)
    return ThreadPoolTaskRunner(max_workers=count)


def _check_answers(address: str) -> None:
    """Dask itself would wait for half a minute, and not say who asked for it."""
    if address.startswith("ucx:"):  # not every such address is one of TCP
        return
    try:
        place = urlsplit(address)
        with socket.create_connection((place.hostname, place.port or 8786), timeout=ANSWER_S):
            pass
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise WorkersError(
            f"LUNA_WORKERS is {address}: no Dask scheduler answers there ({why}); start one, mend the address, or "
            "unset it to work in this process"
        ) from error


def _dask(**settings: object) -> TaskRunner:
    try:
        from prefect_dask import DaskTaskRunner
    except ImportError as error:
        raise WorkersError("LUNA_WORKERS asks for Dask: pip install 'luna-pipeline[dask]'") from error
    return DaskTaskRunner(**settings)  # type: ignore[arg-type]
