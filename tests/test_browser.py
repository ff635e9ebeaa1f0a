from __future__ import annotations

import asyncio

import pytest

from tests import browser


@pytest.mark.slow
@pytest.mark.skipif(browser.missing() is not None, reason=f"{browser.missing()}")
def test_a_closed_browser_leaves_no_event_loop_running() -> None:
    for _ in range(2):
        with browser.chromium() as chromium:
            assert chromium.version
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
