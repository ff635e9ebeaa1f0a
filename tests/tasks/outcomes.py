"""Did a task work, or find its work done?"""

from __future__ import annotations

from typing import Any

from prefect.states import State


def done(result: Any) -> Any:
    """The result of a task that had something to do."""
    assert not isinstance(result, State)
    return result


def kept(result: Any) -> Any:
    """The result of a task that had nothing to do."""
    assert isinstance(result, State)
    assert result.name == "Cached"
    return result.result()
