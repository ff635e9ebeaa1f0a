"""Where are the Prefect server and MLflow, whose are they, and who is told?

A server of somebody else's, named by PREFECT_API_URL or MLFLOW_TRACKING_URI, is used as it is.

A terminal in the project's folder finds our own server by itself: while it runs, `luna up` keeps a `prefect.toml` there
with the server's address, which the `prefect` and `luna` commands read. It is taken away again at the end, since a
configured server that is not there would only keep others waiting. A `prefect.toml` of somebody else is left as it
is, and then the address goes into the environment, as `luna up` shows.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from flows.prefect_api import PrefectApi
from flows.services import UpError
from flows.settings import server_answers
from lungml.files import write_text_atomic
from lungml.home import Home
from lungml.secrets import without_credentials

LOOK_S = 0.3  # `luna status` holds the lock for a moment, to look who has it
ADDRESS_MARK = "# Written by `luna up`, which takes it away when it stops.\n"


@dataclass(frozen=True)
class Servers:
    """Where the two servers are, and which of them are ours to start.

    Attributes:
        prefect: the Prefect server's API.
        prefect_ui: its pages.
        mlflow_ui: MLflow's pages.
        own_prefect: we start the Prefect server.
        own_mlflow: we start the MLflow UI.
    """

    prefect: PrefectApi
    prefect_ui: str
    mlflow_ui: str
    own_prefect: bool
    own_mlflow: bool


def find_servers(host: str, prefect_port: int, mlflow_port: int, project: Path) -> Servers:
    """Which servers to start, and which to use that others run: those that a person has named, if they answer."""
    own = f"http://{host}:{prefect_port}"
    other = PrefectApi.configured()
    if other and (other.url == f"{own}/api" or _is_announced(project, other.url) or not server_answers(other.url)):
        other = None
    tracking = os.environ.get("MLFLOW_TRACKING_URI", "")
    served = tracking.startswith(("http://", "https://"))
    return Servers(
        prefect=other or PrefectApi.at(f"{own}/api"),
        prefect_ui=without_credentials(other.url).removesuffix("/api") if other else own,
        mlflow_ui=without_credentials(tracking).rstrip("/") if served else f"http://{host}:{mlflow_port}",
        own_prefect=other is None,
        own_mlflow=not served,
    )


@dataclass(frozen=True)
class Running:
    """A `luna up` that runs.

    Attributes:
        prefect: the address of the Prefect server's API, without credentials; empty while it is not known yet.
        mlflow: MLflow's pages.
        process: its number.
    """

    prefect: str
    mlflow: str
    process: int


def running(home: Home) -> Running | None:
    """The `luna up` that runs on a home; None where none does."""
    path = home.root / "up.lock"
    if not path.exists():
        return None
    with path.open() as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            with suppress(ValueError, TypeError):
                return Running(**json.load(handle))
            return Running("", "", 0)
    return None


@contextmanager
def only_one(home: Home) -> Iterator[Callable[[Servers], None]]:
    """Hold the home's lock, so that one `luna up` at a time runs on it; a killed one lets go.

    Yields:
        what writes down where the servers are, for those who come after.
    """
    home.root.mkdir(parents=True, exist_ok=True)
    path = home.root / "up.lock"
    with path.open("a+") as handle:
        if not _locked(handle):
            first = running(home) or Running("", "", 0)
            where = f"Prefect {first.prefect.removesuffix('/api')}, MLflow {first.mlflow} (process {first.process})"
            raise UpError(f"`luna up` runs already on {home.root}: {where if first.process else 'it is just starting'}")

        def announce(servers: Servers) -> None:
            prefect = without_credentials(servers.prefect.url)
            handle.truncate(0)
            handle.write(json.dumps(asdict(Running(prefect, servers.mlflow_ui, os.getpid()))))
            handle.flush()

        yield announce
        handle.truncate(0)


def _locked(handle: IO[str]) -> bool:
    for pause_s in (LOOK_S, 0.0):
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(pause_s)
    return False


def _is_announced(project: Path, api: str) -> bool:
    """Whether it was a `luna up`, not a person, that named a server: that one is another home's."""
    paths = [folder / "prefect.toml" for folder in (project, Path.cwd())]  # Prefect reads the current folder's
    named = any(path.exists() and path.read_text() == _announcement(api) for path in paths)
    return named and not os.environ.get("PREFECT_API_URL")


def _announcement(api: str) -> str:
    return f"{ADDRESS_MARK}[api]\nurl = {json.dumps(api)}\n"


@contextmanager
def announced(project: Path, servers: Servers) -> Iterator[bool]:
    """Keep our server's address in the project's prefect.toml; False where another one is in the way.

    The address of somebody else's server is where the commands found it just now.
    """
    path = project / "prefect.toml"
    if not servers.own_prefect:
        yield True
        return
    if path.exists() and not path.read_text().startswith(ADDRESS_MARK):
        yield False
        return
    try:
        write_text_atomic(path, _announcement(servers.prefect.url))
    except OSError:  # a folder that cannot be written to
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
