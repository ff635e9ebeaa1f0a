"""How many nodules does the whole pipeline find, and at the price of how many false alarms?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from lungml.luna import EXCLUDED_DIAMETER_MM

Match = Literal["report", "official"]
ROWS = ("non-nodule", "benign", "malignant")
COLUMNS = ("missed", "filtered out", "predicted benign", "predicted malignant")
MISSED, FILTERED, PREDICTED_BENIGN, PREDICTED_MALIGNANT = range(4)

REPORT_REACH = 0.7  # of a diameter: the report's table
OFFICIAL_REACH = 0.5  # of a diameter, its radius: LUNA16

Thresholds = tuple[float, float]  # on the nodule probability and on that of malignancy, both inclusive


class Place(Protocol):
    """A sphere in a scan, mm LPS: an excluded finding, where a negative diameter means 10 mm."""

    @property
    def center_xyz(self) -> tuple[float, float, float]: ...
    @property
    def diameter_mm(self) -> float: ...


class Truth(Place, Protocol):
    """An annotated nodule."""

    @property
    def malignant(self) -> bool: ...


class Mark(Protocol):
    """A place that was looked at and how probable a nodule is there."""

    @property
    def center_xyz(self) -> tuple[float, float, float]: ...
    @property
    def prob_nodule(self) -> float: ...


class Judged(Mark, Protocol):
    """A mark that may also have been judged for malignancy; `lungml.findings.Finding` is one."""

    @property
    def prob_malignant(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class ScoredFinding:
    """What scoring needs of a finding, and no more.

    Attributes:
        center_xyz: mm, LPS.
        prob_nodule: probability of being a nodule.
        prob_malignant: probability of malignancy; NaN where a filtered finding was never asked.
    """

    center_xyz: tuple[float, float, float]
    prob_nodule: float
    prob_malignant: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Table:
    """The report's table: what became of every nodule and of every finding that is none.

    Attributes:
        counts: 3 x 4, `ROWS` by `COLUMNS`; a non-nodule cannot be missed, that cell is 0.
        scans: scans that were scored.
        scans_without_findings: of them, those set aside before they gave any answer; their nodules are
            missed.
        ignored_on_excluded: findings on an excluded finding only; they are in no cell.
    """

    counts: tuple[tuple[int, int, int, int], ...]
    scans: int
    scans_without_findings: int
    ignored_on_excluded: int

    @property
    def nodules(self) -> int:
        """Annotated nodules in all."""
        return sum(self.counts[1]) + sum(self.counts[2])

    @property
    def found(self) -> int:
        """Nodules that were taken for nodules."""
        return sum(row[PREDICTED_BENIGN] + row[PREDICTED_MALIGNANT] for row in self.counts[1:])

    @property
    def malignant(self) -> int:
        """Malignant nodules in all."""
        return sum(self.counts[2])

    @property
    def malignant_flagged(self) -> int:
        """Malignant nodules that were called malignant."""
        return self.counts[2][PREDICTED_MALIGNANT]

    @property
    def false_positives(self) -> int:
        """Non-nodules that were taken for nodules."""
        return self.counts[0][PREDICTED_BENIGN] + self.counts[0][PREDICTED_MALIGNANT]

    def rows(self) -> list[tuple[str, ...]]:
        """Name and four cells of each row, as text; the cell that has no meaning is empty."""
        rows = [(name, *(str(count) for count in cells)) for name, cells in zip(ROWS, self.counts)]
        return [(ROWS[0], "", *rows[0][2:]), *rows[1:]]

    def to_text(self) -> str:
        """The table and its sums in lines for a terminal."""
        lines = [("", *COLUMNS), *self.rows()]
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        text = []
        for name, *cells in lines:
            text.append("  ".join([name.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:]))]))
        text.append(
            f"{self.found} of {self.nodules} nodules found, "
            f"{self.malignant_flagged} of {self.malignant} malignant flagged, "
            f"{self.false_positives} false positives in {self.scans} scans"
        )
        if self.ignored_on_excluded:
            text.append(f"not counted, on excluded findings: {self.ignored_on_excluded}")
        if self.scans_without_findings:
            text.append(f"scans without an answer, their nodules missed: {self.scans_without_findings}")
        return "\n".join(text)

    def as_dict(self) -> dict[str, int | dict[str, dict[str, int]]]:
        """JSON-able: `counts[row][column]`, and the sums."""
        return {
            "counts": {row: dict(zip(COLUMNS, cells)) for row, cells in zip(ROWS, self.counts)},
            "nodules": self.nodules,
            "found": self.found,
            "malignant": self.malignant,
            "malignant_flagged": self.malignant_flagged,
            "false_positives": self.false_positives,
            "scans": self.scans,
            "scans_without_findings": self.scans_without_findings,
            "ignored_on_excluded": self.ignored_on_excluded,
        }


def score_table(
    findings_per_scan: Mapping[str, Sequence[Judged]],
    truth_per_scan: Mapping[str, Sequence[Truth]],
    *,
    excluded_per_scan: Mapping[str, Sequence[Place]] | None = None,
    match: Match = "report",
    nodule_threshold: float = 0.5,
    malignant_threshold: float = 0.5,
    thresholds_per_scan: Mapping[str, Thresholds] | None = None,
) -> Table:
    """Follow every nodule and every other finding of some scans to where it ended.

    A finding at or above `nodule_threshold` is predicted benign or, at or above `malignant_threshold`,
    malignant; below it is filtered out. A finding belongs to a nodule nearer than 0.7 diameters ("report")
    or one radius ("official"), and to all of them if there are several. Where several findings belong to one
    nodule, the one that came furthest decides under "report" (malignant before benign before filtered out: a
    reader sees all of them), and under "official" the one with the highest nodule probability, as in LUNA16's
    score (of equal ones the first). A finding on a nodule is never a non-nodule, even when another decides.

    Args:
        findings_per_scan: by series_uid, all findings, filtered ones included. A scan that was read and
            gave none has an empty list; one that is left out counts as set aside.
        truth_per_scan: by series_uid, the annotated nodules; a scan without an entry has none.
        excluded_per_scan: by series_uid, findings that are neither hits nor false positives: a finding
            within the radius of one, and on no nodule, is in no cell. Without them such findings are
            non-nodules.
        match: the rule.
        nodule_threshold: on `prob_nodule`, inclusive.
        malignant_threshold: on `prob_malignant`, inclusive; looked at only when the nodule threshold is
            reached.
        thresholds_per_scan: by series_uid, both thresholds of the scans that have their own; the others have those
            above.

    Raises:
        ValueError: on an unknown rule, a NaN probability where one is needed, or a centre that is not finite.
    """
    if match not in get_args(Match):
        raise ValueError(f"unknown match {match!r}; choose one of {', '.join(get_args(Match))}")
    reach = REPORT_REACH if match == "report" else OFFICIAL_REACH
    counts = np.zeros((3, 4), dtype=np.int64)
    ignored = 0
    own = thresholds_per_scan or {}
    series = sorted(findings_per_scan.keys() | truth_per_scan.keys())
    for series_uid in series:
        findings, nodules = findings_per_scan.get(series_uid, ()), truth_per_scan.get(series_uid, ())
        stage = find_stages(findings, series_uid, *own.get(series_uid, (nodule_threshold, malignant_threshold)))
        hits = find_hits(nodules, findings, reach, series_uid)
        decides = stage if match == "report" else probabilities(findings, series_uid)
        for nodule, on_it in zip(nodules, hits):
            place = np.flatnonzero(on_it)
            end = stage[place[decides[place].argmax()]] if len(place) else MISSED
            counts[2 if nodule.malignant else 1, end] += 1
        excluded = (excluded_per_scan or {}).get(series_uid, ())
        elsewhere = ~hits.any(axis=0)
        on_excluded = elsewhere & find_hits(excluded, findings, OFFICIAL_REACH, series_uid).any(axis=0)
        ignored += int(on_excluded.sum())
        counts[0] += np.bincount(stage[elsewhere & ~on_excluded], minlength=4)
    return Table(
        counts=tuple((a, b, c, d) for a, b, c, d in counts.tolist()),
        scans=len(series),
        scans_without_findings=len(truth_per_scan.keys() - findings_per_scan.keys()),
        ignored_on_excluded=ignored,
    )


def find_stages(
    findings: Sequence[Judged], series_uid: str, nodule_threshold: float, malignant_threshold: float
) -> npt.NDArray[np.int64]:
    """Where each finding ended: `FILTERED`, `PREDICTED_BENIGN` or `PREDICTED_MALIGNANT`; thresholds are inclusive.

    Raises:
        ValueError: on a NaN probability where one is needed.
    """
    flagged = probabilities(findings, series_uid) >= nodule_threshold
    prob_malignant = np.array([f.prob_malignant for f in findings], dtype=np.float64)
    if np.isnan(prob_malignant[flagged]).any():
        raise ValueError(f"{series_uid}: a finding above the nodule threshold has no malignancy probability")
    stage = np.where(prob_malignant >= malignant_threshold, PREDICTED_MALIGNANT, PREDICTED_BENIGN)
    stage[~flagged] = FILTERED
    return stage


def find_hits(places: Sequence[Place], marks: Sequence[Mark], reach: float, series_uid: str) -> npt.NDArray[np.bool_]:
    """Which mark lies nearer to which place than `reach` diameters.

    Returns:
        (places, marks) bool; a mark exactly on the sphere lies outside it.

    Raises:
        ValueError: a centre or diameter is not finite.
    """
    centers = np.array([p.center_xyz for p in places], dtype=np.float64).reshape(-1, 3)
    points = np.array([m.center_xyz for m in marks], dtype=np.float64).reshape(-1, 3)
    diameters = np.array([p.diameter_mm for p in places], dtype=np.float64)
    if not (np.isfinite(centers).all() and np.isfinite(points).all() and np.isfinite(diameters).all()):
        raise ValueError(f"{series_uid}: a centre or diameter is not finite")
    diameters = np.where(diameters < 0, EXCLUDED_DIAMETER_MM, diameters)
    # Squares, not roots: a mark exactly on the sphere stays outside it.
    squared = ((centers.T[:, :, None] - points.T[:, None]) ** 2).sum(axis=0)
    return squared < (reach * diameters[:, None]) ** 2


def probabilities(marks: Sequence[Mark], series_uid: str) -> npt.NDArray[np.float64]:
    probs = np.array([mark.prob_nodule for mark in marks], dtype=np.float64)
    if np.isnan(probs).any():
        raise ValueError(f"{series_uid}: a nodule probability is NaN")
    return probs


def finite_or_none(value: float) -> float | None:
    """The value, or None where JSON has no number for it."""
    return value if math.isfinite(value) else None
