"""Chromium without a window, for what looks at the reader's page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
)  # fmt: skip


def missing() -> str | None:
    """What there is no browser for; None when one can be opened."""
    if not find_spec("playwright"):
        return "playwright is not installed"
    return None if _program() else f"no Chromium found ({', '.join(CHROMIUM)})"


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of Playwright's.

    While it is open an event loop runs in this thread: a second browser is refused, and what asks whether it is
    called from asynchronous code, as Prefect does, is told yes. Close it before anything else is tested.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=_program(), args=FLAGS)
        yield browser
        browser.close()


def _program() -> str | None:
    return next(filter(None, map(shutil.which, CHROMIUM)), None)
