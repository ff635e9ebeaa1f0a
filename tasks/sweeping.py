"""How does what nothing needs any more go, so that nothing else does, whenever that is stopped?

What goes is renamed to a hidden name first, which nobody takes for a finished one, and deleted then. A sweep that is
killed leaves whole things and hidden ones; the latter are what the next one finds half-written.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lungml.errors import FileError
from lungml.files import HALF_WRITTEN, beside_path, try_lock
from lungml.home import Home
from tasks.in_use import alone
from tasks.unneeded import Survey, SweepRules, Unneeded, folders_in, is_inside, survey

GROUPS = ".groups"  # whose lock `lungml.groups.write_group` holds while it puts something in its place


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What a sweep did.

    Attributes:
        survey: what it found.
        size_bytes: of what is gone.
        left: what of it stays, a line each.
    """

    survey: Survey
    size_bytes: int
    left: tuple[str, ...]


def sweep_home(home: Home, rules: SweepRules, *, now: float | None = None) -> Swept:
    """Remove what nothing in a home needs any more, see `tasks.unneeded.survey`; a run makes again what it wants of it.

    Nothing is removed while a run works on the home, and runs that begin meanwhile wait until all of it has its hidden
    name. A flow that sweeps must therefore not say itself that it uses the home.

    Args:
        home: where artifacts lie.
        rules: what is kept.
        now: seconds since 1970; this moment when not given.

    Raises:
        FileError: a run works on the home.
    """
    left: list[str] = []
    hidden: list[tuple[Path, int]] = []
    with alone(home) as ours:
        if not ours:
            raise FileError(home.root, "a run works on it", "sweep when it has ended; nothing was removed")
        found = survey(home, rules, now=now)
        training = _training(home)
        for entry in found.entries:
            if training and entry.kind == "crops":
                left.append(f"{entry.folder}: {training} is being trained and may use it")
                continue
            with _held(home, entry) as free:
                if not free:
                    left.append(f"{entry.folder}: in use")
                    continue
                hidden += _hide(home, entry, left)
    gone = sum(size for path, size in hidden if _delete(home, path, left))
    _tidy(home)
    return Swept(survey=found, size_bytes=gone, left=tuple(left))


def _training(home: Home) -> str:
    """A training that runs, which holds the lock of its state; empty where none does."""
    for stage in folders_in(home, home.checkpoints):
        for file in sorted(stage.glob("*.lock")):
            with try_lock(file.with_name(file.name.removesuffix(".lock"))) as free:
                if not free:
                    return f"{stage.name}/{file.name.removesuffix('.lock')}"
    return ""


@contextmanager
def _held(home: Home, entry: Unneeded) -> Iterator[bool]:
    """Hold the lock that a run would hold which writes there; whether it could be had."""
    lock = home.root / entry.folder / GROUPS if entry.kind == "crops" else entry.lock
    if lock is None:
        yield True
        return
    with try_lock(lock) as free:
        yield free


def _hide(home: Home, entry: Unneeded, left: list[str]) -> list[tuple[Path, int]]:
    """Give all of an entry hidden names; what cannot have one stays as it is, and is said. Returns names and sizes."""
    hidden: list[tuple[Path, int]] = []
    for path, size in zip(entry.paths, entry.sizes, strict=True):
        try:
            if not is_inside(home, path):  # it was a moment ago
                raise OSError("a link leads there by now")
            aside = path if HALF_WRITTEN.fullmatch(path.name) else beside_path(path)
            path.rename(aside)
        except OSError as error:
            left.append(f"{path.relative_to(home.root)}: {error.strerror or error}")
            continue
        hidden.append((aside, size))
    return hidden


def _delete(home: Home, path: Path, left: list[str]) -> bool:
    try:
        if path.is_dir():
            shutil.rmtree(path)  # it follows no links
        else:
            path.unlink()
    except OSError as error:
        left.append(f"{path.relative_to(home.root)}: {error.strerror or error}")
        return False
    return True


def _tidy(home: Home) -> None:
    """Drop folders of crops that hold nothing but their lock: no run waits for it, or they stay for the next sweep."""
    with alone(home) as ours:
        for folder in folders_in(home, home.crops) if ours else ():
            lock = folder / f"{GROUPS}.lock"
            if [path.name for path in folder.iterdir()] == [lock.name]:
                with suppress(OSError):  # a folder that may only be read
                    lock.unlink()
                    folder.rmdir()
