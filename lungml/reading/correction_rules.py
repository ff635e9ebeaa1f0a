"""What is learned from readers' corrections where they disagree, with each other or with the tables?

The rules, in their order:

1. What was undone counts for nothing, and a note changes nothing. One correction that was undone stays so where a later
   file of its reader holds the very same one, its time included: pages export all that is said, old and new.
2. Two corrections concern the same place when their centres are nearer than half the larger diameter, and always
   below 3 mm; or when both lie at the place, by that measure, of the same finding of the tables: one who accepts one
   mark on a large nodule and rejects another one says a single thing of it. What is rejected has no size: a nodule
   beside the centre of a large mark that is none is not rejected with it.
3. What a reader said last stands, by the time of the export, then version and position. Of files of one reader, scan,
   bundle and reading the last one stands, whole: what it no longer says was taken back. Elsewhere the latest
   correction of each place stands. Within one file, where the reader saw all marks at once, a nodule outweighs a
   rejection: whoever accepts one of two marks on a nodule and rejects the other has found a nodule.
4. Corrections of a validation or test scan are kept, and nobody learns from them: what scores stays as it was.
5. Readers who disagree whether there is a nodule: the place is excluded, neither a positive nor a negative.
6. Readers who agree that it is one: a positive. A label that one of them gives and none contradicts is its label;
   where two labels contradict each other it is a nodule whose malignancy nobody knows.
7. A nodule that the tables annotate keeps its place and size, and takes a reader's label instead of its own. One that
   the tables exclude or do not know becomes a positive; without a label it is one whose malignancy nobody knows.
   Where neither reader nor tables say how large it is, it cannot be drawn, and the place is excluded.
8. A rejection of what the tables annotate excludes it from learning; of what they exclude, changes nothing; of a place
   that they do not know, makes a hard negative.

Where corrections chain from place to place, all that hang together are one place in rules 5 to 8.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import numpy.typing as npt

from lungml.reading.corrected_scan import (
    USES,
    Corrected,
    Outcome,
    Round,
    ScanInDoubt,
    Tables,
    Use,
    reach_mm,
    same_place,
)
from lungml.reading.correction_schema import Correction
from lungml.reading.corrections import Undo, Version, taken_back

SPLIT_WORDS = {"val": "validation", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class Placed:
    """One correction and where it stands: `3.2` is the second of version 3."""

    version: int
    position: int
    series_uid: str
    reader: str
    exported: datetime
    correction: Correction

    @property
    def said(self) -> tuple[str, str, Correction]:
        """Who said what of which scan: equal in every file that holds it."""
        return self.reader, self.series_uid, self.correction

    @property
    def name(self) -> str:
        """`3.2`."""
        return f"{self.version}.{self.position}"


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """All corrections up to a version, decided.

    Attributes:
        version: the last one that was looked at; 0 where there is none.
        placed: every correction, in order.
        outcomes: of each.
        scans: series_uid -> what is learned, of training scans with corrections that change something.
    """

    version: int
    placed: tuple[Placed, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    scans: Mapping[str, Corrected] = field(default_factory=dict)

    def counts(self, series_uids: Iterable[str] | None = None) -> dict[str, int]:
        """How many corrections were used as what; of some scans, and all that were held out."""
        among = None if series_uids is None else set(series_uids)
        counted: Counter[str] = Counter()
        for placed, outcome in zip(self.placed, self.outcomes):
            uses = outcome.uses if among is None or placed.series_uid in among else outcome.uses & {"held_out"}
            counted.update(uses)
        return {use: counted[use] for use in USES}


def resolve(versions: Sequence[Version], splits: Mapping[str, str], tables: Mapping[str, Tables]) -> Resolved:
    """Decide what becomes of every correction.

    Args:
        versions: all up to the one that is asked for.
        splits: series_uid -> train, val or test, of every series that has a split.
        tables: of the training scans; those that are not here are not learned from.
    """
    words = dict[Placed, Outcome]()
    placed = tuple(_placed(versions))
    scans = {}
    for series_uid, standing in _by_scan(placed, versions, words).items():
        known = tables.get(series_uid, Tables())
        standing = _latest(standing, known, words)
        split = splits.get(series_uid, "")
        if split != "train":
            why = f"{SPLIT_WORDS[split]} scan" if split else "its scan has no split here"
            words |= {one: Outcome(words=f"kept, not trained on ({why})", uses=_held(split)) for one in standing}
        elif series_uid not in tables:
            words |= {one: Outcome(words="kept, not trained on (no run learns from its scan here)") for one in standing}
        else:
            scan = ScanInDoubt(series_uid, known)
            for group in _groups(standing, known):
                readers = " and ".join(sorted({one.reader for one in group}))
                words |= dict.fromkeys(group, scan.decide([one.correction for one in group], readers))
            if scan.changed:
                scans[series_uid] = scan.corrected()
    version = versions[-1].number if versions else 0
    return Resolved(version=version, placed=placed, outcomes=tuple(words[one] for one in placed), scans=scans)


def replaced_by(versions: Sequence[Version]) -> dict[int, int]:
    """The number of each file that a later export of the same reading replaces -> the number of that one, rule 3."""
    taken, of_readings = taken_back(versions), dict[tuple[str, ...], list[tuple[datetime, int]]]()
    for version in versions:
        file = version.file
        if file is not None and file.reading is not None and Undo(version=version.number) not in taken:
            reading = (file.reader, file.series_uid, file.bundle, file.reading)
            of_readings.setdefault(reading, []).append((file.exported_at, version.number))
    replaced = dict[int, int]()
    for exports in of_readings.values():
        _, last = max(exports)
        replaced |= {number: last for _, number in exports if number != last}
    return replaced


def _by_scan(
    placed: Sequence[Placed], versions: Sequence[Version], words: dict[Placed, Outcome]
) -> dict[str, list[Placed]]:
    """series_uid -> its corrections that were neither undone nor replaced with their file; those get their outcome."""
    taken, replaced = taken_back(versions), replaced_by(versions)
    parts = ((one, taken.get(Undo(version=one.version, correction=one.position))) for one in placed)
    undone = {one.said: by for one, by in parts if by is not None}
    of_scans: dict[str, list[Placed]] = {}
    for one in placed:
        by = taken.get(Undo(version=one.version)) or undone.get(one.said)
        if by is not None:
            words[one] = Outcome(words=f"undone by version {by}")
        elif one.version in replaced:
            words[one] = Outcome(words=f"superseded by version {replaced[one.version]}")
        elif one.correction.kind == "note":
            words[one] = Outcome(words="a note, kept")
        else:
            of_scans.setdefault(one.series_uid, []).append(one)
    return of_scans


def _held(split: str) -> frozenset[Use]:
    return frozenset({"held_out"}) if split else frozenset()


def _placed(versions: Sequence[Version]) -> Iterable[Placed]:
    """Every correction of every version, in order."""
    for version in versions:
        file = version.file
        if file is None:
            continue
        for position, one in enumerate(file.corrections, start=1):
            yield Placed(
                version=version.number,
                position=position,
                series_uid=file.series_uid,
                reader=file.reader,
                exported=file.exported_at,
                correction=one,
            )


class _Places:
    """Which corrections of a scan concern the same place: rule 2, for thousands of them at once.

    Args:
        standing: of one scan.
        known: the scan's tables.
    """

    def __init__(self, standing: Sequence[Placed], known: Tables) -> None:
        said = [one.correction for one in standing]
        tables: tuple[Round, ...] = (*known.nodules, *known.excluded)
        self._centers = np.array([one.center_xyz for one in said], dtype=np.float64).reshape(-1, 3)
        self._reaches = np.array([reach_mm(one) for one in said])
        self._at = np.array([[same_place(one, found) for found in tables] for one in said], dtype=np.bool_)

    def alike(self, place: int) -> npt.NDArray[np.bool_]:
        """(n,) which of them concern the same place as one of them; it does so itself."""
        apart = np.linalg.norm(self._centers - self._centers[place], axis=1)
        near = apart < np.maximum(self._reaches, self._reaches[place])
        return near | (self._at & self._at[place]).any(axis=1)


def _latest(standing: Sequence[Placed], known: Tables, words: dict[Placed, Outcome]) -> list[Placed]:
    """Rule 3: what stands of each reader's corrections of one scan; the others get their outcome."""
    # Within a version, a reader's rejections come before the nodules that outweigh them.
    ordered = sorted(standing, key=lambda p: (*_when(p), p.correction.nodule, p.position))
    places, readers = _Places(ordered, known), np.array([one.reader for one in ordered])
    left = np.zeros(len(ordered), dtype=np.bool_)
    for number, one in enumerate(ordered):
        for earlier in np.flatnonzero(left & (readers == one.reader) & places.alike(number)).tolist():
            left[earlier] = False
            words[ordered[earlier]] = Outcome(words=f"superseded by {one.name}")
        left[number] = True
    return sorted((ordered[n] for n in np.flatnonzero(left).tolist()), key=lambda p: (*_when(p), p.position))


def _when(one: Placed) -> tuple[datetime, int]:
    return one.exported, one.version


def _groups(standing: Sequence[Placed], known: Tables) -> list[list[Placed]]:
    """Corrections that hang together, in the order of their first; `standing` is in order."""
    places, free = _Places(standing, known), np.ones(len(standing), dtype=np.bool_)
    groups = []
    for first in range(len(standing)):
        if not free[first]:
            continue
        group = [first]
        free[first] = False
        for member in group:  # it grows while it is walked
            joining = np.flatnonzero(free & places.alike(member)).tolist()
            free[joining] = False
            group += joining
        groups.append([standing[n] for n in sorted(group)])
    return groups
