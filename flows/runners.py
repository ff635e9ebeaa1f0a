"""Who does the mapped data tasks, and how many scans are in the air at once?"""

from __future__ import annotations

import os
import re

from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from lungml.errors import LunaError

WORKERS = "threads:2"  # left alone, Prefect's thread runner starts all 888 scans at once
THREADS_PER_DASK_WORKER = 1  # a worker's memory is one scan's, about 1.2 GB at most
KINDS = "threads:N, processes:N, dask:N (a cluster on this machine) or the address of a Dask scheduler (tcp://...)"


class WorkersError(LunaError):
    """LUNA_WORKERS says nothing that we know."""


def mapped_runner(workers: str | None = None) -> TaskRunner:
    """The task runner of the mapped data tasks, as $LUNA_WORKERS or the argument says; two threads if neither does.

    Args:
        workers: `threads:N`, `processes:N`, `dask:N` for N worker processes of a Dask cluster on this machine, or the
            address of a Dask scheduler that is running. N scans are in the air at once.

    Raises:
        WorkersError: it is none of these, or Dask is not installed.
    """
    wanted = (workers or os.environ.get("LUNA_WORKERS") or WORKERS).strip()
    if re.fullmatch(r"(tcp|tls|ws|wss|ucx)://\S+", wanted):
        return _dask(address=wanted)
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


def _dask(**settings: object) -> TaskRunner:
    try:
        from prefect_dask import DaskTaskRunner
    except ImportError as error:
        raise WorkersError("LUNA_WORKERS asks for Dask: pip install 'luna-pipeline[dask]'") from error
    return DaskTaskRunner(**settings)  # type: ignore[arg-type]
