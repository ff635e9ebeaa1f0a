"""How does a file appear whole or not at all?"""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import io
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

HALF_WRITTEN = re.compile(r"\..+\.([0-9a-f]{6})-(\d+)-[0-9a-f]{8}")  # as `beside_path` names: machine, process


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file that appears whole or not at all, replacing an older one.

    Missing folders are made. A reader sees the old content or the new, never a part, also when the
    machine loses power: the bytes are on disk before the name is.

    Raises:
        OSError: a full disk, no permission; it names `path`, where what was there still is and nothing new.
    """
    beside = beside_path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with beside.open("xb") as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def write_text_atomic(path: Path, text: str) -> None:
    """Write a UTF-8 text file, line ends as they are; see `whole_file`."""
    with whole_file(path) as handle:
        handle.write(text.encode("utf-8"))


def check_writable(folder: Path) -> None:
    """See that files can be made in a folder, which need not be there yet; nothing is left of the trial.

    Raises:
        OSError: it is a file, or nothing can be written there; it names the folder.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(folder))
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    trial = beside_path(there / "trial")  # permissions say nothing about a disk that is mounted for reading
    with naming(folder):
        os.close(os.open(trial, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        trial.unlink()


def beside_path(path: Path) -> Path:
    """A hidden name in the same folder that no other process or thread uses, on this machine or another."""
    return path.with_name(f".{path.name}.{this_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")


def sweep(*folders: Path) -> list[Path]:
    """Remove what killed processes left half-written in some folders and one level below.

    Only names that `beside_path` made, and only when the process that made them ran on this machine and is gone:
    what another run is writing at this moment stays.

    Returns:
        what was removed.
    """
    swept = []
    for folder in folders:
        for path in [*folder.glob(".*"), *folder.glob("*/.*")]:
            made = HALF_WRITTEN.fullmatch(path.name)
            if not made or not is_dead(made):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            swept.append(path)
    return swept


def is_dead(made: re.Match[str]) -> bool:
    """Whether the process that made a name of `HALF_WRITTEN` ran on this machine and is gone."""
    import psutil  # here: what trains on a GPU machine needs no more than PyTorch

    return made[1] == this_machine() and not psutil.pid_exists(int(made[2]))


def this_machine() -> str:
    """This machine's name, and its container's, in which process ids mean something: six hexadecimal digits."""
    name = socket.gethostname()
    with suppress(OSError):  # there are such names on Linux only
        name += str(Path("/proc/self/ns/pid").readlink())
    return hashlib.sha256(name.encode()).hexdigest()[:6]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an operating system's error name a file: "no space left" alone does not say where."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename == str(path):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_csv_atomic(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a csv file that appears whole or not at all; floats keep their exact value.

    Raises:
        ValueError: a row is not as wide as the header.
        OSError: as `whole_file`.
    """
    try:
        text = csv_text(header, rows)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    write_text_atomic(path, text)


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """The text of a csv file; floats keep their exact value.

    Raises:
        ValueError: a row is not as wide as the header.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise ValueError(f"row {number} has {len(row)} fields, its header {len(header)}")
        writer.writerow(row)
    return text.getvalue()


def walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Every folder below one, itself first, in order: (folder, its folders, its files), hidden names left out.

    Folders that are links are followed, each real folder once. Names removed from the list of folders are passed over.
    """
    seen: set[str] = set()
    for place, subfolders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield Path(place), subfolders, sorted(name for name in names if not name.startswith("."))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path`, so that one process or thread at a time changes it.

    The lock is a file beside, `<name>.lock`, which stays: a process that dies lets go of it.
    """
    with _lock_file(path) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def shared_lock(path: Path) -> Iterator[None]:
    """As `locked`, held by any number at once, and by none while somebody has it alone."""
    with _lock_file(path) as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """As `locked`, without waiting: whether the lock is ours."""
    with _lock_file(path) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _lock_file(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(path.name + ".lock").open("a+")  # for reading, too: over NFS only such a file can be shared


def _sync_folder(folder: Path) -> None:
    """Put the new name itself on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
