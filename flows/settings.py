"""How are Prefect and MLflow set up for one `luna` process?"""

from __future__ import annotations

import os
from pathlib import Path

import httpx

from lungml.home import Home

SERVER_TIMEOUT_S = 2.0


def configure_process(home: Home) -> None:
    """Set what Prefect, MLflow and PyTorch read from the environment; what a person has set is left alone.

    Call it before any of them is imported.
    """
    defaults = {
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_HOME": str(home.root / "prefect"),
        "PREFECT_LOCAL_STORAGE_PATH": str(home.prefect_results),
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "lungml",
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "THP_MEM_ALLOC_ENABLE": "1",  # huge pages: page faults cost half of the U-Net's time on a CPU without them
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # Without the folder, Prefect's server fails only after three minutes, and with a page of text.
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)


def server_answers(url: str) -> bool:
    """Whether a Prefect server answers at an API URL."""
    try:
        return httpx.get(url.rstrip("/") + "/health", timeout=SERVER_TIMEOUT_S).is_success
    except httpx.HTTPError:
        return False
