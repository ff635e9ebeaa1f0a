"""Is MLflow there to be asked, and does an error say that it was not?"""

from __future__ import annotations

import os
import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import httpx

from lungml.errors import LunaError, one_line
from lungml.secrets import without_secrets

# Telemetry starts while MLflow is imported, so this cannot wait; a worker or a notebook does not come through the
# `luna` command and must get the same answers.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one for every file of a model
# By default one request to a server that is away takes minutes; we wait ourselves, and say so.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault(
    "MLFLOW_HTTP_REQUEST_TIMEOUT", "60"
)  # between two bytes; a big model's last takes a while to store

import sqlalchemy
from mlflow.exceptions import MlflowException, RestException
from mlflow.utils.credentials import get_default_host_creds

PROBE_S = 3.0  # a server that does not answer by then is away
LOCK_S = 2.0  # a database that is held for longer is away; one write takes milliseconds
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
PASSING = {
    "TEMPORARILY_UNAVAILABLE",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "DEADLINE_EXCEEDED",
    "CANCELLED",
    "ABORTED",
}
REFUSALS = {"UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED"}
OVERLOAD_STATUS = {408, 429}


class TrackingError(LunaError):
    """A model or bundle is not there or not what it was asked for as; the message is one line."""


class TrackingDown(ConnectionError):
    """MLflow did not answer for as long as we wait; it passes, so that another try may do. One line."""


def answers(uri: str) -> bool:
    """Whether MLflow is there to be asked, found out within seconds; True where that cannot be told without asking.

    Raises:
        TrackingError: a file that is no SQLite database.
    """
    if uri.startswith(("http://", "https://")):
        return _server_answers(uri)
    try:
        url = sqlalchemy.make_url(uri)
    except sqlalchemy.exc.ArgumentError:
        return True
    kind = url.drivername.partition("+")[0]
    if kind == "sqlite":
        return _database_is_free(Path(url.database)) if url.database else True
    if kind in PORTS and url.host:
        try:
            socket.create_connection((url.host, url.port or PORTS[kind]), PROBE_S).close()
        except OSError:
            return False
    return True


def is_away(error: BaseException) -> bool:
    """Whether an error says that MLflow, or its database, was not there; what it refuses is not that."""
    if isinstance(error, TrackingDown | LunaError):
        return False
    status = getattr(getattr(error, "response", None), "status_code", None)  # as requests' errors carry it
    if status is not None:
        return status >= 500 or status in OVERLOAD_STATUS
    if isinstance(error, MlflowException | sqlalchemy.exc.SQLAlchemyError) and "sqlite3." in str(error):
        return "is locked" in str(error)
    if isinstance(error, MlflowException):
        return error.error_code in PASSING or is_odd(error)
    # Those of requests are OSErrors of their own, and told by the module that they come from.
    from_requests = isinstance(error, OSError) and type(error).__module__.startswith("requests.")
    return from_requests or isinstance(error, ConnectionError | TimeoutError | sqlalchemy.exc.OperationalError)


def first_line(error: BaseException) -> str:
    """What an error says, on one line and without secrets."""
    lines = str(error).strip().splitlines()
    return one_line(without_secrets(lines[0] if lines else type(error).__name__))[:300]


def is_odd(error: BaseException) -> bool:
    """A server's own failure, or none of its words at all: the connection, or a fault that stays."""
    if getattr(error, "error_code", "") == "INTERNAL_ERROR":
        return isinstance(error, RestException) or str(error).startswith("API request")
    return getattr(getattr(error, "response", None), "status_code", 0) >= 500


def _server_answers(uri: str) -> bool:
    trusted = get_default_host_creds(uri).verify  # True, False, or the certificate's file
    try:
        answer = httpx.get(uri.rstrip("/") + "/health", timeout=PROBE_S, verify=trusted)
    except (httpx.HTTPError, httpx.InvalidURL, OSError):
        return False
    return answer.status_code < 500  # one that asks who is there, or has no such page, does answer


def _database_is_free(path: Path) -> bool:
    """Whether a SQLite database can be written to at this moment; one that is not there yet can."""
    if not path.exists():
        return True
    try:
        with closing(sqlite3.connect(path, timeout=LOCK_S, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "busy" in str(error):
            return False
        if "readonly" in str(error):  # it may still be read
            return True
        raise TrackingError(f"{path}: MLflow's database cannot be used ({error}); see to its folder") from error
    except sqlite3.DatabaseError as error:
        raise TrackingError(
            f"{path}: is no SQLite database, or a damaged one ({error}); put it aside or restore a copy of it"
        ) from error
    return True
