"""How are Prefect, MLflow and PyTorch set up for one `luna` process, and what of their talk reaches the terminal?"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import httpx

from lungml.errors import LunaError
from lungml.home import Home

SERVER_TIMEOUT_S = 2.0


def configure_process(home: Home) -> None:
    """Set what Prefect, MLflow and PyTorch read from the environment; what a person has set is left alone.

    Call it before any of them is imported. A Prefect server is used when PREFECT_API_URL names one that answers;
    else the flow runs with a server of its own inside this process, whose database lies under the home.
    """
    url = os.environ.get("PREFECT_API_URL")
    if url and not server_answers(url):
        logging.getLogger(__name__).warning("no Prefect server answers at %s: running without it", url)
        del os.environ["PREFECT_API_URL"]
    defaults = {
        "PREFECT_HOME": str(home.root / "prefect"),
        "PREFECT_LOCAL_STORAGE_PATH": str(home.prefect_results),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",  # 20 s by default: too short on a busy machine
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_FORMATTERS_STANDARD_FORMAT": "%(asctime)s  %(message)s",
        "PREFECT_LOGGING_FORMATTERS_STANDARD_FLOW_RUN_FMT": "%(asctime)s  %(message)s",
        "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": "%(asctime)s  %(message)s",
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        # Huge pages: without them page faults cost half of the U-Net's time on a CPU.
        "THP_MEM_ALLOC_ENABLE": "1",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # Without the folder, Prefect's server fails only after three minutes, and with a page of text.
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)


def server_answers(url: str) -> bool:
    """Whether a Prefect server answers at an API URL."""
    try:
        return httpx.get(url.rstrip("/") + "/health", timeout=SERVER_TIMEOUT_S).is_success
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


class Story(logging.Filter):
    """Lets through what a person wants to follow: the tasks' own words, warnings, and errors without tracebacks.

    Prefect's lines about states stay in its UI. An error that a person can mend is one line; of any other the
    traceback is printed by Python itself.
    """

    # How Prefect's own lines about a run begin.
    NOISE = ("Finished in state", "Beginning ", "Starting temporary server", "Stopping temporary server", "Created ")

    def filter(self, record: logging.LogRecord) -> bool | logging.LogRecord:
        """Drop Prefect's lines about states; take tracebacks off errors."""
        message = record.getMessage()
        if record.levelno < logging.WARNING:
            return not (message.startswith(self.NOISE) or "docs.prefect.io" in message)
        if record.exc_info and isinstance(record.exc_info[1], LunaError | OSError):
            return False  # the command prints it once, at the end
        return not message.startswith("Finished in state")


def tell_the_story() -> None:
    """Put the filter on Prefect's console output; call it after Prefect was imported."""
    from prefect.logging.handlers import PrefectConsoleHandler

    loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.Logger.manager.loggerDict))]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        if isinstance(handler, PrefectConsoleHandler):
            handler.addFilter(Story())
