"""How does the grown-up set-up start and stop: Prefect server, work pool, deployments, worker and MLflow UI?

Everything `luna up` starts is a child of it, in a session of its own, with its output under `logs/`. One that dies is
started again, and the runs that its death cost are taken up again; when `luna up` is stopped, none of them stays.

Servers that others run are used instead of our own, see `flows.servers`: then only what they lack is started here.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.prefect_api import CPU_QUEUE, GPU_QUEUE, POOL, PrefectApi
from flows.servers import Servers, announced, find_servers, only_one
from flows.services import POLL_S, START_TIMEOUT_S, Services, StopAskedError, UpError, end_orphans
from flows.settings import server_answers
from lungml.files import write_text_atomic
from lungml.home import Home
from lungml.secrets import without_credentials
from tasks.gpu_locks import gpus_here

DEPLOYMENT = "luna/end-to-end"
Answer = TypeVar("Answer")
VACUUM = "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"
LEASES = "prefect.server.concurrency.lease_storage.filesystem"


def up(
    home: Home,
    *,
    host: str = "127.0.0.1",
    prefect_port: int = 4200,
    mlflow_port: int = 5000,
    project: Path | None = None,
    console: Console | None = None,
) -> int:
    """Start everything, deploy, and watch over it until Ctrl-C or SIGTERM; returns 0 after such a stop.

    Args:
        home: holds the databases, results and logs.
        host: address that the services listen on.
        prefect_port: of the Prefect server and its UI.
        mlflow_port: of the MLflow UI.
        project: folder of the `prefect.yaml` to deploy; this package's own when not given, else the current one.
        console: where the addresses are printed.

    Raises:
        UpError: when a port is taken, `luna up` runs already, or a service does not start or dies again and again.
    """
    out = console or Console(highlight=False)

    def say(line: str) -> None:
        out.print(escape(line), soft_wrap=True)

    project = _project() if project is None else project
    with only_one(home) as announce:
        end_orphans(home)
        servers = find_servers(host, prefect_port, mlflow_port, project)
        announce(servers)
        if servers.own_prefect:
            _check_port(host, prefect_port, "--prefect-port")
        if servers.own_mlflow:
            _check_port(host, mlflow_port, "--mlflow-port")
        worker = Worker(home)
        with Services(home, project, _environment(home, project, servers), say) as services:
            try:
                say("starting (seconds; up to a minute on a busy machine)")
                _start_servers(services, servers, host)
                _prepare(services, servers.prefect)
                for line in worker.take_up(servers.prefect):  # what a killed `luna up` left behind
                    say(line)
                services.start("worker", worker.command, lambda: server_answers(servers.prefect.url))
                services.wait("worker", lambda: servers.prefect.is_online(worker.name))
                if servers.own_mlflow:
                    services.wait("MLflow UI", lambda: _is_healthy(f"{servers.mlflow_ui}/health"))
                with announced(project, servers) as found:
                    _show(out, home, servers, project if found else None)
                    services.watch(lambda: _tend(services, servers.prefect, worker, say))
            except StopAskedError:
                say("stopping")
            finally:
                services.stop("worker")
                for line in worker.take_up(servers.prefect, ending=True):
                    say(line)
    return 0


class Worker:
    """The worker that starts our runs: a new name in each life, so that a run tells which life began it."""

    def __init__(self, home: Home) -> None:
        self._ours = f"luna-{_own_id(home)}-"
        self.name = ""

    def command(self) -> list[str]:
        """How it is started this time; runs that ask for a GPU are only taken where there is one."""
        self.name = self._ours + secrets.token_hex(3)
        queues = [CPU_QUEUE, *[GPU_QUEUE] * bool(gpus_here())]
        options = [option for queue in queues for option in ("--work-queue", queue)]
        return ["prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", self.name, *options]

    def take_up(self, api: PrefectApi, *, alive: bool = False, ending: bool = False) -> list[str]:
        """Take up the runs that its former lives lost, see `flows.revive`; says what became of each.

        Args:
            api: of the server; where it does not answer, nothing is done until the next time.
            alive: this life's runs are not lost.
            ending: `luna up` is being ended.
        """
        from flows.revive import take_up_lost  # Prefect's import takes seconds

        try:
            return take_up_lost(api, self._ours, [self.name] if alive else [], ending=ending)
        except httpx.HTTPError:
            return []


def _environment(home: Home, project: Path, servers: Servers) -> dict[str, str]:
    return {
        **os.environ,
        "PREFECT_API_URL": servers.prefect.url,
        "PREFECT_UI_URL": servers.prefect_ui,
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "2",  # 10 s by default: a run would seem to hang at first
        # What a run holds of a limit is lost with a server that keeps it in memory, and the run is ended.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES,
        # Events for 7 days, runs for 90: left alone, Prefect's database only grows, by 19 kB for every task run.
        VACUUM: os.environ.get(VACUUM, "events,flow_runs"),
        "PREFECT_CLIENT_MAX_RETRIES": "7",  # about four minutes: runs outlast a server that is started again
        # Not on a command line, which everybody on the machine can read: it may hold a database's password.
        "MLFLOW_BACKEND_STORE_URI": os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home.mlflow_db}",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "LUNA_MLFLOW_URL": servers.mlflow_ui,  # for links in artifacts
        "LUNA_HOME": str(home.root),
        "PWD": str(project),  # prefect.yaml keeps it as the folder that runs start in
        "PYTHONUNBUFFERED": "1",
    }


def _start_servers(services: Services, servers: Servers, host: str) -> None:
    if servers.own_prefect:
        port = str(urlsplit(servers.prefect_ui).port)
        services.start("Prefect server", ["prefect", "server", "start", "--host", host, "--port", port])
    if servers.own_mlflow:
        services.start("MLflow UI", _mlflow_ui(host, servers.mlflow_ui))
    if servers.own_prefect:
        services.wait("Prefect server", lambda: server_answers(servers.prefect.url))


def _prepare(services: Services, api: PrefectApi) -> None:
    """Pool, queues, the limit of GPUs and the deployments."""
    queue = {"name": GPU_QUEUE, "description": "Runs that need a GPU."}
    if not _asked(services, lambda: _pool_exists(api)):  # one that exists keeps the settings somebody gave it
        services.run("work-pool", ["prefect", "work-pool", "create", POOL, "--type", "process"])
    _asked(services, lambda: api.create(f"work_pools/{POOL}/queues", queue))
    _asked(services, lambda: _settle_gpus(api))
    services.run("deploy", ["prefect", "--no-prompt", "deploy", "--all"])


def _asked(services: Services, ask: Callable[[], Answer]) -> Answer:
    """What a server answers that may be too busy at first: it says 503, or nothing, while it sets itself up."""
    end = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            return ask()
        except httpx.HTTPError as error:
            refused = isinstance(error, httpx.HTTPStatusError) and not error.response.is_server_error
            if refused or time.monotonic() > end:
                raise UpError(f"the Prefect server does not do as asked: {str(error).splitlines()[0]}") from error
        services.check()
        time.sleep(POLL_S)


def _tend(services: Services, api: PrefectApi, worker: Worker, say: Callable[[str], None]) -> None:
    for line in worker.take_up(api, alive=services["worker"].alive):
        say(line)
    with suppress(httpx.HTTPError, OSError):  # the server is being started again, a disk is full: next time
        _settle_gpus(api)


def _project() -> Path:
    own = Path(__file__).resolve().parents[1]
    folder = own if (own / "prefect.yaml").exists() else Path.cwd()
    if not (folder / "prefect.yaml").exists():
        raise UpError(f"no prefect.yaml in {folder}: start `luna up` in the project's folder")
    return folder


def _mlflow_ui(host: str, url: str) -> list[str]:
    return ["mlflow", "ui", "--host", host, "--port", str(urlsplit(url).port), "--workers", "1"]


def _pool_exists(api: PrefectApi) -> bool:
    try:
        api.get(f"work_pools/{POOL}")
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.NOT_FOUND:
            raise
        return False
    return True


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0).is_success
    except httpx.HTTPError:
        return False


def _check_port(host: str, port: int, option: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just closed is free
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UpError(
                f"port {port} on {host} cannot be used ({error.strerror}); choose another: {option}"
            ) from error


def _show(say: Console, home: Home, servers: Servers, project: Path | None) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    theirs = " (somebody else's; used as it is)"
    table.add_row("Prefect", escape(servers.prefect_ui + theirs * (not servers.own_prefect)))
    pages = f"{servers.mlflow_ui}/#/experiments?workflowType=machine_learning"
    table.add_row("MLflow", escape(pages + theirs * (not servers.own_mlflow)))
    queues = (
        f"{CPU_QUEUE} and {GPU_QUEUE}" if gpus_here() else f"{CPU_QUEUE} (no GPU here: {GPU_QUEUE} is left to others)"
    )
    table.add_row("queues", queues)
    table.add_row("logs", escape(str(home.logs)))
    say.print(table, soft_wrap=True)
    command = f"prefect deployment run {DEPLOYMENT} --watch"
    api = without_credentials(servers.prefect.url)
    if project is None:
        say.print(f"run the pipeline:  PREFECT_API_URL={api} {command}", soft_wrap=True)
    else:
        say.print(escape(f"run the pipeline, in {project}:  {command}"), soft_wrap=True)
        say.print(f"from elsewhere:  PREFECT_API_URL={api} {command}", soft_wrap=True)
    say.print("Ctrl-C stops everything")


def _own_id(home: Home) -> str:
    """What tells the workers of this home from those of others, on whatever machine."""
    path = home.root / "worker-id"
    if not path.exists():
        write_text_atomic(path, secrets.token_hex(4))
    return path.read_text().strip()


def _settle_gpus(api: PrefectApi) -> None:
    """Let the server know this machine's GPUs, and give back what dead holders left; nothing where there is none."""
    if not gpus_here():
        return
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from tasks.gpus import ensure_limit, reconcile  # PyTorch's import takes seconds

    with temporary_settings({PREFECT_API_URL: api.url}):
        ensure_limit()
        reconcile()
