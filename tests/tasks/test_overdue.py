"""What hangs is named while it hangs; what does not is not."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from tasks.overdue import said_when_overdue

LOG = logging.getLogger("of-the-run")


def test_a_read_that_hangs_is_named_again_and_again(caplog: pytest.LogCaptureFixture) -> None:
    with said_when_overdue(LOG, "reading 1.2.3", after_s=0.05):
        deadline = time.monotonic() + 20
        while len(caplog.records) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert [record.getMessage().split(":")[0] for record in caplog.records[:2]] == ["reading 1.2.3 has taken 0 min"] * 2


def test_nothing_is_said_of_what_is_done_or_failed(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        with said_when_overdue(LOG, "reading 1.2.3", after_s=0.2):
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        fail()
    with said_when_overdue(LOG, "reading 1.2.4", after_s=0.2):
        pass
    time.sleep(0.5)
    assert not caplog.records
    assert "overdue" not in {thread.name for thread in threading.enumerate()}
