"""What is learned from one training scan, once its corrections are decided place by place?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from lungml.luna import Annotation, Excluded, Nodule
from lungml.reading.correction_schema import Correction

SAME_PLACE_MM = 3.0  # centres nearer than this are one place, however small the nodule
Point = tuple[float, float, float]
# What a correction is counted as, wherever corrections are counted.
Use = Literal["positives", "negatives", "labels", "disputed", "held_out"]
USES: tuple[Use, ...] = ("positives", "negatives", "labels", "disputed", "held_out")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What becomes of one correction, in words, and what it counts as."""

    words: str
    uses: frozenset[Use] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Tables:
    """What the tables say of one scan: annotated nodules, excluded findings, and which of these are unrated nodules."""

    nodules: tuple[Nodule, ...] = ()
    excluded: tuple[Excluded, ...] = ()
    unrated: tuple[Annotation, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """What is learned from one training scan after its corrections.

    Attributes:
        nodules: the tables' that are left, their labels corrected, then the readers'.
        from_tables: of each nodule, its position among the tables'; None for a reader's.
        unjudged: nodules whose malignancy nobody knows.
        excluded: neither positive nor negative.
        rejected_xyz: places that are none, though something took them for one; mm.
        new: places that are no longer, or not any more without doubt, lung without a nodule: (centre, diameter).
    """

    nodules: tuple[Nodule, ...]
    from_tables: tuple[int | None, ...]
    unjudged: tuple[Annotation, ...]
    excluded: tuple[Excluded, ...]
    rejected_xyz: tuple[Point, ...]
    new: tuple[tuple[Point, float], ...]


class Round(Protocol):
    """Something with a centre and a diameter, mm."""

    @property
    def center_xyz(self) -> Point: ...

    @property
    def diameter_mm(self) -> float | None: ...


def reach_mm(one: Round) -> float:
    """How near something must be to lie at the same place as this; an unknown diameter adds nothing.

    Nor does that of a rejection: a mark that is none may be as large as a vessel, and a nodule lie beside it.
    """
    if isinstance(one, Correction) and not one.nodule:
        return SAME_PLACE_MM
    return max((one.diameter_mm or 0.0) / 2, SAME_PLACE_MM)


def same_place(one: Round, other: Round) -> bool:
    """Whether two things lie at the same place, see rule 2 of `correction_rules`."""
    return math.dist(one.center_xyz, other.center_xyz) < max(reach_mm(one), reach_mm(other))


class ScanInDoubt:
    """One training scan while its corrections are decided, place by place, by rules 5 to 8 of `correction_rules`."""

    def __init__(self, series_uid: str, known: Tables) -> None:
        self._uid, self._known = series_uid, known
        self._nodules: dict[int, Nodule] = dict(enumerate(known.nodules))
        self._excluded = list(known.excluded)
        self._readers: list[Nodule] = []
        self._unjudged: list[Annotation] = []
        self._rejected: list[Point] = []
        self._new: list[tuple[Point, float]] = []

    @property
    def changed(self) -> bool:
        """Whether anything is other than the tables say."""
        same = tuple(self._nodules.values()) == self._known.nodules and tuple(self._excluded) == self._known.excluded
        return not same or bool(self._readers or self._unjudged or self._rejected)

    def corrected(self) -> Corrected:
        """What is learned from the scan."""
        return Corrected(
            nodules=(*self._nodules.values(), *self._readers),
            from_tables=(*self._nodules, *(None for _ in self._readers)),
            unjudged=tuple(self._unjudged),
            excluded=tuple(self._excluded),
            rejected_xyz=tuple(self._rejected),
            new=tuple(self._new),
        )

    def decide(self, said: Sequence[Correction], readers: str) -> Outcome:
        """What becomes of the corrections of one place, the latest last; `readers` are who made them, for words."""
        if len({one.nodule for one in said}) == 2:
            self._exclude(said)
            return Outcome(words=f"disputed by {readers}: nobody learns from this place", uses=frozenset({"disputed"}))
        return self._nodule(said) if said[0].nodule else self._no_nodule(said)

    def _at(self, said: Sequence[Correction]) -> list[int]:
        """Positions of the tables' nodules at a place, the nearest to the latest correction first."""
        there = [n for n, nodule in self._nodules.items() if any(same_place(one, nodule) for one in said)]
        return sorted(there, key=lambda n: math.dist(said[-1].center_xyz, self._nodules[n].center_xyz))

    def _exclude(self, said: Sequence[Correction]) -> None:
        """Take a place, and what the tables annotate there, out of learning."""
        for position in self._at(said):
            nodule = self._nodules.pop(position)
            self._leave_out(nodule.center_xyz, nodule.diameter_mm)
        for one in said:
            self._leave_out(one.center_xyz, 2 * reach_mm(one))

    def _leave_out(self, center_xyz: Point, diameter_mm: float) -> None:
        """Exclude all that would be one place with this: candidates of small nodules lie beside them."""
        diameter_mm = max(diameter_mm, 2 * SAME_PLACE_MM)
        self._excluded.append(Excluded(series_uid=self._uid, center_xyz=center_xyz, diameter_mm=diameter_mm))
        self._new.append((center_xyz, diameter_mm))

    def _nodule(self, said: Sequence[Correction]) -> Outcome:
        """Rules 6 and 7."""
        labels = sorted({one.label for one in said if one.label is not None})
        at_odds = ", readers disagree on its malignancy" if len(labels) > 1 else ""
        annotated = self._at(said)
        if annotated:
            return self._label(annotated[0], labels)
        sized = self._with_size(said)
        if sized is None:
            self._exclude(said)
            return Outcome(words="its size is not known: nobody learns from this place", uses=frozenset({"disputed"}))
        center_xyz, diameter_mm = sized
        self._excluded = [e for e in self._excluded if not any(same_place(one, e) for one in said)]
        self._new.append((center_xyz, diameter_mm))
        if len(labels) == 1:
            malignant = labels[0] == "malignant"
            self._readers.append(
                Nodule(
                    series_uid=self._uid,
                    center_xyz=center_xyz,
                    diameter_mm=diameter_mm,
                    malignant=malignant,
                    ratings=(),
                )
            )
            return Outcome(words=f"used as positive, {labels[0]}", uses=frozenset({"positives", "labels"}))
        self._unjudged.append(Annotation(series_uid=self._uid, center_xyz=center_xyz, diameter_mm=diameter_mm))
        uses: set[Use] = {"positives", "disputed"} if at_odds else {"positives"}
        return Outcome(words=f"used as positive{at_odds or ', malignancy unknown'}", uses=frozenset(uses))

    def _label(self, position: int, labels: Sequence[str]) -> Outcome:
        """Rule 7 for a nodule that the tables annotate."""
        nodule = self._nodules[position]
        if len(labels) > 1:
            del self._nodules[position]
            self._unjudged.append(
                Annotation(series_uid=self._uid, center_xyz=nodule.center_xyz, diameter_mm=nodule.diameter_mm)
            )
            words = "the tables annotate it; readers disagree on its malignancy: used as positive, malignancy unknown"
            return Outcome(words=words, uses=frozenset({"disputed"}))
        if not labels or (labels[0] == "malignant") == nodule.malignant:
            return Outcome(words="the tables say so already")
        self._nodules[position] = replace(nodule, malignant=not nodule.malignant, ratings=())
        return Outcome(words=f"used as malignancy label, {labels[0]}", uses=frozenset({"labels"}))

    def _with_size(self, said: Sequence[Correction]) -> tuple[Point, float] | None:
        """Where a nodule that the tables do not annotate lies, and how large it is; None where nobody says.

        An annotated nodule that only lacks a rating keeps the tables' place and size; else the latest reader who
        measured has the last word, and then the tables' excluded finding.
        """
        for one in reversed(said):
            for known in self._known.unrated:
                if same_place(one, known):
                    return known.center_xyz, known.diameter_mm
        for one in reversed(said):
            if one.diameter_mm is not None:
                return one.center_xyz, one.diameter_mm
        for one in reversed(said):
            for left_out in self._excluded:
                if same_place(one, left_out):
                    return left_out.center_xyz, left_out.diameter_mm
        return None

    def _no_nodule(self, said: Sequence[Correction]) -> Outcome:
        """Rule 8."""
        annotated = self._at(said)
        for position in annotated:
            nodule = self._nodules.pop(position)
            self._leave_out(nodule.center_xyz, nodule.diameter_mm)
        if annotated:
            words = "the tables say otherwise: nobody learns from this place"
            return Outcome(words=words, uses=frozenset({"disputed"}))
        if any(same_place(one, left_out) for one in said for left_out in self._known.excluded):
            return Outcome(words="the tables exclude this place already: nobody learns from it")
        self._rejected.append(said[-1].center_xyz)
        return Outcome(words="used as hard negative", uses=frozenset({"negatives"}))
