"""Does a run work on this home right now, so that nothing may go that it could still want?"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from lungml.files import shared_lock, try_lock
from lungml.home import Home

LOCKED = "in-use"  # by in-use.lock


@contextmanager
def using(home: Home) -> Iterator[None]:
    """Say that a run works on a home; any number of runs can, and a process that dies says so no longer.

    It waits while somebody has the home for themselves, see `alone`. Of a home that cannot be written nothing can go:
    there nothing is said.
    """
    with ExitStack() as held:
        try:
            held.enter_context(shared_lock(home.root / LOCKED))
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
        yield


def alone(home: Home) -> AbstractContextManager[bool]:
    """Have a home for oneself where no run works on it: whether that is so. Runs that begin meanwhile wait."""
    return try_lock(home.root / LOCKED)
