"""How are Prefect, MLflow and PyTorch set up for one `luna` process, and what of their talk reaches the terminal?"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import httpx

from lungml.errors import LunaError
from lungml.home import Home
from lungml.secrets import mask_logs

SERVER_TIMEOUT_S = 2.0
# Prefect's server writes task runs one by one unless told otherwise, and falls behind when many are quick.
RECORDER = {
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}
LIBRARY = ("lungml", "tasks", "flows")  # whose own words belong on a run's page


def configure_process(home: Home, *, flows: bool = True) -> None:
    """Set what Prefect, MLflow and PyTorch read from the environment; what a person has set is left alone.

    Call it before any of them is imported. Everything of Prefect's lies under the home, but for the profile somebody
    keeps in ~/.prefect, which is still read.

    Args:
        home: where artifacts live.
        flows: whether a flow will run, which needs a Prefect server.
    """
    profiles = Path.home() / ".prefect" / "profiles.toml"
    if "PREFECT_HOME" not in os.environ and profiles.exists():
        os.environ.setdefault("PREFECT_PROFILES_PATH", str(profiles))
    defaults = {
        "PREFECT_HOME": str(home.root / "prefect"),
        "PREFECT_LOCAL_STORAGE_PATH": str(home.prefect_results),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",  # 20 s by default: too short on a busy machine
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_FORMATTERS_STANDARD_FORMAT": "%(asctime)s  %(message)s",
        "PREFECT_LOGGING_FORMATTERS_STANDARD_FLOW_RUN_FMT": "%(asctime)s  %(message)s",
        "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": "%(asctime)s  %(message)s",
        "PREFECT_LOGGING_EXTRA_LOGGERS": ",".join(LIBRARY),
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",  # they also speak where no flow runs
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as nvidia-smi counts GPUs, whose locks go by it
        # Huge pages: without them page faults cost half of the U-Net's time on a CPU.
        "THP_MEM_ALLOC_ENABLE": "1",
    }
    defaults |= RECORDER
    if flows:  # a temporary server that is stopped while it writes shows its traceback; that of `luna up` has a log
        defaults["PREFECT_SERVER_LOGGING_LEVEL"] = "CRITICAL"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    mask_logs()
    # Without the folder, Prefect's server fails only after three minutes, and with a page of text.
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    if flows:
        _choose_server()


def _choose_server() -> None:
    """Keep to the configured Prefect server if it answers, else to one of this process's own.

    Configured is what Prefect itself reads: PREFECT_API_URL, .env, prefect.toml (`luna up` writes one while it runs),
    pyproject.toml, the active profile. Left alone, Prefect would fail on a server that is not there.
    """
    from prefect.context import refresh_global_settings_context
    from prefect.settings import get_current_settings

    refresh_global_settings_context()
    url = get_current_settings().api.url
    if not url or server_answers(url):
        return
    logging.getLogger(__name__).warning("no Prefect server answers at %s: this process runs its own", url)
    os.environ.pop("PREFECT_API_URL", None)
    refresh_global_settings_context()
    if get_current_settings().api.url:  # a file names it, and only another address outweighs a file
        from flows.temporary_server import start_own_server

        tell_the_story()
        os.environ["PREFECT_API_URL"] = start_own_server()
        refresh_global_settings_context()


def server_answers(url: str) -> bool:
    """Whether a Prefect server answers at an API URL."""
    try:
        answer = httpx.get(url.rstrip("/") + "/health", timeout=SERVER_TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
    # One that asks who is there does answer; Prefect then says itself what is wrong with the key.
    return answer.is_success or answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)


def hear_the_library() -> None:
    """Send what lungml, the tasks and the flows log, from INFO on, to the page of the run that they are part of.

    Prefect gives its handlers to the loggers that PREFECT_LOGGING_EXTRA_LOGGERS names, but no level; and a worker that
    somebody else started, or a notebook, may lack that variable. Levels that a person has set stay.
    """
    from prefect.logging.handlers import APILogHandler

    to_pages = [one for one in logging.getLogger("prefect.extra").handlers if isinstance(one, APILogHandler)]
    for name in LIBRARY:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)
        for handler in to_pages:
            logger.addHandler(handler)  # one that is there already is not added twice


class Story(logging.Filter):
    """Lets through what a person wants to follow: the tasks' own words, warnings, and errors without tracebacks.

    Prefect's lines about states stay in its UI, and so do those of single scans, and warnings of single scans that are
    `summed`: the flow says how many there are of a kind. Of the addresses of a run and its subflows the first is
    printed. An error that a person can mend is one line; of any other the traceback is printed by Python itself.
    """

    # One line per scan is for the UI: on a terminal the flow says how many are done.
    PER_SCAN = ("convert_scan", "build_mask", "cache_crops", "mine_candidates", "find_nodules")
    # How Prefect's own lines about a run begin.
    NOISE = (
        "Finished in state",
        "Beginning ",
        "Running hook ",
        "Hook ",
        "Starting temporary server",
        "Stopping temporary server",
        "Created ",
    )

    def __init__(self) -> None:
        super().__init__()
        self._addressed = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Drop Prefect's lines about states; take tracebacks off errors."""
        message = record.getMessage()
        if message.startswith("View at "):
            first, self._addressed = not self._addressed, True
            return first
        if getattr(record, "summed", False):
            return False
        if record.levelno < logging.WARNING:
            per_scan = getattr(record, "task_name", None) in self.PER_SCAN
            return not (per_scan or message.startswith(self.NOISE) or "docs.prefect.io" in message)
        if record.exc_info and isinstance(record.exc_info[1], LunaError | OSError):
            return False  # the command prints it once, at the end
        return not message.startswith(("Finished in state", "Still processing items", "Crash detected"))


def tell_the_story() -> None:
    """Put the filter on Prefect's console output; call it after Prefect was imported."""
    from prefect.logging.handlers import PrefectConsoleHandler

    logging.getLogger("distributed").setLevel(logging.WARNING)  # Dask tells of every connection
    loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.Logger.manager.loggerDict))]
    story = Story()
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        if isinstance(handler, PrefectConsoleHandler):
            handler.addFilter(story)
