"""Where do the commands print, and how does a `luna` process begin?"""

from __future__ import annotations

import io
import sys

from rich.console import Console
from rich.markup import escape

from flows.settings import configure_process
from lungml.home import Home

MAX_SEED = 2**32 - 1

out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False)


def print_note(line: str) -> None:
    """Tell in one line what a person should know beside the answer."""
    err.print(f"[yellow]note:[/] {escape(line)}", soft_wrap=True)


def start(*, flows: bool = True) -> Home:
    """Configure this process and say where its artifacts live; call it before Prefect or MLflow is imported.

    Args:
        flows: whether a flow will run, which needs a Prefect server.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # one that cannot write a scan's name shows it escaped
            stream.reconfigure(errors="backslashreplace")
    home = Home.from_env()
    configure_process(home, flows=flows)
    return home
