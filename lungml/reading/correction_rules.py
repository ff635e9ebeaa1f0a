"""What is learned from readers' corrections where they disagree, with each other or with the tables?

The rules, in their order:

1. What was undone counts for nothing, and a note changes nothing.
2. Two corrections concern the same place when their centres are nearer than half the larger diameter, and always
   below 3 mm; or when both lie at the place, by that measure, of the same finding of the tables: one who accepts one
   mark on a large nodule and rejects another one says a single thing of it.
3. Of one reader's corrections of a place the latest stands, by version, then position. Within one file, where the
   reader saw all marks at once, a nodule outweighs a rejection: whoever accepts one of two marks on a nodule and
   rejects the other has found a nodule.
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
    correction: Correction

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
    taken, words = taken_back(versions), dict[Placed, Outcome]()
    placed = tuple(_placed(versions))
    of_scans: dict[str, list[Placed]] = {}
    for one in placed:
        by = taken.get(Undo(version=one.version)) or taken.get(Undo(version=one.version, correction=one.position))
        if by is not None:
            words[one] = Outcome(words=f"undone by version {by}")
        elif one.correction.kind == "note":
            words[one] = Outcome(words="a note, kept")
        else:
            of_scans.setdefault(one.series_uid, []).append(one)
    scans = {}
    for series_uid, standing in of_scans.items():
        known = tables.get(series_uid, Tables())
        standing = _latest(standing, known, words)
        split = splits.get(series_uid, "")
        if split != "train":
            why = f"{SPLIT_WORDS[split]} scan" if split else "its scan has no split here"
            words |= {one: Outcome(words=f"kept, not trained on ({why})", uses=_held(split)) for one in standing}
        elif series_uid not in tables:
            words |= {one: Outcome(words="kept, not trained on (its scan is not here)") for one in standing}
        else:
            scan = ScanInDoubt(series_uid, known)
            for group in _groups(standing, known):
                readers = " and ".join(sorted({one.reader for one in group}))
                words |= dict.fromkeys(group, scan.decide([one.correction for one in group], readers))
            if scan.changed:
                scans[series_uid] = scan.corrected()
    version = versions[-1].number if versions else 0
    return Resolved(version=version, placed=placed, outcomes=tuple(words[one] for one in placed), scans=scans)


def _held(split: str) -> frozenset[Use]:
    return frozenset({"held_out"}) if split else frozenset()


def _placed(versions: Sequence[Version]) -> Iterable[Placed]:
    """Every correction of every version, in order."""
    for version in versions:
        file = version.file
        for position, one in enumerate(file.corrections if file else (), start=1):
            yield Placed(
                version=version.number,
                position=position,
                series_uid=file.series_uid if file else "",
                reader=file.reader if file else "",
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
    ordered = sorted(standing, key=lambda p: (p.version, p.correction.nodule, p.position))
    places, readers = _Places(ordered, known), np.array([one.reader for one in ordered])
    left = np.zeros(len(ordered), dtype=np.bool_)
    for number, one in enumerate(ordered):
        for earlier in np.flatnonzero(left & (readers == one.reader) & places.alike(number)).tolist():
            left[earlier] = False
            words[ordered[earlier]] = Outcome(words=f"superseded by {one.name}")
        left[number] = True
    return sorted((ordered[n] for n in np.flatnonzero(left).tolist()), key=lambda p: (p.version, p.position))


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
