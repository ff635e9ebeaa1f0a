"""Is one system better than another on these scans, or would other scans have said otherwise?

A paired bootstrap: the scans are drawn anew with replacement, many times, the same ones for both systems. The unit is
the scan, since nodules of one scan are no independent draws; they stay with their scan. All that is random is how
often each scan counts, so a score on a resample is a few weighted sums.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from lungml.froc import BAND_PERCENTILES, FPS_PER_SCAN, Curve, count_marks
from lungml.score import (
    PREDICTED_MALIGNANT,
    REPORT_REACH,
    Judged,
    Place,
    Thresholds,
    Truth,
    find_hits,
    finite_or_none,
    score_table,
)

Statistic = Literal[
    "cpm", "sensitivity_at_1_fps", "found", "false_positives",
    "malignancy_auc", "diameter_auc", "end_to_end_malignancy_auc",
    "malignant_sensitivity", "malignant_false_positives",
]  # fmt: skip
STATISTICS: tuple[Statistic, ...] = get_args(Statistic)
RESAMPLES = 2000
LEAST_SCANS = 3  # that hold what a score is made of: resamples of one or two know next to nothing of other scans
DEFINED_SHARE = 0.5  # of the resamples: a band of fewer says little of the scans that were left out
P_VALUE = "min(1, 2 (1 + min(n[d <= 0], n[d >= 0])) / (1 + n)) over the n resampled differences d"
NO_DIFFERENCE = 1e-12  # what rounding makes of a difference that is none


class Ranking:
    """How well scores rank positives above negatives, on any resample of the scans."""

    def __init__(
        self,
        positive: npt.ArrayLike,
        scores: npt.ArrayLike,
        scan_of: npt.ArrayLike,
        scans: int,
    ) -> None:
        """Count, for every two scans, how often a positive of one scores above a negative of the other.

        Args:
            positive: (n,) bool.
            scores: (n,) float, higher means more likely positive.
            scan_of: (n,) int, which scan each belongs to.
            scans: how many scans there are.

        Raises:
            ValueError: on lists of unequal length, or a score that is NaN.
        """
        truth, values = np.asarray(positive, dtype=bool), np.asarray(scores, dtype=np.float64)
        places = np.asarray(scan_of, dtype=np.int64)
        if not truth.shape == values.shape == places.shape or truth.ndim != 1:
            raise ValueError(
                f"{truth.shape} labels, {values.shape} scores and {places.shape} scans are not of one length"
            )
        if np.isnan(values).any():
            raise ValueError(f"{int(np.isnan(values).sum())} of {len(values)} scores are NaN")
        above, below = values[truth][:, None], values[~truth][None]
        wins = (above > below) + 0.5 * (above == below)  # exact: halves
        self._wins = np.zeros((scans, scans))
        np.add.at(self._wins, (places[truth][:, None], places[~truth][None]), wins)
        self._positives = np.bincount(places[truth], minlength=scans)
        self._negatives = np.bincount(places[~truth], minlength=scans)

    def auc(self, times: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Area under the ROC curve, every scan counted `times` times; a tie counts half.

        Args:
            times: (resamples, scans).

        Returns:
            (resamples,) float64 in [0, 1]; NaN where a class is absent.
        """
        weights = times.astype(np.float64)
        won = ((weights @ self._wins) * weights).sum(axis=1)
        pairs = (weights @ self._positives) * (weights @ self._negatives)
        return np.divide(won, pairs, out=np.full(len(times), np.nan), where=pairs > 0)

    @property
    def scans(self) -> tuple[int, int, int]:
        """How many scans hold anything that is ranked, how many a positive, and how many a negative."""
        positive, negative = self._positives > 0, self._negatives > 0
        return int((positive | negative).sum()), int(positive.sum()), int(negative.sum())


@dataclass(frozen=True, kw_only=True)
class System:
    """What one system did on a list of scans, ready to be scored on any resample of them.

    Attributes:
        series_uids: the scans.
        curve: by LUNA16's official rules.
        found, false_positives, malignant, malignant_flagged: (scans,) int: of the report's table.
        malignant_false_positives: (scans,) int: benign nodules and non-nodules that it has as predicted malignant.
        malignancy: of the annotated nodules, by the malignancy model at their annotated centres.
        diameter: of the same nodules, by their annotated diameter.
        end_to_end: of all annotated nodules, by what the whole system said of them.
    """

    series_uids: tuple[str, ...]
    curve: Curve
    found: npt.NDArray[np.int64]
    false_positives: npt.NDArray[np.int64]
    malignant: npt.NDArray[np.int64]
    malignant_flagged: npt.NDArray[np.int64]
    malignant_false_positives: npt.NDArray[np.int64]
    malignancy: Ranking
    diameter: Ranking
    end_to_end: Ranking

    def score(self, times: npt.NDArray[np.int64]) -> dict[Statistic, npt.NDArray[np.float64]]:
        """Every statistic on every resample.

        Args:
            times: (resamples, scans) how often each scan counts.

        Returns:
            (resamples,) float64 each; NaN where it is not defined, such as the share of the malignant nodules that
            the report's table has as predicted malignant where there is none. Those that count nodules or findings
            are sums.
        """
        at = np.array([self.curve.sensitivity_at(row) for row in times])
        flagged, malignant = times @ self.malignant_flagged, times @ self.malignant
        return {
            "cpm": at.mean(axis=1),
            "sensitivity_at_1_fps": at[:, FPS_PER_SCAN.index(1)],
            "found": (times @ self.found).astype(np.float64),
            "false_positives": (times @ self.false_positives).astype(np.float64),
            "malignancy_auc": self.malignancy.auc(times),
            "diameter_auc": self.diameter.auc(times),
            "end_to_end_malignancy_auc": self.end_to_end.auc(times),
            "malignant_sensitivity": np.divide(
                flagged, malignant, out=np.full(len(times), np.nan), where=malignant > 0
            ),
            "malignant_false_positives": (times @ self.malignant_false_positives).astype(np.float64),
        }


def build_system(
    findings: Mapping[str, Sequence[Judged]],
    nodules: Mapping[str, Sequence[Truth]],
    excluded: Mapping[str, Sequence[Place]],
    series_uids: Sequence[str],
    *,
    prob_malignant: Mapping[str, Sequence[float]],
    nodule_threshold: float = 0.5,
    malignant_threshold: float = 0.5,
    thresholds_per_scan: Mapping[str, Thresholds] | None = None,
) -> System:
    """Put together what a system found and judged.

    Malignancy is looked at in two ways. At the annotated centres the malignancy model alone is judged, as in the
    report; nodules of scans that could not be read are left out there, and for the diameter too. End to end a nodule
    gets the highest malignancy probability of the findings that the report's table would count on it (nearer than
    0.7 diameters, at or above the nodule threshold), and one without such a finding, missed or filtered out, gets 0.

    Args:
        findings: by series_uid, all findings; scans that could not be read are left out.
        nodules: by series_uid, the annotated nodules.
        excluded: by series_uid, excluded findings; only the official curve knows them.
        series_uids: the scans.
        prob_malignant: by series_uid, the malignancy model's probability at the centre of each of `nodules`.
        nodule_threshold, malignant_threshold, thresholds_per_scan: see `score_table`.

    Raises:
        ValueError: see `froc` and `score_table`; or a scan whose probabilities and nodules differ in number.
    """
    curve = count_marks(findings, nodules, excluded, series_uids).curve
    tables = []
    judged: list[tuple[bool, float, float, int]] = []  # malignant, probability, diameter, scan
    whole: list[tuple[bool, float, int]] = []
    for scan, uid in enumerate(series_uids):
        known, listed = nodules.get(uid, ()), findings.get(uid, ())
        nodule_from, malignant_from = (thresholds_per_scan or {}).get(uid, (nodule_threshold, malignant_threshold))
        tables.append(
            score_table(
                {uid: listed} if uid in findings else {},
                {uid: known},
                nodule_threshold=nodule_from,
                malignant_threshold=malignant_from,
            )
        )
        taken = [f for f in listed if f.prob_nodule >= nodule_from]
        for nodule, on_it in zip(known, find_hits(known, taken, REPORT_REACH, uid)):
            said = max((f.prob_malignant for f, hit in zip(taken, on_it) if hit), default=0.0)
            whole.append((nodule.malignant, said, scan))
        if uid in prob_malignant:
            if len(prob_malignant[uid]) != len(known):
                raise ValueError(f"{uid}: {len(prob_malignant[uid])} probabilities for {len(known)} nodules")
            judged += [(n.malignant, p, n.diameter_mm, scan) for n, p in zip(known, prob_malignant[uid])]
    malignant, probs, diameters, scan_of = _columns(judged, 4)
    in_all, said_in_all, scan_of_all = _columns(whole, 3)
    scans = len(series_uids)
    return System(
        series_uids=tuple(series_uids),
        curve=curve,
        found=np.array([table.found for table in tables], dtype=np.int64),
        false_positives=np.array([table.false_positives for table in tables], dtype=np.int64),
        malignant=np.array([table.malignant for table in tables], dtype=np.int64),
        malignant_flagged=np.array([table.malignant_flagged for table in tables], dtype=np.int64),
        malignant_false_positives=np.array(
            [sum(row[PREDICTED_MALIGNANT] for row in table.counts[:2]) for table in tables], dtype=np.int64
        ),
        malignancy=Ranking(malignant, probs, scan_of, scans),
        diameter=Ranking(malignant, diameters, scan_of, scans),
        end_to_end=Ranking(in_all, said_in_all, scan_of_all, scans),
    )


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """One score on the scans as they are and on their resamples.

    Attributes:
        observed: on the scans as they are.
        resampled: (resamples,) float64, NaN where the score is not defined.
        scans: how many of the scans hold what it is made of, such as a nodule, and of an AUC one of the rarer kind;
            None where that was not counted.
    """

    observed: float
    resampled: npt.NDArray[np.float64]
    scans: int | None = None

    @property
    def band(self) -> tuple[float, float]:
        """95 % percentile band of the resamples that are defined.

        NaN where they tell too little, see `tells`, and where all are equal: that nothing varied is no certainty.
        """
        defined = self.resampled[~np.isnan(self.resampled)]
        if not self.tells or (defined == defined[0]).all():
            return math.nan, math.nan
        return _band(defined)

    @property
    def tells(self) -> bool:
        """Whether at least `LEAST_SCANS` scans count, as far as is known, and `DEFINED_SHARE` of the resamples."""
        return _tells(len(self.resampled) - self.left_out, self.left_out, self.scans)

    @property
    def left_out(self) -> int:
        """Resamples on which it is not defined."""
        return int(np.isnan(self.resampled).sum())

    def as_dict(self) -> dict[str, float | int | list[float | None] | None]:
        """JSON-able; None for NaN."""
        return {
            "observed": finite_or_none(self.observed),
            "band": [finite_or_none(edge) for edge in self.band],
            "left_out": self.left_out,
            "scans": self.scans,
        }


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much more one score is than another on the same scans.

    Attributes:
        first, second: the scores.
        difference: second - first.
        band: its 95 % percentile band; NaN where the scores tell too little, see `Sampled.tells`. Of equal resamples it
            has no width: a system does not differ from itself.
        p_value: two-sided, see `P_VALUE`; never 0, and NaN where the band is.
        resamples: on which both scores are defined.
        left_out: on which one is not, such as those without a malignant nodule; they are not drawn again.
    """

    first: float
    second: float
    difference: float
    band: tuple[float, float]
    p_value: float
    resamples: int
    left_out: int

    def as_dict(self) -> dict[str, float | int | list[float | None] | None]:
        """JSON-able; None for NaN."""
        return {
            "first": finite_or_none(self.first),
            "second": finite_or_none(self.second),
            "difference": finite_or_none(self.difference),
            "band": [finite_or_none(edge) for edge in self.band],
            "p_value": finite_or_none(self.p_value),
            "resamples": self.resamples,
            "left_out": self.left_out,
        }


def draw_resamples(scans: int, resamples: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """How often each scan counts in each resample: `scans` draws with replacement.

    Returns:
        (resamples, scans) int64; every row sums to `scans`.
    """
    return generator.multinomial(scans, np.full(scans, 1 / scans), size=resamples)


def sample(system: System, times: npt.NDArray[np.int64]) -> dict[Statistic, Sampled]:
    """Every statistic of a system, observed and resampled.

    Args:
        system: see `build_system`.
        times: (resamples, scans), see `draw_resamples`; give all systems the same.
    """
    observed = system.score(np.ones((1, len(system.series_uids)), dtype=np.int64))
    resampled, scans = system.score(times), _count_scans(system)
    return {
        name: Sampled(observed=float(observed[name][0]), resampled=resampled[name], scans=scans[name])
        for name in STATISTICS
    }


def _count_scans(system: System) -> dict[Statistic, int]:
    """How many scans hold what each statistic is made of; every scan may hold a false positive."""
    scans, (annotated, malignant, benign) = len(system.series_uids), system.end_to_end.scans
    judged = min(system.malignancy.scans[1:])
    return {
        "cpm": annotated,  # a scan whose nodules nobody rated is not counted: too few rather than too many
        "sensitivity_at_1_fps": annotated,
        "found": annotated,
        "false_positives": scans,
        "malignancy_auc": judged,
        "diameter_auc": judged,
        "end_to_end_malignancy_auc": min(malignant, benign),
        "malignant_sensitivity": malignant,
        "malignant_false_positives": scans,
    }


def paired_difference(first: Sampled, second: Sampled) -> Difference:
    """The second score less the first, with its band and p value.

    Both must have been resampled alike. The p value inverts the band: it is below 0.05 where the 95 % band lies on
    one side of 0, to within one resample. Its smallest value is 2 / (1 + resamples).

    Raises:
        ValueError: when the numbers of resamples differ.
    """
    if first.resampled.shape != second.resampled.shape:
        raise ValueError(f"{len(first.resampled)} and {len(second.resampled)} resamples are no pairs")
    differences = _clean(second.resampled - first.resampled)
    defined = differences[~np.isnan(differences)]
    observed = float(_clean(np.array([second.observed - first.observed]))[0])
    band, p_value = (math.nan, math.nan), math.nan
    scans = min((one.scans for one in (first, second) if one.scans is not None), default=None)
    if _tells(len(defined), len(differences) - len(defined), scans) and not math.isnan(observed):
        against = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
        band, p_value = _band(defined), min(1.0, 2 * (1 + against) / (1 + len(defined)))
    return Difference(
        first=first.observed,
        second=second.observed,
        difference=observed,
        band=band,
        p_value=p_value,
        resamples=len(defined),
        left_out=len(differences) - len(defined),
    )


def compare(
    first: System, second: System, *, generator: np.random.Generator, resamples: int = RESAMPLES
) -> dict[Statistic, Difference]:
    """The paired difference of every statistic, second less first.

    Raises:
        ValueError: when the systems were not scored on the same scans.
    """
    if first.series_uids != second.series_uids:
        raise ValueError("the systems were not scored on the same scans in the same order")
    times = draw_resamples(len(first.series_uids), resamples, generator)
    return paired_differences(sample(first, times), sample(second, times))


def paired_differences(
    first: Mapping[Statistic, Sampled], second: Mapping[Statistic, Sampled]
) -> dict[Statistic, Difference]:
    """`paired_difference` of every statistic of two systems that were sampled alike."""
    return {name: paired_difference(first[name], second[name]) for name in STATISTICS}


def against_diameter(samples: Mapping[Statistic, Sampled]) -> Difference:
    """The malignancy model's AUC less the annotated diameter's, on the same nodules."""
    return paired_difference(samples["diameter_auc"], samples["malignancy_auc"])


def _columns(rows: Sequence[tuple[float, ...]], count: int) -> list[list[float]]:
    return [[row[column] for row in rows] for column in range(count)]


def _clean(differences: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(np.abs(differences) < NO_DIFFERENCE, 0.0, differences)


def _tells(defined: int, left_out: int, scans: int | None) -> bool:
    """Whether resamples say enough for a band."""
    enough = scans is None or scans >= LEAST_SCANS
    return enough and 0 < defined >= DEFINED_SHARE * (defined + left_out)


def _band(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(values, BAND_PERCENTILES)
    return float(low), float(high)
