"""Which Prefect server hears a run when none is configured? One of this process's own, that Ctrl-C does not end first.

A terminal sends Ctrl-C to all that was started from it. Prefect's temporary server would end at once, and the run,
which has its own end to report, would try for minutes to reach it.
"""

from __future__ import annotations

import signal
import threading

from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings


def start_own_server() -> str:
    """Start Prefect's temporary server deaf to Ctrl-C, unless it runs already; Prefect ends it with this process.

    Returns:
        its API URL.

    Raises:
        RuntimeError: it did not start in time.
    """
    server, failed = SubprocessASGIServer(), []

    def start() -> None:
        # A child begins with the signals blocked that are blocked in the thread which starts it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            server.start()
        except Exception as error:
            failed.append(error)

    # In a thread, so that Ctrl-C is heard here while it starts.
    starting = threading.Thread(target=start, daemon=True)
    starting.start()
    starting.join()
    if failed:
        raise failed[0]
    return server.api_url


def ready_server() -> None:
    """Have a server that hears the run about to begin: the configured one, or our own."""
    if not get_current_settings().api.url:
        start_own_server()
