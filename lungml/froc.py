"""How good are marks by the official score of LUNA16: FROC and CPM?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lungml.score import OFFICIAL_REACH, Mark, Place, find_hits, finite_or_none, probabilities

MARKS_PER_SCAN = 100  # LUNA16
FPS_PER_SCAN = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)  # LUNA16: where CPM reads the sensitivity
CURVE_FPS = tuple((2.0 ** np.linspace(-4, 4, 65)).tolist())  # 1/16 .. 16, eight steps an octave: where the band is
BAND_PERCENTILES = (2.5, 97.5)
_HIT = 1 << 32  # hits are counted above this bit, false positives below: one sum instead of two


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
        curve_band: of the whole curve: `CURVE_FPS` and the edges of its band there; empty when none was asked for.
        scans, nodules, marks: what was scored; of a scan's marks at most the most probable 100, see `froc`.
        true_positives, misses: nodules with and without a mark; their sum is `nodules`.
        false_positives: marks on nothing.
        ignored_on_excluded: marks on an excluded finding only.
        ignored_double_hits: marks on a nodule beside its most probable one.
        ignored_beyond_limit: marks no more probable than the hundred-and-first of their scan.
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
    curve_band: tuple[tuple[float, ...], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """All fields, JSON-able: lists for tuples, None for NaN and for the infinite first threshold."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else finite_or_none(value)


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

    Of a scan with more than 100 marks those count that are more probable than its hundred-and-first: marks equal to
    that one are all left out, so that the order of the rows decides nothing and fewer than 100 may be left.

    A mark hits a finding when it is nearer than its radius. A mark on an included nodule is no false
    positive; a nodule's score is its most probable mark. A mark only on excluded findings is ignored, any
    other is a false positive. A nodule without a mark is never found. The curve has scikit-learn's
    `roc_curve` points (collinear ones dropped), in false positives per listed scan, and is read by linear
    interpolation.

    Where this differs from the challenge's script: without any hit sensitivity is 0 instead of NaN.

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
    return froc_of(count_marks(findings, nodules, excluded, series_uids), bootstraps=bootstraps, generator=generator)


def froc_of(marks: CountedMarks, *, bootstraps: int = 0, generator: np.random.Generator | None = None) -> FrocResult:
    """`froc` of marks that were counted before; arguments and errors as there."""
    curve, scans = marks.curve, marks.scans
    once = np.ones(scans, dtype=np.int64)
    fps, sensitivity = curve.points(once)
    shown = curve.corners()
    at = curve.sensitivity_at(once)
    return FrocResult(
        fps_per_scan=tuple(fps[shown].tolist()),
        sensitivity=tuple(sensitivity[shown].tolist()),
        thresholds=tuple(curve.thresholds[shown].tolist()),
        sensitivity_at=tuple(at.tolist()),
        cpm=float(at.mean()),
        scans=scans,
        nodules=marks.nodules,
        marks=marks.marks,
        true_positives=marks.true_positives,
        misses=marks.nodules - marks.true_positives,
        false_positives=marks.false_positives,
        ignored_on_excluded=marks.ignored_on_excluded,
        ignored_double_hits=marks.ignored_double_hits,
        ignored_beyond_limit=marks.ignored_beyond_limit,
        **_bootstrap_bands(curve, scans, bootstraps, generator),
    )


@dataclass(frozen=True, kw_only=True)
class CountedMarks:
    """What LUNA16's rules leave of some scans' marks.

    Attributes:
        curve: of the marks that count: the best one of each nodule, and the false positives.
        scans: how many were scored.
        nodule_probs: (nodules,) float64, the best mark of each included nodule, scan after scan; NaN for a miss.
        marks: of them at most the most probable 100 of each scan, see `froc`.
        false_positives: marks on nothing.
        ignored_on_excluded, ignored_double_hits, ignored_beyond_limit: those that do not, see `FrocResult`.
    """

    curve: Curve
    scans: int
    nodule_probs: npt.NDArray[np.float64]
    marks: int
    false_positives: int
    ignored_on_excluded: int
    ignored_double_hits: int
    ignored_beyond_limit: int

    @property
    def nodules(self) -> int:
        """Included nodules in all."""
        return len(self.nodule_probs)

    @property
    def true_positives(self) -> int:
        """Those with a mark."""
        return self.nodules - int(np.isnan(self.nodule_probs).sum())


def count_marks(
    findings: Mapping[str, Sequence[Mark]],
    nodules: Mapping[str, Sequence[Place]],
    excluded: Mapping[str, Sequence[Place]],
    series_uids: Sequence[str],
) -> CountedMarks:
    """Choose the marks that count by LUNA16's rules; arguments and errors as of `froc`."""
    if not series_uids or len(set(series_uids)) != len(series_uids):
        raise ValueError("the list of scans is empty or names a scan twice")
    best: list[npt.NDArray[np.float64]] = []  # of each scan's nodules
    false: list[npt.NDArray[np.float64]] = []  # of each scan's false positives
    marks = on_excluded = double_hits = beyond = 0
    for series_uid in series_uids:
        listed, included = findings.get(series_uid, ()), nodules.get(series_uid, ())
        probs = probabilities(listed, series_uid)
        best_first = np.argsort(-probs, kind="stable")
        if len(probs) > MARKS_PER_SCAN:
            best_first = best_first[probs[best_first] > probs[best_first[MARKS_PER_SCAN]]]
        kept, probs = [listed[i] for i in best_first.tolist()], probs[best_first]
        places = [*included, *excluded.get(series_uid, ())]
        hits_any = find_hits(places, kept, OFFICIAL_REACH, series_uid)
        hits, on_any = hits_any[: len(included)], hits_any.any(axis=0)
        found = hits.any(axis=1)
        best.append(np.full(len(included), np.nan))
        if found.any():
            best[-1][found] = probs[hits[found].argmax(axis=1)]  # sorted marks: the first hit is the best
        false.append(probs[~on_any])
        marks += len(kept)
        beyond += len(listed) - len(kept)
        on_excluded += int((on_any & ~hits.any(axis=0)).sum())
        double_hits += int(hits.sum() - found.sum())
    scans = len(series_uids)
    in_scan, false_in_scan = ([len(of_scan) for of_scan in part] for part in (best, false))
    nodule_probs, false_probs = np.concatenate(best), np.concatenate(false)
    detected = ~np.isnan(nodule_probs)
    scan_of = np.concatenate(
        [np.repeat(np.arange(scans), in_scan)[detected], np.repeat(np.arange(scans), false_in_scan)]
    )
    curve = Curve(
        probs=np.concatenate([nodule_probs[detected], false_probs]),
        is_nodule=np.arange(len(scan_of)) < int(detected.sum()),
        scan_of=scan_of,
        nodules_in_scan=np.array(in_scan, dtype=np.int64),
    )
    return CountedMarks(
        curve=curve,
        scans=scans,
        nodule_probs=nodule_probs,
        marks=marks,
        false_positives=len(false_probs),
        ignored_on_excluded=on_excluded,
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
        self._scan_of, self._worth = scan_of[order], np.where(is_nodule[order], _HIT, 1)
        self._nodules_in_scan = nodules_in_scan
        # Marks of one probability pass a threshold together: the curve has a point after the last of them.
        self._ends = np.flatnonzero(np.append(np.diff(probs[order]) != 0, len(probs) > 0))
        self.thresholds = np.append(np.inf, probs[order][self._ends])

    def _counts(self, times: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """False and true positives at or above each threshold, exact."""
        counts = np.zeros(len(self._ends) + 1, dtype=np.int64)
        counts[1:] = np.cumsum(self._worth * times.take(self._scan_of))[self._ends]
        return counts & (_HIT - 1), counts >> 32

    def points(self, times: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """False positives per scan and sensitivity at each threshold, every scan counted `times` times."""
        false, true = self._counts(times)
        nodules = int(times @ self._nodules_in_scan)
        sensitivity = true / nodules if nodules else np.full(len(true), np.nan)
        # As the challenge's script has it, a rate times its divisor: 1/8 of 888 scans is a whole number, and where a
        # nodule passes just there, rounding decides whether it is read as found.
        total = max(1, int(false[-1]))
        return false / total * total / times.sum(), sensitivity

    def sensitivity_at(
        self, times: npt.NDArray[np.int64], fps_per_scan: Sequence[float] = FPS_PER_SCAN
    ) -> npt.NDArray[np.float64]:
        """Sensitivity at some numbers of false positives per scan, linearly interpolated; NaN without a nodule.

        Args:
            times: (scans,) how often each scan counts.
            fps_per_scan: where.

        Returns:
            float64, one for each.
        """
        return np.interp(fps_per_scan, *self.points(times))

    def threshold_at(self, fps_per_scan: float) -> float:
        """The lowest threshold with at most so many false positives per scan; infinite when no mark may pass."""
        false, _ = self._counts(np.ones_like(self._nodules_in_scan))
        within = np.searchsorted(false, fps_per_scan * len(self._nodules_in_scan), side="right") - 1
        return float(self.thresholds[within])

    def corners(self) -> npt.NDArray[np.int64]:
        """The points that `sklearn.metrics.roc_curve(drop_intermediate=True)` keeps, and the origin."""
        false, true = (counts[1:] for counts in self._counts(np.ones_like(self._nodules_in_scan)))
        if len(false) <= 2:
            return np.arange(len(false) + 1)
        bends = (np.diff(false, 2) != 0) | (np.diff(true, 2) != 0)
        return np.flatnonzero(np.concatenate([[True, True], bends, [True]]))


def _bootstrap_bands(
    curve: Curve, scans: int, bootstraps: int, generator: np.random.Generator | None
) -> dict[str, Any]:
    """The bands of a `FrocResult`; resamples without a nodule are left out."""
    if not bootstraps:
        return {"band_low": (), "band_high": (), "cpm_band": (math.nan, math.nan)}
    if generator is None:
        raise ValueError("bootstraps need a generator")
    fps = (*FPS_PER_SCAN, *CURVE_FPS)
    at = np.empty((bootstraps, len(fps)))
    for row in at:
        times = np.bincount(generator.integers(scans, size=scans), minlength=scans)
        row[:] = curve.sensitivity_at(times, fps)
    defined = at[~np.isnan(at[:, 0])]
    if not len(defined):
        defined = np.full((1, len(fps)), np.nan)
    rates = len(FPS_PER_SCAN)
    low, high = np.percentile(defined, BAND_PERCENTILES, axis=0).tolist()
    cpm_low, cpm_high = np.percentile(defined[:, :rates].mean(axis=1), BAND_PERCENTILES).tolist()
    return {
        "band_low": tuple(low[:rates]),
        "band_high": tuple(high[:rates]),
        "cpm_band": (cpm_low, cpm_high),
        "curve_band": (CURVE_FPS, tuple(low[rates:]), tuple(high[rates:])),
    }
