"""How good are marks by the official score of LUNA16: FROC and CPM?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from lungml.score import OFFICIAL_REACH, Mark, Place, find_hits, finite_or_none, probabilities

MARKS_PER_SCAN = 100  # LUNA16
FPS_PER_SCAN = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)  # LUNA16: where CPM reads the sensitivity
BAND_PERCENTILES = (2.5, 97.5)


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
        best_first = np.argsort(-probabilities(listed, series_uid), kind="stable")[:MARKS_PER_SCAN]
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
