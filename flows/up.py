"""How does the grown-up set-up start and stop: Prefect server, work pool, deployments, worker and MLflow UI?

Everything `luna up` starts is a child of it, in a session of its own, with its output under `logs/`. When one ends,
all are stopped; when `luna up` is stopped, none stays.

A terminal in the project's folder finds the server by itself: while it runs, `luna up` keeps a `prefect.toml` there
with the server's address, which the `prefect` and `luna` commands read. It is taken away again at the end, since a
configured server that is not there would only keep others waiting. A `prefect.toml` of somebody else is left as it
is, and then the address goes into the environment, as the printed command shows.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from flows.settings import server_answers
from lungml.errors import LunaError
from lungml.files import write_text_atomic
from lungml.home import Home

POOL = "luna"
DEPLOYMENT = "luna/end-to-end"
START_TIMEOUT_S = 180.0  # a busy two-core machine takes most of a minute
STOP_TIMEOUT_S = 15.0  # what is still there then is killed
POLL_S = 0.5
ADDRESS_MARK = "# Written by `luna up`, which takes it away when it stops.\n"


class UpError(LunaError):
    """The services cannot start or one of them ended; the message is one line."""


class _Stop(BaseException):
    """Somebody asked `luna up` to end."""


@dataclass(frozen=True)
class Service:
    """A running child.

    Attributes:
        name: as a person knows it.
        process: leader of its own session.
        log: its stdout and stderr.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path


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
        UpError: when a port is taken, `luna up` runs already, or a service does not start or ends.
    """
    say = console or Console(highlight=False)
    project = _project() if project is None else project
    prefect_url, mlflow_url = f"http://{host}:{prefect_port}", f"http://{host}:{mlflow_port}"
    api = f"{prefect_url}/api"
    env = {
        **os.environ,
        "PREFECT_API_URL": api,
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "2",  # 10 s by default: a run would seem to hang at first
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "LUNA_HOME": str(home.root),
        "PWD": str(project),  # prefect.yaml keeps it as the folder that runs start in
        "PYTHONUNBUFFERED": "1",
    }
    with _only_one(home, {"Prefect": prefect_url, "MLflow": mlflow_url}), Services(home, project, env) as services:
        _check_port(host, prefect_port, "--prefect-port")
        _check_port(host, mlflow_port, "--mlflow-port")
        try:
            say.print("starting (seconds; up to a minute on a busy machine)")
            services.start("Prefect server", "prefect", "server", "start", "--host", host, "--port", str(prefect_port))
            services.start("MLflow UI", "mlflow", *_mlflow_ui(home, host, mlflow_port))
            services.wait("Prefect server", lambda: server_answers(api))
            end_runs(api)  # what a killed `luna up` left behind
            if not _pool_exists(api):  # one that exists keeps the settings somebody gave it
                services.run("work-pool", "prefect", "work-pool", "create", POOL, "--type", "process")
            services.run("deploy", "prefect", "deploy", "--all")
            worker = f"luna-{os.getpid()}"
            services.start(
                "worker", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", worker
            )
            services.wait("worker", lambda: _worker_is_online(api, worker))
            services.wait("MLflow UI", lambda: _is_healthy(f"{mlflow_url}/health"))
            with _announced(project, api) as found:
                _show(say, home, prefect_url, mlflow_url, project if found else None)
                services.watch()
        except _Stop:
            say.print("stopping")
        finally:
            services.stop("worker")
            end_runs(api)
    return 0


def end_runs(api: str) -> None:
    """Mark the work pool's runs that lost their worker as Crashed, which `prefect flow-run retry` can take up.

    Left as Running they would hold their deployment's concurrency slot, and later runs would wait for ever.
    """
    unfinished = {
        "work_pools": {"name": {"any_": [POOL]}},
        "flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}},
    }
    crashed = {"type": "CRASHED", "message": "`luna up` ended"}
    try:
        runs = httpx.post(f"{api}/flow_runs/filter", json=unfinished, timeout=10.0).raise_for_status().json()
        for run in runs:
            httpx.post(f"{api}/flow_runs/{run['id']}/set_state", json={"state": crashed, "force": True}, timeout=10.0)
    except httpx.HTTPError:
        return  # no server any more; the next start does it


class Services:
    """The children, under one roof: on leaving the block none of them, nor of their own children, is left.

    Inside the block Ctrl-C, SIGTERM and SIGHUP raise nothing at once; they are answered between two steps, so that no
    child can be started and forgotten.
    """

    def __init__(self, home: Home, project: Path, env: Mapping[str, str]) -> None:
        self._home, self._project, self._env = home, project, dict(env)
        self._services: list[Service] = []
        self._stopping = False
        self._handlers: dict[signal.Signals, Any] = {}
        self._book = home.logs / "services.json"  # (pid, start time) of each

    def __enter__(self) -> Services:
        def on_signal(_number: int, _frame: FrameType | None) -> None:
            self._stopping = True

        self._home.logs.mkdir(parents=True, exist_ok=True)
        self._end_orphans()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._handlers[number] = signal.signal(number, on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            stop(self._services)
            self._book.unlink(missing_ok=True)
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def start(self, name: str, module: str, *arguments: str) -> None:
        """Run `python -m module arguments` in the background."""
        self._services.append(self._spawn(name, module, arguments))
        pids = [service.process.pid for service in self._services if service.process.poll() is None]
        write_text_atomic(self._book, json.dumps([[pid, psutil.Process(pid).create_time()] for pid in pids]))

    def stop(self, name: str) -> None:
        """End one service ahead of the others, if it was started."""
        stop([service for service in self._services if service.name == name])

    def run(self, name: str, module: str, *arguments: str) -> None:
        """Run `python -m module arguments` to its end."""
        service = self._spawn(name, module, arguments)
        try:
            while (status := service.process.poll()) is None:
                self.check()
                time.sleep(POLL_S / 5)
        finally:
            stop([service])
        if status != 0:
            command = shlex.join([module, *arguments])
            raise UpError(f"`{command}` failed{_last_words(service.log)}; its output: {service.log}")

    def wait(self, name: str, ready: Callable[[], bool]) -> None:
        """Wait until a service is ready."""
        end = time.monotonic() + START_TIMEOUT_S
        while not ready():
            self.check()
            if time.monotonic() > end:
                log = next(service.log for service in self._services if service.name == name)
                raise UpError(f"the {name} did not start within {START_TIMEOUT_S:.0f} s; its output: {log}")
            time.sleep(POLL_S)
        self.check()

    def watch(self) -> NoReturn:
        """Wait until somebody ends `luna up`, or a service ends of itself."""
        while True:
            self.check()
            time.sleep(POLL_S)

    def check(self) -> None:
        """Go on only while nobody has asked for the end and every service lives."""
        if self._stopping:
            raise _Stop
        for service in self._services:
            status = service.process.poll()
            if status is not None:
                words = _last_words(service.log) if status > 0 else ""
                raise UpError(f"the {service.name} ended (exit status {status}){words}; its output: {service.log}")

    def _end_orphans(self) -> None:
        """End what a killed `luna up` could not end itself."""
        left = []
        for pid, started in json.loads(self._book.read_text()) if self._book.exists() else []:
            family = _family(pid)
            if any(process.pid == pid and process.create_time() != started for process in family):
                continue  # another program has the number now
            left += family
        _end(left)

    def _spawn(self, name: str, module: str, arguments: Sequence[str]) -> Service:
        log = self._home.logs / f"{name.lower().replace(' ', '-')}.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=self._project,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches `luna up` alone, which then stops them in order
            )
        return Service(name, process, log)


def stop(services: Sequence[Service]) -> None:
    """End services and all their descendants: politely, the last first, and by force what is left after a while."""
    families = [process for service in services for process in _family(service.process.pid)]
    for service in reversed(services):
        if service.process.poll() is None:
            service.process.terminate()
            try:
                service.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                service.process.kill()
    _, left = psutil.wait_procs(families, timeout=1.0)
    _end(left)
    for service in services:
        service.process.wait()


def _end(processes: Sequence[psutil.Process]) -> None:
    for act in (psutil.Process.terminate, psutil.Process.kill):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                act(process)
        _, processes = psutil.wait_procs(processes, timeout=STOP_TIMEOUT_S)


def _project() -> Path:
    own = Path(__file__).resolve().parents[1]
    folder = own if (own / "prefect.yaml").exists() else Path.cwd()
    if not (folder / "prefect.yaml").exists():
        raise UpError(f"no prefect.yaml in {folder}: start `luna up` in the project's folder")
    return folder


def _mlflow_ui(home: Home, host: str, port: int) -> list[str]:
    # This import takes seconds, which only this command needs to pay.
    from tasks.tracking import tracking_uri

    address = ["--host", host, "--port", str(port), "--workers", "1"]
    return ["ui", "--backend-store-uri", tracking_uri(home), *address]


def _pool_exists(api: str) -> bool:
    return httpx.get(f"{api}/work_pools/{POOL}", timeout=60.0).status_code != httpx.codes.NOT_FOUND


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0).is_success
    except httpx.HTTPError:
        return False


def _worker_is_online(api: str, name: str) -> bool:
    try:
        answer = httpx.post(f"{api}/work_pools/{POOL}/workers/filter", json={}, timeout=5.0)
        return answer.is_success and any(
            (worker["name"], worker["status"]) == (name, "ONLINE") for worker in answer.json()
        )
    except httpx.HTTPError:
        return False


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f": {lines[-1][:200]}" if lines else ""


def _check_port(host: str, port: int, option: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just closed is free
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UpError(
                f"port {port} on {host} cannot be used ({error.strerror}); choose another: {option}"
            ) from error


@contextmanager
def _only_one(home: Home, urls: Mapping[str, str]) -> Iterator[None]:
    """Hold the home's lock, so that one `luna up` at a time runs on it; a killed one lets go."""
    home.root.mkdir(parents=True, exist_ok=True)
    path = home.root / "up.lock"
    with path.open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.seek(0)
            raise UpError(f"`luna up` runs already on {home.root}: {handle.read().strip()}") from error
        handle.truncate(0)
        handle.write(", ".join(f"{name} {url}" for name, url in urls.items()) + f" (process {os.getpid()})")
        handle.flush()
        yield
        handle.truncate(0)


@contextmanager
def _announced(project: Path, api: str) -> Iterator[bool]:
    """Keep the server's address in the project's prefect.toml; False where another one is in the way."""
    path = project / "prefect.toml"
    if path.exists() and not path.read_text().startswith(ADDRESS_MARK):
        yield False
        return
    try:
        write_text_atomic(path, f"{ADDRESS_MARK}[api]\nurl = {json.dumps(api)}\n")
    except OSError:  # a folder that cannot be written to
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)


def _show(say: Console, home: Home, prefect_url: str, mlflow_url: str, project: Path | None) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("Prefect", prefect_url)
    table.add_row("MLflow", f"{mlflow_url}/#/experiments?workflowType=machine_learning")
    table.add_row("logs", str(home.logs))
    say.print(table, soft_wrap=True)
    command = f"prefect deployment run {DEPLOYMENT} --watch"
    if project is None:
        say.print(f"run the pipeline:  PREFECT_API_URL={prefect_url}/api {command}", soft_wrap=True)
    else:
        say.print(f"run the pipeline, in {project}:  {command}", soft_wrap=True)
        say.print(f"from elsewhere:  PREFECT_API_URL={prefect_url}/api {command}", soft_wrap=True)
    say.print("Ctrl-C stops everything")


def _family(leader: int) -> list[psutil.Process]:
    """A session's leader with its descendants, and those whose parent is gone but who still are of its session."""
    family = set()
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(leader)
        family = {process, *process.children(recursive=True)}
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == leader:
                family.add(process)
    return list(family)
