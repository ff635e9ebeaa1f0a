"""A process, or a piece of work, that is killed at a moment of its own choosing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(
    moment: int, kill: Callable[[], object] = kill_self
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """What stands in for some functions and counts their calls: before the one of this number it kills, as scripts do
    that fork a process for every moment."""
    count = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == moment:
                kill()
            return real(*arguments, **named)

        return call

    return counted
