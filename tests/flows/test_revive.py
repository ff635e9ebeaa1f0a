"""Which runs are taken up again: those that lost their worker or failed of what passes, each a few times."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prefect import flow
from prefect.states import Failed

from flows import revive
from flows.prefect_api import PrefectApi
from flows.revive import GIVEN_UP, TAKEN_UP, TRIES, passes, run_again_later, take_up_lost
from lungml.download import DownloadError
from lungml.errors import LunaError
from lungml.remote import RemoteError
from tasks.child import ChildDied
from tasks.connection import TrackingDown

OURS, LIVING, DEAD = "luna-abc-", "luna-abc-2", "luna-abc-1"


@dataclass(frozen=True)
class FakeApi(PrefectApi):
    """A server that knows some runs."""

    url: str = "http://127.0.0.1:1/api"
    known: list[dict[str, Any]] = field(default_factory=list)
    before: dict[str, list[str]] = field(default_factory=dict)

    def runs(self, flow_runs: Mapping[str, Any], **more: Any) -> list[dict[str, Any]]:
        if parents := flow_runs.get("parent_flow_run_id"):
            return [run for run in self.known if run.get("parent") in parents["any_"]]
        assert more["work_pools"] == {"name": {"any_": ["luna"]}}
        return [run for run in self.known if run["state"]["type"] in flow_runs["state"]["type"]["any_"]]

    def states(self, run_id: str) -> list[dict[str, Any]]:
        return [{"message": message} for message in self.before.get(run_id, [])]

    def set_state(self, run_id: str, kind: str, name: str, message: str, *, at: datetime | None = None) -> None:
        (run,) = (run for run in self.known if run["id"] == run_id)
        run["state"] = {"type": kind, "name": name, "message": message, "timestamp": f"{datetime.now(UTC):%FT%TZ}"}


def a_run(state: str, worker: str | None = DEAD, age_s: float = 3600.0, message: str | None = None) -> dict[str, Any]:
    stamp = (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat()
    labels = {"prefect.worker.name": worker} if worker else {}
    shown = {"type": state, "name": state.title(), "message": message, "timestamp": stamp}
    return {"id": "r", "name": "prepare demo", "labels": labels, "state": shown}


@pytest.mark.parametrize("state", ["RUNNING", "PENDING"])
def test_a_run_of_a_dead_worker_is_scheduled_again(state: str) -> None:
    api = FakeApi(known=[a_run(state)])
    assert take_up_lost(api, OURS, [LIVING]) == ["prepare demo: taken up again (1 of 3), its worker is gone"]
    assert api.known[0]["state"]["type"] == "SCHEDULED"
    assert api.known[0]["state"]["name"] == "AwaitingRetry"
    assert api.known[0]["state"]["message"] == f"{TAKEN_UP} (1 of 3): its worker is gone"
    assert take_up_lost(api, OURS, [LIVING]) == []


@pytest.mark.parametrize(
    "make_run",
    [
        partial(a_run, "RUNNING", LIVING),
        partial(a_run, "CANCELLING", LIVING),
        partial(a_run, "RUNNING", "somebody-elses"),
        partial(a_run, "CRASHED", "somebody-elses"),
        partial(a_run, "RUNNING", None),
        partial(a_run, "PENDING", DEAD, age_s=5.0),  # the living one has just claimed it, and says its name in a moment
        partial(a_run, "PENDING", None, age_s=5.0),
        partial(a_run, "CRASHED", LIVING, age_s=20.0),  # the worker will say so once more
        partial(a_run, "CRASHED", message=f"{GIVEN_UP} after 3 more tries: its process died"),
    ],
    ids=[
        "living",
        "cancelled by the living",
        "another's",
        "another's crash",
        "nobody's",
        "claimed",
        "new",
        "just died",
        "given up",
    ],
)
def test_what_is_not_lost_is_left_alone(make_run: Callable[[], dict[str, Any]]) -> None:
    run = make_run()  # now: its age is told from when it is made
    before = dict(run["state"])
    api = FakeApi(known=[run])
    assert take_up_lost(api, OURS, [LIVING]) == []
    assert run["state"] == before


def test_a_run_that_a_process_is_busy_with_is_never_begun_beside_it() -> None:
    environment = {**os.environ, "PREFECT__FLOW_RUN_ID": "r"}
    api = FakeApi(known=[a_run("RUNNING")])
    waiting = [sys.executable, "-c", "print('up', flush=True); input()"]
    with subprocess.Popen(waiting, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"  # until it has begun its environment cannot be seen
        assert take_up_lost(api, OURS, [LIVING]) == []
        process.stdin.close()
        process.wait()
    assert len(take_up_lost(api, OURS, [LIVING])) == 1


def test_at_the_start_nobody_can_have_claimed_a_run() -> None:
    api = FakeApi(known=[a_run("PENDING", DEAD, age_s=1.0)])
    assert len(take_up_lost(api, OURS)) == 1


def test_one_that_nobody_ever_put_a_name_on_is_lost_after_a_while() -> None:
    assert len(take_up_lost(FakeApi(known=[a_run("PENDING", None)]), OURS, [LIVING])) == 1


def test_a_run_whose_process_died_is_scheduled_again_a_few_times_then_given_up() -> None:
    api = FakeApi(known=[a_run("CRASHED", LIVING)])
    for done in range(TRIES):
        api.before["r"] = ["Running", None, *[f"{TAKEN_UP} again"] * done]  # type: ignore[list-item]
        api.known[0] = a_run("CRASHED", LIVING)
        (line,) = take_up_lost(api, OURS, [LIVING])
        assert f"({done + 1} of {TRIES})" in line
    api.before["r"] = [f"{TAKEN_UP} again"] * TRIES
    api.known[0] = a_run("CRASHED", LIVING)
    inner = a_run("RUNNING", None) | {"id": "inner", "parent": "r"}
    api.known.append(inner)
    (line,) = take_up_lost(api, OURS, [LIVING])
    assert line.startswith("prepare demo: given up after 3 more tries")
    for run in api.known:  # the flows within it do not stay Running for ever
        assert run["state"]["type"] == "CRASHED"
        assert run["state"]["message"] == f"{GIVEN_UP} after 3 more tries: its process died"


def test_what_was_being_cancelled_is_cancelled() -> None:
    api = FakeApi(known=[a_run("CANCELLING")])
    assert take_up_lost(api, OURS, [LIVING]) == ["prepare demo: cancelled"]
    assert api.known[0]["state"]["type"] == "CANCELLED"


def test_an_end_of_luna_up_is_no_try() -> None:
    api = FakeApi(known=[a_run("CRASHED", LIVING)], before={"r": [f"{TAKEN_UP} again"] * TRIES})
    assert take_up_lost(api, OURS, ending=True) == ["prepare demo: goes on when `luna up` starts again"]
    assert api.known[0]["state"]["type"] == "SCHEDULED"
    assert not api.known[0]["state"]["message"].startswith(TAKEN_UP)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("failure", "passing"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "crops"), True),
        (ConnectionRefusedError("no MLflow"), True),
        (TrackingDown("MLflow does not answer"), True),
        (httpx.ConnectError("no Prefect server"), True),
        (ChildDied("killed"), True),
        (caused(DownloadError("u", "p", "a"), httpx.ReadTimeout("silent")), True),
        (DownloadError("u", "is no http(s) address", "correct it"), False),
        (RemoteError("not an object store's URL"), False),
        (LunaError("the split has no scan"), False),
        (caused(LunaError("a table is missing"), FileNotFoundError("t.csv")), False),
        (TypeError("a mistake of ours"), False),
        (None, False),
    ],
)
def test_only_causes_that_pass_are_worth_waiting_for(failure: Exception | None, passing: bool) -> None:
    assert passes(failure) is passing


class FakeClient:
    """A Prefect client that remembers the states it sets."""

    def __init__(self, before: list[str]) -> None:
        self.before, self.given = before, []  # type: ignore[var-annotated]

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def read_flow_run_states(self, run_id: str) -> list[Any]:
        return [SimpleNamespace(message=message) for message in self.before]

    def set_flow_run_state(self, run_id: str, state: Any, force: bool) -> None:
        self.given.append(state)


@flow(name="luna")
def body() -> None:
    """Nothing."""


@pytest.mark.parametrize(
    ("failure", "deployment", "before", "again"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "d", 0, True),
        (OSError(errno.ENOSPC, "No space left on device"), "d", TRIES - 1, True),
        (OSError(errno.ENOSPC, "No space left on device"), "d", TRIES, False),
        (OSError(errno.ENOSPC, "No space left on device"), None, 0, False),
        (LunaError("the split has no scan"), "d", 0, False),
    ],
    ids=["full disk", "third time", "fourth time", "by hand", "finding"],
)
def test_the_hook_schedules_a_failed_run_later(
    failure: Exception, deployment: str | None, before: int, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = FakeClient([f"{TAKEN_UP} again"] * before)
    monkeypatch.setattr(revive, "get_client", lambda sync_client: client)
    said: list[str] = []
    log = SimpleNamespace(
        warning=lambda line, *args: said.append(line % args), error=lambda line, *args: said.append(line % args)
    )
    monkeypatch.setattr(revive, "flow_run_logger", lambda run, flow: log)
    run: Any = SimpleNamespace(id="r", deployment_id=deployment)
    run_again_later(body, run, Failed(data=failure))
    assert len(client.given) == again
    if again:
        (state,) = client.given
        assert (state.type.value, state.name) == ("SCHEDULED", "AwaitingRetry")
        assert state.message.startswith(f"{TAKEN_UP} ({before + 1} of {TRIES}) at ")
        assert "No space left" in state.message
        wait = state.state_details.scheduled_time - datetime.now(UTC)
        assert timedelta(minutes=9) < wait <= timedelta(minutes=10)
    assert len(said) == (again or before == TRIES)
