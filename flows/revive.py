"""Which runs go on that lost their worker, or failed of something that passes?

A run is taken up again under its own id: what it finished is kept, as for any run that is started again. Only runs
that a work pool started are: one that a person started is that person's to start again.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psutil
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging.loggers import flow_run_logger
from prefect.states import AwaitingRetry

from flows.prefect_api import POOL, PrefectApi
from lungml.download import DownloadError
from lungml.errors import LunaError, one_line
from lungml.remote import RemoteError
from tasks.child import ChildDied
from tasks.connection import is_away

TRIES = 3  # a run that fails a fourth time has something wrong with it
LATER = timedelta(minutes=10)  # for disks to be freed and servers to come back
SOON = timedelta(seconds=10)
# A worker puts its name on a run moments after it claimed it, and reports a dead process twice, seconds apart: the
# second report, which would end the next try, must have come.
SETTLED = timedelta(minutes=1)
RUN_ID = "PREFECT__FLOW_RUN_ID"  # in the environment of a run's process and of those that it starts
LONG_AGO = timedelta(days=1)  # somebody has seen it crash by then, and let it be
TAKEN_UP, GIVEN_UP = "Taken up again", "Given up"  # how the states' messages begin
WAITS = "Goes on when `luna up` starts again"
WORKER_LABEL = "prefect.worker.name"


def run_again_later(flow: Flow[Any, Any], run: FlowRun, state: State[Any]) -> None:
    """A hook for failed flows: schedule a run of a work pool once more where its failure's cause may pass.

    A full disk, a server that does not answer, a training process that was killed: after ten minutes, three times. A
    finding about the data or the settings would only be found again.
    """
    failure = state.result(raise_on_failure=False)
    if run.deployment_id is None or not isinstance(failure, BaseException) or not passes(failure):
        return
    log = flow_run_logger(run, flow)
    with get_client(sync_client=True) as client:
        before = sum(_is_taken_up(one.message) for one in client.read_flow_run_states(run.id))
        if before >= TRIES:
            log.error("%s after %d more tries: %s", GIVEN_UP, before, one_line(str(failure)))
            return
        at = datetime.now(UTC) + LATER
        message = f"{TAKEN_UP} ({before + 1} of {TRIES}) at {at:%H:%M} UTC: {one_line(str(failure))}"
        client.set_flow_run_state(run.id, AwaitingRetry(scheduled_time=at, message=message), force=True)
    log.warning("%s", message)


def passes(failure: BaseException | None) -> bool:
    """Whether a failure's cause may be gone in a while, without anybody's doing."""
    if isinstance(failure, RemoteError | DownloadError):  # or what they were asked for is wrong
        return passes(failure.__cause__)
    if isinstance(failure, LunaError):
        return False
    if isinstance(failure, OSError | httpx.HTTPError | ChildDied):
        return True
    return failure is not None and (is_away(failure) or type(failure).__module__.startswith("obstore"))


def take_up_lost(api: PrefectApi, ours: str, alive: Collection[str] = (), *, ending: bool = False) -> list[str]:
    """Schedule those runs of our workers again whose worker or process is gone; what was being cancelled is cancelled.

    A run of a worker that lives is left alone, and so is one of a worker that somebody else runs.

    Args:
        api: of the server.
        ours: how the names of our workers begin, those before this one too.
        alive: the names of those that live.
        ending: `luna up` is being ended: the runs wait for its next start, which is no try of theirs.

    Returns:
        a line for each run that was dealt with.

    Raises:
        httpx.HTTPError: the server does not answer.
    """
    pools = {"name": {"any_": [POOL]}}
    unfinished = api.runs({"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}, work_pools=pools)
    since = datetime.now(UTC) - LONG_AGO
    ended = {"state": {"type": {"any_": ["CRASHED"]}}, "end_time": {"after_": since.isoformat()}}
    crashed = [run for run in api.runs(ended, work_pools=pools) if not _is_given_up(run)]
    lost = [run for run in (*unfinished, *crashed) if _is_lost(run, ours, alive)]
    executing = running_here() if lost else set()
    return [_deal_with(api, run, ending) for run in lost if run["id"] not in executing]


def running_here() -> set[str]:
    """The ids of the flow runs that a process of this machine is busy with, whatever the server thinks of them."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            found.add(process.environ().get(RUN_ID, ""))
    return found - {""}


def _is_lost(run: dict[str, Any], ours: str, alive: Collection[str]) -> bool:
    worker, kind = _worker(run), run["state"]["type"]
    if worker and not worker.startswith(ours):
        return False
    settled = datetime.now(UTC) - datetime.fromisoformat(run["state"]["timestamp"]) > SETTLED
    if kind == "CRASHED":
        return bool(worker) and (settled or worker not in alive)
    if worker in alive:
        return False
    if kind == "RUNNING":
        return bool(worker)
    return settled or bool(worker and not alive)


def _deal_with(api: PrefectApi, run: dict[str, Any], ending: bool) -> str:
    if run["state"]["type"] == "CANCELLING":
        _end(api, run["id"], "CANCELLED", "Cancelled", "its worker ended before it had cancelled it")
        return f"{run['name']}: cancelled"
    if ending:
        api.set_state(run["id"], "SCHEDULED", "AwaitingRetry", WAITS, at=datetime.now(UTC))
        return f"{run['name']}: goes on when `luna up` starts again"
    before = sum(_is_taken_up(state["message"]) for state in api.states(run["id"]))
    why = "its process died" if run["state"]["type"] == "CRASHED" else "its worker is gone"
    if before >= TRIES:
        _end(api, run["id"], "CRASHED", "Crashed", f"{GIVEN_UP} after {before} more tries: {why}")
        return f"{run['name']}: given up after {before} more tries; its logs: the run's page"
    message = f"{TAKEN_UP} ({before + 1} of {TRIES}): {why}"
    api.set_state(run["id"], "SCHEDULED", "AwaitingRetry", message, at=datetime.now(UTC) + SOON)
    return f"{run['name']}: taken up again ({before + 1} of {TRIES}), {why}"


def _end(api: PrefectApi, run_id: str, kind: str, name: str, message: str) -> None:
    """Put a run that nobody goes on with into its last state, and the flows within it."""
    for inner in api.runs({"parent_flow_run_id": {"any_": [run_id]}}):
        if inner["state"]["type"] in ("RUNNING", "PENDING", "CANCELLING"):
            _end(api, inner["id"], kind, name, message)
    api.set_state(run_id, kind, name, message)


def _worker(run: dict[str, Any]) -> str:
    return str((run.get("labels") or {}).get(WORKER_LABEL, ""))


def _is_taken_up(message: str | None) -> bool:
    return (message or "").startswith(TAKEN_UP)


def _is_given_up(run: dict[str, Any]) -> bool:
    return (run["state"]["message"] or "").startswith(GIVEN_UP)
