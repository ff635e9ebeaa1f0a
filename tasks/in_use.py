"""Does a run work on this home right now, so that nothing may go that it could still want?"""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from lungml.home import Home

LOCK = "in-use.lock"


@contextmanager
def using(home: Home) -> Iterator[None]:
    """Say that a run works on a home; any number of runs can, and a process that dies says so no longer.

    It waits while somebody has the home for themselves, see `alone`.
    """
    try:
        handle = _lock_file(home)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        yield  # of a home that cannot be written nothing can go
        return
    with handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield


@contextmanager
def alone(home: Home) -> Iterator[bool]:
    """Have a home for oneself where no run works on it: whether that is so. Runs that begin meanwhile wait."""
    with _lock_file(home) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _lock_file(home: Home) -> IO[str]:
    home.root.mkdir(parents=True, exist_ok=True)
    return (home.root / LOCK).open("a+")  # for reading, too: over NFS no other file can be held by several at once
