"""A process that is killed at a moment of its own choosing: for the scripts that fork one for every moment."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any


def killed_at(moment: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """What stands in for some functions and counts their calls: at this one the process is killed before it is made."""
    count = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return call

    return counted
