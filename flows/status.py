"""What runs, what ran, what is next, and what is the state of the house?"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from flows.prefect_api import FLOW, POOL, PrefectApi
from flows.servers import Running, running
from flows.settings import server_answers
from lungml.errors import LunaError
from lungml.home import Home
from lungml.secrets import without_credentials

LAST_RUNS = 5
ROLES = ("champion", "demo")
GPU_LIMITS = "luna-gpu-"  # how the limits of GPUs begin, see `tasks.gpus`
NONE = "none"
NAME_CHARACTERS = 34  # of a run: the rest of its row takes 44 of a terminal's 80


def show_status(home: Home, out: Console) -> None:
    """Print the state of services, runs, models and disk; what cannot be asked is said, and is no error."""
    up = running(home)
    api = server(up)
    rows: list[tuple[str, str]] = [("home", str(home.root)), ("luna up", _of_up(up))]
    runs: Sequence[dict[str, Any]] = ()
    if api is None:
        rows.append(("Prefect", "no server; `luna up` starts one"))
    elif not server_answers(api.url):
        rows.append(("Prefect", f"{without_credentials(api.url)} does not answer"))
    else:
        rows.append(("Prefect", f"{without_credentials(api.url)} answers"))
        try:
            rows += of_server(api)
            runs = last_runs(api)
        except httpx.HTTPError as error:
            rows.append(("", f"it refuses to tell more: {_first_line(error)}"))
    try:
        rows += of_models(home)
    except LunaError as error:
        rows.append(("champion", str(error)))
    rows += [("spooled", spooled(home)), ("disk", disk(home))]
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    out.print(table)
    if runs:
        out.print()
        out.print(runs_table(runs))


def server(up: Running | None) -> PrefectApi | None:
    """The server to ask: the one of the `luna up` that runs, else the one that Prefect's settings name."""
    configured = PrefectApi.configured()
    if up is None or not up.prefect or (configured and without_credentials(configured.url) == up.prefect):
        return configured
    return PrefectApi.at(up.prefect)


def of_server(api: PrefectApi) -> list[tuple[str, str]]:
    """What a server tells of workers, queues, the next run and the GPUs, a row each.

    Raises:
        httpx.HTTPError: it does not answer, or refuses.
    """
    online = [str(worker["name"]) for worker in _of_pool(api, "workers") if worker["status"] == "ONLINE"]
    queues = [f"{queue['name']} ({queue['status'].lower().replace('_', ' ')})" for queue in _of_pool(api, "queues")]
    rows = [("workers", ", ".join(online) or "none is online"), ("queues", ", ".join(sorted(queues)) or NONE)]
    scheduled = api.runs(
        {"state": {"type": {"any_": ["SCHEDULED"]}}, "deployment_id": {"is_null_": False}},
        flows={"name": {"any_": [FLOW]}},
        sort="NEXT_SCHEDULED_START_TIME_ASC",
        limit=1,
    )
    rows.append(("next run", _next(scheduled[0], api) if scheduled else "nothing is scheduled"))
    limits = api.post("v2/concurrency_limits/filter", {"limit": 200})
    gpus = [limit for limit in limits if limit["name"].startswith(GPU_LIMITS)]
    taken = [f"{limit['active_slots']} of {limit['limit']} in use ({limit['name']})" for limit in gpus]
    return [*rows, ("GPU slots", "; ".join(taken) or "no GPU")]


def last_runs(api: PrefectApi) -> list[dict[str, Any]]:
    """The last runs of our deployments that have begun, the latest first.

    Raises:
        httpx.HTTPError: the server does not answer, or refuses.
    """
    return api.runs(
        {"deployment_id": {"is_null_": False}, "start_time": {"is_null_": False}},
        flows={"name": {"any_": [FLOW]}},
        sort="START_TIME_DESC",
        limit=LAST_RUNS,
    )


def runs_table(runs: Sequence[dict[str, Any]]) -> Table:
    """A row for each run."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("last runs", no_wrap=True, overflow="ellipsis", max_width=NAME_CHARACTERS)
    for name in ("state", "started", "took"):
        table.add_column(name, no_wrap=True)
    for run in runs:
        table.add_row(
            run["name"],
            run["state"]["name"],
            _when(run["start_time"]),
            in_words(float(run["estimated_run_time"] or run["total_run_time"] or 0)),
        )
    return table


def of_models(home: Home) -> list[tuple[str, str]]:
    """Which bundle is the champion and which the demo's, since when.

    Raises:
        LunaError: MLflow refuses us, or its database is damaged.
    """
    from tasks.connection import answers, shown_uri, tracking_uri

    uri = tracking_uri(home)
    if not os.environ.get("MLFLOW_TRACKING_URI") and not home.mlflow_db.exists():
        return [("champion", f"{NONE}: nothing was trained here yet")]
    if not answers(uri):
        return [("champion", f"MLflow does not answer: {shown_uri(home)}")]
    from tasks.promotion import list_bundles

    bundles = list_bundles(home)
    rows = []
    for role in ROLES:
        bearer = next((one for one in bundles if role in one.aliases), None)
        if bearer is None:
            # One that learned from phantoms is never a champion.
            could = sum(one.fields.get("origin", "phantom") != "phantom" for one in bundles)
            hint = f"; {could} registered: luna model promote URI" if role == "champion" and could else ""
            rows.append((role, f"{NONE}{hint}"))
            continue
        moves = [line for line in bearer.history if f" @{role} " in line and " no longer " not in line]
        since = f" since {moves[-1].partition(' ')[0][:10]}" if moves else ""
        rows.append((role, f"{bearer.uri}{since}"))
    return rows


def spooled(home: Home) -> str:
    """What runs could not tell MLflow yet."""
    waiting = sorted(home.spool.glob("*.jsonl"))
    if not waiting:
        return "nothing waits for MLflow"
    records = sum(len(path.read_bytes().splitlines()) for path in waiting)
    return f"{records} records of {len(waiting)} runs wait for MLflow"


def disk(home: Home) -> str:
    """How much room is left where the home lies."""
    there = next(folder for folder in (home.root, *home.root.parents) if folder.exists())
    usage = shutil.disk_usage(there)
    return f"{usage.free / 1e9:.1f} GB of {usage.total / 1e9:.0f} GB free"


def in_words(seconds: float) -> str:
    """A length of time, two units of it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def _of_up(up: Running | None) -> str:
    if up is None:
        return "does not run on this home"
    return f"runs (process {up.process}); MLflow {up.mlflow}" if up.process else "is just starting"


def _of_pool(api: PrefectApi, what: str) -> list[dict[str, Any]]:
    """The pool's workers or queues; none where nobody has made the pool yet."""
    try:
        return list(api.post(f"work_pools/{POOL}/{what}/filter", {}))
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.NOT_FOUND:
            raise
        return []


def _next(run: dict[str, Any], api: PrefectApi) -> str:
    deployment = api.get(f"deployments/{run['deployment_id']}")["name"]
    late = " (late)" if run["state"]["name"] == "Late" else ""
    return f"{FLOW}/{deployment} {_when(run['next_scheduled_start_time'] or run['expected_start_time'])}{late}"


def _when(stamp: str | None) -> str:
    """A moment in this machine's time."""
    return f"{datetime.fromisoformat(stamp).astimezone():%Y-%m-%d %H:%M}" if stamp else ""


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
