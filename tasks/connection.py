"""Does MLflow answer, and what is done until it does?

A tracking server that is away, or a database that another process holds, passes: whoever needs an answer waits for it,
and says so. What MLflow refuses does not pass. What a run logs waits for nobody, see `tasks.spool`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn, TypeVar, cast
from urllib.parse import unquote, urlsplit

import sqlalchemy
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.tracking import set_tracking_uri

from lungml.files import locked
from lungml.home import Home
from lungml.secrets import mask_logs, without_secrets
from lungml.wording import duration
from tasks.child import pause
from tasks.reachable import REFUSALS, TrackingDown, TrackingError, answers, first_line, is_away, is_odd

log = logging.getLogger(__name__)

PATIENCE_S = 1800.0  # LUNA_MLFLOW_PATIENCE_S says otherwise
FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 10.0
ODD_ANSWERS = 4  # tries of what a server that answers fails at: it may be starting, or have a fault that stays

Answer = TypeVar("Answer")


def tracking_uri(home: Home) -> str:
    """Where runs go: MLFLOW_TRACKING_URI when set, else SQLite under the home.

    A server's URL comes without user and password: MLflow puts the URL into its errors. `client_of` hands them on.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home.mlflow_db}"
    if uri.startswith(("http://", "https://")) and "@" in uri:
        parts = urlsplit(uri)
        uri = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return uri


def shown_uri(home: Home) -> str:
    """The tracking URI as it may be printed."""
    return without_secrets(tracking_uri(home))


def client_of(home: Home) -> MlflowClient:
    """A client that waits for MLflow, see `patiently`, in each of its methods.

    Raises:
        TrackingError: what should be MLflow's database is none, or of another version of MLflow.
        TrackingDown: no answer.
    """
    mask_logs()
    _hand_on_password()
    uri = tracking_uri(home)
    home.root.mkdir(parents=True, exist_ok=True)
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback for each try; we tell of it

    def connect() -> MlflowClient:
        if not answers(uri):
            raise ConnectionError("another process holds it" if uri.startswith("sqlite") else "nobody is there")
        with locked(home.mlflow_db):  # two processes must not create the tables at once
            given = os.environ.get("MLFLOW_TRACKING_URI")
            set_tracking_uri(uri)  # models:/ URIs are resolved through the process-wide setting
            if given is None:  # it also writes the environment, where the next home would take it for the user's wish
                os.environ.pop("MLFLOW_TRACKING_URI", None)
            return MlflowClient(tracking_uri=uri)

    try:
        client = patiently(uri, connect)
    except (MlflowException, sqlalchemy.exc.SQLAlchemyError) as error:
        raise TrackingError(
            f"{without_secrets(uri)}: MLflow cannot use it ({first_line(error)}); "
            "mend it, or let MLFLOW_TRACKING_URI name another"
        ) from None
    return cast(MlflowClient, _Patient(client, uri))


def plain(client: MlflowClient) -> MlflowClient:
    """The client itself, which does not wait."""
    return client._client if isinstance(client, _Patient) else client


class _Patient:
    """An MlflowClient whose methods wait for MLflow."""

    def __init__(self, client: MlflowClient, uri: str) -> None:
        self._client, self._uri = client, uri

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not callable(found):
            return found

        @wraps(found)
        def call(*args: Any, **kwargs: Any) -> Any:
            return patiently(self._uri, lambda: found(*args, **kwargs))

        return call


def patiently(uri: str, ask: Callable[[], Answer]) -> Answer:
    """Ask MLflow, and again while it is away, for as long as `patience_s` says.

    What is asked must bear being asked twice: an answer may be lost on its way.

    Raises:
        TrackingDown: it stayed away.
        TrackingError: it does not know us.
    """
    began, pause_s, odd, said = time.monotonic(), FIRST_PAUSE_S, 0, False
    patience = patience_s()
    while True:
        try:
            answer = ask()
        except Exception as error:
            where = without_secrets(uri)
            if getattr(error, "error_code", "") in REFUSALS:
                raise TrackingError(
                    f"{where}: MLflow refuses us ({first_line(error)}); set MLFLOW_TRACKING_USERNAME and "
                    "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
                ) from None
            if not is_away(error):
                _raise_masked(error)
            odd += is_odd(error) and answers(uri)
            if odd >= ODD_ANSWERS:
                _raise_masked(error)
            left_s = patience - (time.monotonic() - began)
            if left_s <= 0:
                raise TrackingDown(
                    f"{where}: MLflow did not answer for {duration(patience)} ({first_line(error)}); start it, or set "
                    "MLFLOW_TRACKING_URI, and run again: finished work is kept"
                ) from None
            if not said:
                log.warning(
                    "no MLflow answers at %s (%s); waiting up to %s: start it, or end this and set MLFLOW_TRACKING_URI",
                    where,
                    first_line(error),
                    duration(patience),
                )
                said = True
            pause(min(pause_s, left_s))
            pause_s = min(2 * pause_s, LAST_PAUSE_S)
        else:
            if said:
                log.warning("MLflow answers again, after %.0f s", time.monotonic() - began)
            return answer


def patience_s() -> float:
    """Seconds to wait for MLflow: LUNA_MLFLOW_PATIENCE_S when set, else half an hour.

    Raises:
        TrackingError: it is no number of seconds.
    """
    said = os.environ.get("LUNA_MLFLOW_PATIENCE_S") or str(PATIENCE_S)
    try:
        seconds = float(said)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise TrackingError(f"LUNA_MLFLOW_PATIENCE_S is {said!r}; give a number of seconds, such as 1800")
    return seconds


def _raise_masked(error: Exception) -> NoReturn:
    """Raise an error again, without secrets where MLflow put one into it."""
    if isinstance(error, MlflowException) and without_secrets(str(error)) != str(error):
        masked = MlflowException(without_secrets(str(error)))
        masked.error_code = error.error_code
        raise masked from None
    raise error


def _hand_on_password() -> None:
    """Put user and password of the tracking server's URL where MLflow reads them too, for this process and its own."""
    parts = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if parts.scheme in ("http", "https") and parts.username is not None:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
