"""What did readers correct, is it sound, and which versions of it are kept?

A file that the page of `luna read` exports becomes one version: `000001.json`, `000002.json`, ... in a folder that only
grows. A version is never rewritten; undoing is a version that names an earlier one. Each holds the checksum of the one
before, so that a version that was edited, lost or damaged is told of and never passed over. What of all that is learned
from is decided in `correction_rules`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lungml.errors import LunaError, one_line
from lungml.files import locked, write_text_atomic
from lungml.home import Home
from lungml.reading.correction_schema import CorrectionFile, check_given, plain_json

KEPT_FORMAT = "luna-corrections-version"


class CorrectionStoreError(LunaError):
    """A kept version is missing or damaged, or there is none of that number; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class Undo:
    """What a version takes back: an earlier version, or one correction of it, counted from 1."""

    version: int
    correction: int | None = None

    @property
    def name(self) -> str:
        """`3`, or `3.2`."""
        return str(self.version) if self.correction is None else f"{self.version}.{self.correction}"


@dataclass(frozen=True, kw_only=True)
class Version:
    """One kept version: the corrections of a file, or an undoing.

    Attributes:
        number: from 1 on.
        added: when, UTC.
        file: what a reader exported; None for an undoing.
        undoes: None for a file.
    """

    number: int
    added: str
    file: CorrectionFile | None = None
    undoes: Undo | None = None


def corrections_folder(home: Home) -> Path:
    """Where a home keeps its versions."""
    return home.root / "corrections"


def add_versions(folder: Path, files: Iterable[CorrectionFile]) -> list[tuple[Version, bool]]:
    """Keep checked files as the next versions, in their order; what is kept already is not kept twice.

    That is the very same export, and one whose content is what its reader said of the scan last. Who returns to what
    he said before something else has said something new.

    Returns:
        the version of each, and whether it is a new one.

    Raises:
        CorrectionStoreError: an earlier version is missing or damaged.
        OSError: the folder cannot be written; those before are kept then.
    """
    added = []
    with locked(folder):
        kept = list(read_versions(folder))
        for given in files:
            version = _kept_already(kept, given)
            new = version is None
            if version is None:
                version = _keep(folder, kept, {"file": given.as_dict()})
                kept.append(version)
            added.append((version, new))
    return added


def _kept_already(kept: Sequence[Version], given: CorrectionFile) -> Version | None:
    """The version of the very same export, else the last one of its reader and scan where that says the same."""
    last: Version | None = None
    for version in kept:
        file = version.file
        if file is None or (file.reader, file.series_uid) != (given.reader, given.series_uid):
            continue
        if (file.exported, file.content) == (given.exported, given.content):
            return version
        if last is None or last.file is None or file.exported_at >= last.file.exported_at:
            last = version
    return last if last is not None and last.file is not None and last.file.content == given.content else None


def undo_version(folder: Path, what: Undo) -> Version:
    """Keep an undoing of a version, or of one of its corrections, as the next version.

    Raises:
        CorrectionStoreError: there is no such version or correction, it is undone already, or a version is damaged.
        OSError: the folder cannot be written; nothing has changed then.
    """
    with locked(folder):
        kept = read_versions(folder)
        if not 1 <= what.version <= len(kept):
            raise CorrectionStoreError(
                f"there is no version {what.version} of the corrections, only {len(kept)}; see luna corrections list"
            )
        named = kept[what.version - 1]
        if what.correction is not None and named.file is None:
            raise CorrectionStoreError(f"version {what.version} is an undoing and has no parts; undo {what.version}")
        count = len(named.file.corrections) if named.file else 0
        if what.correction is not None and not 1 <= what.correction <= count:
            raise CorrectionStoreError(f"version {what.version} has no correction {what.correction}, only {count}")
        taken = taken_back(kept)
        by = taken.get(what) or taken.get(Undo(version=what.version))
        if by is not None:
            raise CorrectionStoreError(
                f"{what.name} is undone already, by version {by}; luna corrections undo {by} brings it back"
            )
        undoes = {"version": what.version, "correction": what.correction}
        return _keep(folder, kept, {"undoes": undoes})


def taken_back(versions: Sequence[Version]) -> dict[Undo, int]:
    """What is undone -> the version that undid it; an undoing that is itself undone counts for nothing."""
    taken: dict[Undo, int] = {}
    for version in reversed(versions):  # only what is later can undo
        if version.undoes is not None and Undo(version=version.number) not in taken:
            taken[version.undoes] = version.number
    return taken


def read_versions(folder: Path, up_to: int | None = None) -> tuple[Version, ...]:
    """The kept versions, in their order.

    Args:
        folder: see `corrections_folder`; it need not be there.
        up_to: only those up to this number; all when None.

    Raises:
        CorrectionStoreError: one is missing, unreadable or another than it was, or there are fewer than `up_to`.
    """
    if up_to == 0:
        return ()
    numbers = sorted(int(path.stem) for path in folder.glob("*.json") if re.fullmatch(r"\d{6,}", path.stem))
    last = numbers[-1] if numbers else 0
    if up_to is not None and (up_to < 0 or up_to > last):
        raise CorrectionStoreError(f"{folder}: there is no version {up_to} of the corrections, the last one is {last}")
    versions, before = [], ""
    for number in range(1, (last if up_to is None else up_to) + 1):
        path = _path(folder, number)
        try:
            text = path.read_text(encoding="utf-8")
            versions.append(_version(text, number, before))
        except FileNotFoundError:
            raise CorrectionStoreError(
                f"{path}: missing, though version {last} is there; restore it from a copy"
            ) from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CorrectionStoreError(one_line(f"{path}: damaged ({error}); restore it from a copy")) from error
        before = _checksum(text)
    return tuple(versions)


def _version(text: str, number: int, before: str) -> Version:
    """A version from its text; whatever is wrong with it is a ValueError, TypeError or KeyError."""
    held = plain_json(text)
    if not isinstance(held, Mapping) or held.get("format") != KEPT_FORMAT or held.get("number") != number:
        raise ValueError(f"not version {number} of the corrections")
    if held["after"] != before:
        raise ValueError(f"it does not follow the version {number - 1} that is there: one of the two was changed")
    if held["undoes"] is None:
        file = check_given(held["file"])
        if file.content != held["content"]:
            raise ValueError("its content is not what was added")
        return Version(number=number, added=str(held["added"]), file=file)
    undoes = Undo(version=held["undoes"]["version"], correction=held["undoes"]["correction"])
    part = 1 if undoes.correction is None else undoes.correction
    if type(undoes.version) is not int or type(part) is not int or not 1 <= undoes.version < number:
        raise ValueError("what it undoes is no earlier version")
    return Version(number=number, added=str(held["added"]), undoes=undoes)


def _keep(folder: Path, kept: Sequence[Version], what: Mapping[str, Any]) -> Version:
    """Write the next version, whole or not at all; the folder's lock is held."""
    number = len(kept) + 1
    before = _checksum(_path(folder, number - 1).read_text(encoding="utf-8")) if kept else ""
    held = {
        "format": KEPT_FORMAT,
        "number": number,
        "added": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "after": before,
        "undoes": None,
        "content": check_given(what["file"]).content if "file" in what else None,
        **what,
    }
    text = json.dumps(held, indent=1, allow_nan=False) + "\n"
    version = _version(text, number, before)
    write_text_atomic(_path(folder, number), text)
    return version


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.json"


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
