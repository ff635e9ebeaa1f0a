"""What in a home does nothing need any more?

Only what a run makes again by itself is ever named: crops, the networks' answers and what they were judged to be, the
state of trainings that nobody went on with, and what killed processes left half-written. What was written or used in
the last days is needed, and so are the answers of a bundle that is in use or new. A file or folder of another kind or
name than luna gives is somebody's, and so is one that a link leads to: they are left alone, with all that is in them.
"""

from __future__ import annotations

import math
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from lungml.checkpoint import BAD_BATCH, LAST
from lungml.errors import LunaError, one_line
from lungml.files import HALF_WRITTEN, is_dead
from lungml.groups import StoreError, groups_in, read_attributes
from lungml.home import Home
from lungml.job import FIGURES, JOB, PARENT, RESULT, WEIGHTS
from lungml.recipes.data import Stage
from tasks import registry
from tasks.caching import digest
from tasks.connection import answers as mlflow_answers
from tasks.connection import shown_uri, tracking_uri
from tasks.finding import NamedBundle, asking_of
from tasks.fitting import FINISHED, RUN
from tasks.promotion import list_bundles

Kind = Literal["crops", "answers", "findings", "trainings", "half-written"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DAY_S = 86_400.0
DIGEST = re.compile(r"[0-9a-f]{24}")  # as `tasks.caching.digest` makes them
STATE = re.compile("|".join([*map(re.escape, (JOB, PARENT, WEIGHTS, RESULT, RUN, LAST, BAD_BATCH)), r"best-\d+\.pt"]))
ANSWERS = re.compile(r"answers\.npz|annotated-[0-9a-f]{8}\.npz")
FINDINGS = re.compile(r"findings\.csv")


@dataclass(frozen=True, kw_only=True)
class SweepRules:
    """What is kept, whatever else is true of it.

    Attributes:
        days: what was written or used in so many days is needed.
        keep: so many of the latest registered bundles keep their answers, as those with an alias always do.
    """

    days: int = 14
    keep: int = 5

    def __post_init__(self) -> None:
        if self.days < 1 or self.keep < 0:
            raise LunaError(f"days is {self.days}, keep is {self.keep}; give at least 1 and 0")


@dataclass(frozen=True, kw_only=True)
class Unneeded:
    """Something that nothing needs any more.

    Attributes:
        kind: what it is.
        folder: where, within the home.
        paths: what would go: whole folders, or files.
        sizes: of each of them, bytes.
        parts: of how many scans or files it is.
        last: when anything of it was last written or used, seconds since 1970.
        lock: whose lock (`lungml.files.locked`) must be held while it goes; None where a run has none.
    """

    kind: Kind
    folder: Path
    paths: tuple[Path, ...]
    sizes: tuple[int, ...]
    parts: int
    last: float
    lock: Path | None = None

    @property
    def size_bytes(self) -> int:
        """Of all of it."""
        return sum(self.sizes)


@dataclass(frozen=True, kw_only=True)
class Survey:
    """All of it, and what could not be known."""

    entries: tuple[Unneeded, ...]
    notes: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """What all of it takes."""
        return sum(entry.size_bytes for entry in self.entries)


@dataclass(frozen=True)
class _Measured:
    path: Path
    size_bytes: int
    last: float


def survey(home: Home, rules: SweepRules, *, now: float | None = None) -> Survey:
    """Look at everything under a home and name what nothing needs any more; nothing is changed.

    Args:
        home: where artifacts lie.
        rules: what is kept.
        now: seconds since 1970; this moment when not given.
    """
    before = (time.time() if now is None else now) - rules.days * DAY_S
    kept, notes = kept_by_bundles(home, rules.keep)
    notes += tuple(
        f"{place} is a link, or no folder: what lies there is left alone"
        for place in (home.crops, home.checkpoints, home.reports)
        if os.path.lexists(place) and not is_inside(home, place)
    )
    entries = [*_crops(home, before)]
    if kept is not None:
        entries += _by_bundle("answers", home, ANSWERS, kept.answers, before)
        entries += _by_bundle("findings", home, FINDINGS, kept.findings, before)
    entries += [*_trainings(home, before), *_half_written(home, before)]
    return Survey(entries=tuple(entries), notes=notes)


@dataclass(frozen=True)
class KeptFolders:
    """Names of the folders under `reports/answers` and `reports/findings` that belong to bundles in use or new."""

    answers: frozenset[str]
    findings: frozenset[str]


def kept_by_bundles(home: Home, keep: int) -> tuple[KeptFolders | None, tuple[str, ...]]:
    """Which answers and findings are kept: of bundles with an alias, and of the latest; None, and why, if unknown."""
    all_kept = "all answers and findings are kept"
    if not os.environ.get("MLFLOW_TRACKING_URI") and not home.mlflow_db.exists():
        return None, (f"no bundle is registered here: {all_kept}",)
    try:
        if not mlflow_answers(tracking_uri(home)):
            return None, (f"MLflow does not answer ({shown_uri(home)}): {all_kept}",)
        bundles = list_bundles(home)
        wanted = [one for place, one in enumerate(bundles) if one.aliases or place < keep]
        if not bundles:  # perhaps they are in a registry that this process was not told of
            return None, (f"no bundle is registered here: {all_kept}",)
        unread = [f"{one.uri}: {one.problem}" for one in wanted if one.problem]
        if unread:
            return None, (f"{one_line(unread[0])}; {all_kept}",)
        named = [NamedBundle(name=one.uri, fields=one.fields) for one in wanted]
        return (
            KeptFolders(
                answers=frozenset(_answers_key(bundle) for bundle in named),
                findings=frozenset(digest(bundle.content) for bundle in named),
            ),
            (f"bundles in use were asked of {shown_uri(home)}",),
        )
    except Exception as error:  # whatever keeps us from knowing, of MLflow's own kinds too
        return None, (f"the registered bundles cannot be read ({one_line(str(error))[:120]}): {all_kept}",)


def is_inside(home: Home, path: Path) -> bool:
    """Whether a path is what it seems: neither itself nor a folder above it, below the home, is a link."""
    return path.resolve() == home.root.resolve() / path.relative_to(home.root)


def folders_in(home: Home, place: Path) -> list[Path]:
    """The folders directly in a folder of the home, hidden ones and links left out, sorted."""
    if not place.is_dir() or not is_inside(home, place):
        return []
    return sorted(
        path for path in place.iterdir() if path.is_dir() and not path.is_symlink() and not path.name.startswith(".")
    )


def _answers_key(bundle: NamedBundle) -> str:
    """The name of the folder that `tasks.finding.find_nodules` keeps a bundle's answers in."""
    settings = registry.bundle_settings(bundle.content)
    return digest(asking_of(bundle.content, settings["calibration"], settings["nodule_threshold"]))


def _crops(home: Home, before: float) -> Iterator[Unneeded]:
    """Crops that no run has looked at; a run notes that it did by the time of their folder, see `groups.touch`."""
    for folder in folders_in(home, home.crops):
        groups = [group for group in groups_in(folder) if isinstance(group, Path) and _is_crops(group, before)]
        found = _old(groups, before)
        if found:
            yield _unneeded("crops", home, folder, found)


def _is_crops(group: Path, before: float) -> bool:
    """Whether that is one scan's crops, whole, and of a time when the closer look is worth it."""
    if group.is_symlink() or group.stat().st_mtime >= before:
        return False
    try:
        attributes = read_attributes(group)
    except (StoreError, OSError):
        return False
    key = attributes.get("key", {})
    ours = {"zarr.json", *attributes.get("bytes", {})}
    return bool(key.get("series_uid") == group.name) and {path.name for path in group.iterdir()} <= ours


def _by_bundle(
    kind: Kind, home: Home, files: re.Pattern[str], kept: Iterable[str], before: float
) -> Iterator[Unneeded]:
    """Folders of bundles that are not kept: in each a folder a scan, with files of these names and no others."""
    for folder in folders_in(home, home.reports / kind):
        if folder.name in kept or not DIGEST.fullmatch(folder.name):
            continue
        scans = [scan for scan in folders_in(home, folder) if _holds_only(scan, files.fullmatch)]
        found = _old(scans, before)
        if found:  # the folder itself, where nothing else is in it
            yield _unneeded(kind, home, folder, found, whole=len(found) == len(list(folder.iterdir())))


def _trainings(home: Home, before: float) -> Iterator[Unneeded]:
    """The state of trainings that nobody went on with, and what a killed run left of it in finished ones."""
    for stage in get_args(Stage):
        for folder in folders_in(home, home.checkpoints / stage):
            names = {path.name for path in folder.iterdir()}
            unknown = {name for name in names - {FINISHED, FIGURES} if not STATE.fullmatch(name)}
            if not DIGEST.fullmatch(folder.name) or {name for name in unknown if not HALF_WRITTEN.fullmatch(name)}:
                continue
            if RESULT in names and FINISHED not in names:  # trained to its end, and not logged yet
                continue
            # What tells the next run that it was trained stays, and so do the figures that people look at.
            over = [folder / name for name in sorted(names) if STATE.fullmatch(name)]
            found = _old(over if FINISHED in names else [folder], before)
            if found:
                yield _unneeded("trainings", home, folder, found, lock=folder)


def _half_written(home: Home, before: float) -> Iterator[Unneeded]:
    """Hidden names of processes that are gone: of this machine's at once, of another's when they are old."""
    by_folder: dict[Path, list[_Measured]] = {}
    for path in _hidden(home):
        made = HALF_WRITTEN.fullmatch(path.name)
        measured = _measure(path) if made and is_inside(home, path) else None
        if made and measured and (is_dead(made) or max(measured.last, _renamed(path)) < before):
            by_folder.setdefault(path.parent, []).append(measured)
    for folder, found in sorted(by_folder.items()):
        yield _unneeded("half-written", home, folder, found)


def _hidden(home: Home) -> Iterator[Path]:
    """Hidden names wherever runs write; MLflow's, Prefect's, corrections and drawn scans are not looked at."""
    places = [home.root, home.rounds]
    for place, depth in ((home.crops, 1), (home.checkpoints, 2), (home.scans, 0)):
        if not isinstance(place, Path):
            continue
        level = [place]
        for _ in range(depth + 1):
            places += level
            level = [folder for one in level for folder in folders_in(home, one)]
    for place in places:
        if place.is_dir() and is_inside(home, place):
            yield from sorted(path for path in place.iterdir() if path.name.startswith("."))
    for folder, subfolders, names in os.walk(home.reports) if is_inside(home, home.reports) else ():
        hidden = [name for name in (*subfolders, *names) if name.startswith(".")]
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(folder) / name for name in sorted(hidden))


def _renamed(path: Path) -> float:
    """When it got its hidden name, at the latest: what another sweep is removing may be old itself."""
    try:
        return path.lstat().st_ctime
    except OSError:  # it is gone
        return math.inf


def _holds_only(folder: Path, known: Callable[[str], object]) -> bool:
    return all(known(path.name) and path.is_file() for path in folder.iterdir())


def _old(paths: Sequence[Path], before: float) -> list[_Measured]:
    """Those of some files and folders of which nothing was written or used since; none that holds a link."""
    found = [_measure(path) for path in paths]
    return [one for one in found if one and one.last < before]


def _measure(path: Path) -> _Measured | None:
    """Size and latest time of a file, or of a folder and all that is in it; None where there is more than that."""
    size, last = 0, 0.0
    waiting = [path]
    while waiting:
        one = waiting.pop()
        try:
            about = one.lstat()
            last = max(last, about.st_mtime)
            if stat.S_ISDIR(about.st_mode):
                waiting += one.iterdir()
            elif stat.S_ISREG(about.st_mode):
                size += about.st_size
            else:  # a link, a device: nobody of ours makes any
                return None
        except OSError:  # gone meanwhile, or not ours to read
            return None
    return _Measured(path, size, last)


def _unneeded(
    kind: Kind,
    home: Home,
    folder: Path,
    found: Sequence[_Measured],
    *,
    whole: bool = False,
    lock: Path | None = None,
) -> Unneeded:
    sizes = tuple(one.size_bytes for one in found)
    return Unneeded(
        kind=kind,
        folder=folder.relative_to(home.root),
        paths=(folder,) if whole else tuple(one.path for one in found),
        sizes=(sum(sizes),) if whole else sizes,
        parts=len(found),
        last=max(one.last for one in found),
        lock=lock,
    )
