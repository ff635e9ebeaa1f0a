"""How many nodules does the whole pipeline find, and at the price of how many false alarms?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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
MARKS_PER_SCAN = 100  # LUNA16
FPS_PER_SCAN = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)  # LUNA16: where CPM reads the sensitivity
BAND_PERCENTILES = (2.5, 97.5)


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

    Raises:
        ValueError: on an unknown rule, a NaN probability where one is needed, or a centre that is not finite.
    """
    if match not in get_args(Match):
        raise ValueError(f"unknown match {match!r}; choose one of {', '.join(get_args(Match))}")
    reach = REPORT_REACH if match == "report" else OFFICIAL_REACH
    counts = np.zeros((3, 4), dtype=np.int64)
    ignored = 0
    series = sorted(findings_per_scan.keys() | truth_per_scan.keys())
    for series_uid in series:
        findings, nodules = findings_per_scan.get(series_uid, ()), truth_per_scan.get(series_uid, ())
        prob_nodule = _probabilities(findings, series_uid)
        prob_malignant = np.array([f.prob_malignant for f in findings], dtype=np.float64)
        flagged = prob_nodule >= nodule_threshold
        if np.isnan(prob_malignant[flagged]).any():
            raise ValueError(f"{series_uid}: a finding above the nodule threshold has no malignancy probability")
        stage = np.where(prob_malignant >= malignant_threshold, PREDICTED_MALIGNANT, PREDICTED_BENIGN)
        stage[~flagged] = FILTERED
        hits = find_hits(nodules, findings, reach, series_uid)
        decides = stage if match == "report" else prob_nodule
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


@dataclass(frozen=True, kw_only=True)
class FrocResult:
    """LUNA16's official score.

    Attributes:
        fps_per_scan, sensitivity, thresholds: the points of the curve, equally long; the first one is above
            all marks.
        sensitivity_at: sensitivity at each of `FPS_PER_SCAN`; NaN without an included nodule.
        cpm: their mean.
        band_low, band_high: 95 % bootstrap band of `sensitivity_at`; empty when none was asked for.
        cpm_band: the same of the CPM; NaN when none was asked for.
        scans, nodules, marks: what was scored; of marks only the most probable 100 of each scan.
        true_positives, misses: nodules with and without a mark; their sum is `nodules`.
        false_positives: marks on nothing.
        ignored_on_excluded: marks on an excluded finding only.
        ignored_double_hits: marks on a nodule beside its most probable one.
        ignored_beyond_limit: marks after the hundredth of their scan.
    """

    fps_per_scan: tuple[float, ...]
    sensitivity: tuple[float, ...]
    thresholds: tuple[float, ...]
    sensitivity_at: tuple[float, ...]
    cpm: float
    band_low: tuple[float, ...]
    band_high: tuple[float, ...]
    cpm_band: tuple[float, float]
    scans: int
    nodules: int
    marks: int
    true_positives: int
    misses: int
    false_positives: int
    ignored_on_excluded: int
    ignored_double_hits: int
    ignored_beyond_limit: int

    def as_dict(self) -> dict[str, float | list[float | None] | None]:
        """All fields, JSON-able: lists for tuples, None for NaN and for the infinite first threshold."""
        return {
            name: [finite_or_none(v) for v in value] if isinstance(value, tuple) else finite_or_none(value)
            for name, value in asdict(self).items()
        }


def froc(
    findings: Mapping[str, Sequence[Mark]],
    nodules: Mapping[str, Sequence[Place]],
    excluded: Mapping[str, Sequence[Place]],
    series_uids: Sequence[str],
    *,
    bootstraps: int = 0,
    generator: np.random.Generator | None = None,
) -> FrocResult:
    """Score marks by LUNA16's rules: free-response ROC and competition performance metric.

    A mark hits a finding when it is nearer than its radius. A mark on an included nodule is no false
    positive; a nodule's score is its most probable mark. A mark only on excluded findings is ignored, any
    other is a false positive. A nodule without a mark is never found. The curve has scikit-learn's
    `roc_curve` points (collinear ones dropped), in false positives per listed scan, and is read by linear
    interpolation.

    Where this differs from the challenge's script: of marks equal to a scan's hundredth the first listed
    stay (the script drops all that equal the hundred-and-first), and without any hit sensitivity is 0
    instead of NaN.

    Args:
        findings: by series_uid, the marks; scans without an entry have none.
        nodules: by series_uid, the included nodules.
        excluded: by series_uid, excluded findings; a negative diameter means 10 mm.
        series_uids: the scans that are scored; entries of other scans are left out.
        bootstraps: resamples over scans, with replacement, for the 95 % band (LUNA16: 1000); 0 for none.
        generator: of the resamples.

    Raises:
        ValueError: on no or repeated series, a NaN probability, a centre that is not finite, or bootstraps
            without a generator.
    """
    marks = count_marks(findings, nodules, excluded, series_uids)
    curve = marks.curve
    fps, sensitivity = curve.points(np.ones(len(series_uids), dtype=np.int64))
    shown = curve.corners()
    at = np.interp(FPS_PER_SCAN, fps, sensitivity)
    band_low, band_high, cpm_band = _bootstrap_band(curve, len(series_uids), bootstraps, generator)
    return FrocResult(
        fps_per_scan=tuple(fps[shown].tolist()),
        sensitivity=tuple(sensitivity[shown].tolist()),
        thresholds=tuple(curve.thresholds[shown].tolist()),
        sensitivity_at=tuple(at.tolist()),
        cpm=float(at.mean()),
        band_low=band_low,
        band_high=band_high,
        cpm_band=cpm_band,
        scans=len(series_uids),
        nodules=marks.nodules,
        marks=marks.marks,
        true_positives=marks.true_positives,
        misses=marks.nodules - marks.true_positives,
        false_positives=marks.false_positives,
        ignored_on_excluded=marks.ignored_on_excluded,
        ignored_double_hits=marks.ignored_double_hits,
        ignored_beyond_limit=marks.ignored_beyond_limit,
    )


@dataclass(frozen=True, kw_only=True)
class CountedMarks:
    """What LUNA16's rules leave of some scans' marks.

    Attributes:
        curve: of the marks that count: the best one of each nodule, and the false positives.
        nodules: included nodules in all.
        marks: of them the most probable 100 of each scan.
        true_positives, false_positives: those that count.
        ignored_on_excluded, ignored_double_hits, ignored_beyond_limit: those that do not, see `FrocResult`.
    """

    curve: Curve
    nodules: int
    marks: int
    true_positives: int
    false_positives: int
    ignored_on_excluded: int
    ignored_double_hits: int
    ignored_beyond_limit: int


def count_marks(
    findings: Mapping[str, Sequence[Mark]],
    nodules: Mapping[str, Sequence[Place]],
    excluded: Mapping[str, Sequence[Place]],
    series_uids: Sequence[str],
) -> CountedMarks:
    """Choose the marks that count by LUNA16's rules; arguments and errors as of `froc`."""
    if not series_uids or len(set(series_uids)) != len(series_uids):
        raise ValueError("the list of scans is empty or names a scan twice")
    probs: list[float] = []
    is_nodule: list[bool] = []
    scan_of: list[int] = []
    nodules_in_scan = np.zeros(len(series_uids), dtype=np.int64)
    marks = on_excluded_total = double_hits = beyond = 0
    for scan, series_uid in enumerate(series_uids):
        listed = findings.get(series_uid, ())
        best_first = np.argsort(-_probabilities(listed, series_uid), kind="stable")[:MARKS_PER_SCAN]
        kept = [listed[i] for i in best_first]
        hits = find_hits(nodules.get(series_uid, ()), kept, OFFICIAL_REACH, series_uid)
        elsewhere = ~hits.any(axis=0)
        near_excluded = find_hits(excluded.get(series_uid, ()), kept, OFFICIAL_REACH, series_uid).any(axis=0)
        on_excluded = elsewhere & near_excluded
        false = np.flatnonzero(elsewhere & ~on_excluded).tolist()
        found = hits[hits.any(axis=1)]
        counted = [int(on_it.argmax()) for on_it in found] + false  # sorted marks: the first hit is the best
        probs += [kept[i].prob_nodule for i in counted]
        is_nodule += [True] * len(found) + [False] * len(false)
        scan_of += [scan] * len(counted)
        nodules_in_scan[scan] = len(hits)
        marks += len(kept)
        beyond += len(listed) - len(kept)
        on_excluded_total += int(on_excluded.sum())
        double_hits += int(found.sum()) - len(found)
    return CountedMarks(
        curve=Curve(np.array(probs), np.array(is_nodule, dtype=bool), np.array(scan_of, dtype=int), nodules_in_scan),
        nodules=int(nodules_in_scan.sum()),
        marks=marks,
        true_positives=sum(is_nodule),
        false_positives=len(is_nodule) - sum(is_nodule),
        ignored_on_excluded=on_excluded_total,
        ignored_double_hits=double_hits,
        ignored_beyond_limit=beyond,
    )


class Curve:
    """The marks that count, most probable first; a bootstrap only changes how often each scan counts."""

    def __init__(
        self,
        probs: npt.NDArray[np.float64],
        is_nodule: npt.NDArray[np.bool_],
        scan_of: npt.NDArray[np.int64],
        nodules_in_scan: npt.NDArray[np.int64],
    ) -> None:
        order = np.argsort(-probs, kind="stable")
        self._is_nodule, self._scan_of = is_nodule[order], scan_of[order]
        self._nodules_in_scan = nodules_in_scan
        # Marks of one probability pass a threshold together: the curve has a point after the last of them.
        self._ends = np.flatnonzero(np.append(np.diff(probs[order]) != 0, len(probs) > 0))
        self.thresholds = np.append(np.inf, probs[order][self._ends])

    def _counts(self, times: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """False and true positives at or above each threshold, exact."""
        weight = times[self._scan_of]
        true = np.cumsum(weight * self._is_nodule)[self._ends]
        false = np.cumsum(weight * ~self._is_nodule)[self._ends]
        return np.append(0, false), np.append(0, true)

    def points(self, times: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """False positives per scan and sensitivity at each threshold, every scan counted `times` times."""
        false, true = self._counts(times)
        nodules = int(times @ self._nodules_in_scan)
        sensitivity = true / nodules if nodules else np.full(len(true), np.nan)
        return false / times.sum(), sensitivity

    def sensitivity_at(self, times: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Sensitivity at each of `FPS_PER_SCAN`, linearly interpolated; (7,), NaN without a nodule.

        Args:
            times: (scans,) how often each scan counts.
        """
        return np.interp(FPS_PER_SCAN, *self.points(times))

    def corners(self) -> npt.NDArray[np.int64]:
        """The points that `sklearn.metrics.roc_curve(drop_intermediate=True)` keeps, and the origin."""
        false, true = (counts[1:] for counts in self._counts(np.ones_like(self._nodules_in_scan)))
        if len(false) <= 2:
            return np.arange(len(false) + 1)
        bends = (np.diff(false, 2) != 0) | (np.diff(true, 2) != 0)
        return np.flatnonzero(np.concatenate([[True, True], bends, [True]]))


def _bootstrap_band(
    curve: Curve, scans: int, bootstraps: int, generator: np.random.Generator | None
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, float]]:
    """95 % band of the sensitivities and of the CPM; resamples without a nodule are left out."""
    if not bootstraps:
        return (), (), (math.nan, math.nan)
    if generator is None:
        raise ValueError("bootstraps need a generator")
    at = np.empty((bootstraps, len(FPS_PER_SCAN)))
    for row in at:
        times = np.bincount(generator.integers(scans, size=scans), minlength=scans)
        row[:] = curve.sensitivity_at(times)
    defined = at[~np.isnan(at[:, 0])]
    if not len(defined):
        nans = (math.nan,) * len(FPS_PER_SCAN)
        return nans, nans, (math.nan, math.nan)
    low, high = np.percentile(defined, BAND_PERCENTILES, axis=0)
    cpm_low, cpm_high = np.percentile(defined.mean(axis=1), BAND_PERCENTILES)
    return tuple(low.tolist()), tuple(high.tolist()), (float(cpm_low), float(cpm_high))


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
    squared = ((centers[:, None] - points[None]) ** 2).sum(axis=-1)
    return squared < (reach * diameters[:, None]) ** 2


def _probabilities(marks: Sequence[Mark], series_uid: str) -> npt.NDArray[np.float64]:
    probs = np.array([mark.prob_nodule for mark in marks], dtype=np.float64)
    if np.isnan(probs).any():
        raise ValueError(f"{series_uid}: a nodule probability is NaN")
    return probs


def finite_or_none(value: float) -> float | None:
    """The value, or None where JSON has no number for it."""
    return value if math.isfinite(value) else None
