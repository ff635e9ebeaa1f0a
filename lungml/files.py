"""How does a file appear whole or not at all?"""

from __future__ import annotations

import csv
import fcntl
import io
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_text_atomic(path: Path, text: str) -> None:
    """Write a UTF-8 text file that appears whole or not at all, replacing an older one.

    Missing folders are made. A reader sees the old content or the new, never a part, also when the
    machine loses power: the bytes are on disk before the name is.

    Raises:
        OSError: a full disk, no permission; what was at `path` is still there and nothing new is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        with beside.open("x", encoding="utf-8", newline="") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_csv_atomic(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a csv file that appears whole or not at all; floats keep their exact value.

    Raises:
        ValueError: a row is not as wide as the header.
        OSError: as `write_text_atomic`.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise ValueError(f"row {number} of {path} has {len(row)} fields, its header {len(header)}")
        writer.writerow(row)
    write_text_atomic(path, text.getvalue())


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path`, so that one process or thread at a time changes it.

    The lock is a file beside, `<name>.lock`, which stays: a process that dies lets go of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _sync_folder(folder: Path) -> None:
    """Put the new name itself on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
