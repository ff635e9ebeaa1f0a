"""What is known of how well a bundle did on some scans, and where each nodule was lost?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from lungml.accounting import (
    FollowedNodule,
    Funnel,
    Group,
    Losses,
    Lost,
    count_losses,
    group_by_diameter,
    group_by_spacing,
    group_by_texture,
    where_lost,
)
from lungml.compare import Difference, Sampled, Statistic, against_diameter, build_system, draw_resamples, sample
from lungml.evidence import Evidence, check_evidence
from lungml.froc import FrocResult, count_marks, froc_of
from lungml.score import (
    FILTERED,
    OFFICIAL_REACH,
    PREDICTED_MALIGNANT,
    REPORT_REACH,
    Table,
    Thresholds,
    find_hits,
    find_stages,
    finite_or_none,
    score_table,
)
from lungml.scored import Scored
from lungml.segmentation_score import SegmentationScore, SegmentedNodule, SegmentedScan, pool_segmentation

__all__ = [
    "Evidence",
    "Funnel",
    "Group",
    "Losses",
    "Lost",
    "Scorecard",
    "SegmentationScore",
    "SegmentedNodule",
    "SegmentedScan",
    "score_scans",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scorecard:
    """Every score of one bundle on some scans.

    Attributes:
        series_uids: the scans, those set aside included, in the order of their uid.
        set_aside: those that could not be read; their nodules count as missed.
        nodule_threshold, malignant_threshold: of scans without their own, and of whatever is told of `nodule` and
            `malignancy` at one threshold. Where all scans have their own, as in a cross-validation, whoever scores
            them says which one that is; no count of a table depends on it.
        own_thresholds: of the scans that have their own, the nodule and the malignancy threshold: sorted, each pair
            once. They decide in the tables, losses, funnel and samples. Empty where one pair decides everywhere.
        table: the report's, by its rule (0.7 of a diameter); it knows neither excluded findings nor unrated nodules,
            and what was found there is a non-nodule.
        official_table: the same by the official radius; findings on excluded findings or unrated nodules are left out.
        froc: by LUNA16's rules, unrated nodules included, with its bootstraps over scans.
        curve_band: (3, points) false positives a scan, and the edges of the FROC's 95 % band there, to draw.
        samples: every statistic of `lungml.compare` with its resamples: the same ones for every bundle on equal scans.
        over_diameter: the malignancy AUC less the annotated diameter's, on the same nodules.
        by_diameter, by_spacing, by_texture: sensitivity of nodules of each kind; empty where it is not known.
        losses: of all nodules.
        malignant_losses: of the malignant ones.
        funnel: means a scan that was read.
        segmentation: None where no scan was read.
        nodule: the findings, judged: is it within the radius of a nodule, rated or not? Those on an excluded finding
            only are left out.
        malignancy: the annotated nodules of the scans that were read, judged at their centres.
        diameters_mm: of the same nodules in the same order.
    """

    series_uids: tuple[str, ...]
    set_aside: tuple[str, ...]
    nodule_threshold: float
    malignant_threshold: float
    own_thresholds: tuple[Thresholds, ...]
    table: Table
    official_table: Table
    froc: FrocResult
    curve_band: npt.NDArray[np.float64]
    samples: Mapping[Statistic, Sampled]
    over_diameter: Difference
    by_diameter: tuple[Group, ...]
    by_spacing: tuple[Group, ...]
    by_texture: tuple[Group, ...]
    losses: Losses
    malignant_losses: Losses
    funnel: Funnel
    segmentation: SegmentationScore | None
    nodule: Scored
    malignancy: Scored
    diameters_mm: npt.NDArray[np.float64]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, None for NaN; of the findings and nodules themselves only what sums them up."""
        return {
            "series_uids": list(self.series_uids),
            "set_aside": list(self.set_aside),
            "nodule_threshold": self.nodule_threshold,
            "malignant_threshold": self.malignant_threshold,
            "own_thresholds": [list(pair) for pair in self.own_thresholds],
            "table": self.table.as_dict(),
            "official_table": self.official_table.as_dict(),
            "froc": self.froc.as_dict(),
            "samples": {name: sampled.as_dict() for name, sampled in self.samples.items()},
            "over_diameter": self.over_diameter.as_dict(),
            "by_diameter": [group.as_dict() for group in self.by_diameter],
            "by_spacing": [group.as_dict() for group in self.by_spacing],
            "by_texture": [group.as_dict() for group in self.by_texture],
            "losses": self.losses.as_dict(),
            "malignant_losses": self.malignant_losses.as_dict(),
            "funnel": self.funnel.as_dict(),
            "segmentation": None if self.segmentation is None else self.segmentation.as_dict(),
            "nodule": _summed_up(self.nodule),
            "malignancy": _summed_up(self.malignancy),
        }


def score_scans(
    evidence: Sequence[Evidence],
    *,
    nodule_threshold: float,
    malignant_threshold: float,
    seed: int,
    resamples: int = 2000,
    bootstraps: int = 1000,
) -> Scorecard:
    """Score one bundle on some scans. Of the folds of a cross-validation, all scans in one list is how they are pooled.

    Args:
        evidence: of each scan; in which order makes no difference.
        nodule_threshold, malignant_threshold: on the probabilities, inclusive; of scans whose evidence has none of
            its own.
        seed: of the resamples and of the bootstraps.
        resamples: of `samples` and of the groups' bands.
        bootstraps: of the official score's bands.

    Raises:
        ValueError: no scan, a scan twice, a scan with some answers and without others, lists of unequal length, or
            a probability that is NaN where one is needed, or not in [0, 1]; the message names the scan.
    """
    scans = check_evidence(evidence)
    own = {one.series_uid: one.thresholds for one in scans if one.thresholds is not None}
    read = [one for one in scans if one.findings is not None]
    series = [one.series_uid for one in scans]
    findings = {one.series_uid: one.findings for one in read if one.findings is not None}
    nodules = {one.series_uid: one.nodules for one in scans}
    excluded = {one.series_uid: one.excluded for one in scans}
    of_bootstraps, of_resamples = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(2))

    marks = count_marks(findings, {one.series_uid: (*one.nodules, *one.unrated) for one in scans}, excluded, series)
    result = froc_of(marks, bootstraps=bootstraps, generator=of_bootstraps)
    said = {one.series_uid: one.prob_malignant for one in read if one.prob_malignant is not None}
    system = build_system(
        findings,
        nodules,
        excluded,
        series,
        prob_malignant=said,
        nodule_threshold=nodule_threshold,
        malignant_threshold=malignant_threshold,
        thresholds_per_scan=own,
    )
    times = draw_resamples(len(series), resamples, of_resamples)
    # The tables know the rated nodules only, the challenge's curve all of them.
    samples = sample(replace(system, curve=marks.curve), times)

    at_1_fps = marks.nodule_probs >= marks.curve.threshold_at(1)
    followed, funnel, first = [], [], 0
    for place, one in enumerate(scans):
        decide = own.get(one.series_uid, (nodule_threshold, malignant_threshold))
        stages = find_stages(one.findings or (), one.series_uid, *decide)
        followed += _follow(place, one, stages, at_1_fps[first:])
        first += len(one.nodules) + len(one.unrated)
        if one.findings is not None and one.segmented is not None:
            taken, malignant = int((stages > FILTERED).sum()), int((stages == PREDICTED_MALIGNANT).sum())
            funnel.append((one.segmented.voxels, one.segmented.flagged, len(stages), taken, malignant))
    tabulate = partial(
        score_table,
        findings,
        nodules,
        nodule_threshold=nodule_threshold,
        malignant_threshold=malignant_threshold,
        thresholds_per_scan=own,
    )
    return Scorecard(
        series_uids=tuple(series),
        set_aside=tuple(one.series_uid for one in scans if one.findings is None),
        nodule_threshold=nodule_threshold,
        malignant_threshold=malignant_threshold,
        own_thresholds=tuple(sorted(set(own.values()))),
        table=tabulate(),
        official_table=tabulate(
            match="official",
            excluded_per_scan={one.series_uid: (*one.excluded, *one.unrated) for one in scans},
        ),
        froc=result,
        curve_band=np.array(result.curve_band, dtype=np.float64).reshape(3, -1),
        samples=samples,
        over_diameter=against_diameter(samples),
        by_diameter=group_by_diameter(followed, times),
        by_spacing=group_by_spacing(followed, times),
        by_texture=group_by_texture(followed, times),
        losses=count_losses(followed),
        malignant_losses=count_losses([nodule for nodule in followed if nodule.malignant]),
        funnel=Funnel.of(funnel),
        segmentation=pool_segmentation([one.segmented for one in read if one.segmented is not None]) if read else None,
        nodule=_judge_findings(read),
        malignancy=Scored(
            targets=np.array([nodule.malignant for one in read for nodule in one.nodules], dtype=np.bool_),
            probs=np.array([prob for probs in said.values() for prob in probs], dtype=np.float64),
        ),
        diameters_mm=np.array([nodule.diameter_mm for one in read for nodule in one.nodules], dtype=np.float64),
    )


def _follow(
    scan: int, one: Evidence, stages: npt.NDArray[np.int64], at_1_fps: npt.NDArray[np.bool_]
) -> list[FollowedNodule]:
    """What became of each rated nodule; `at_1_fps` begins with them."""
    lost: list[Lost | None] = ["quarantine"] * len(one.nodules)
    if one.findings is not None and one.segmented is not None:
        hits = find_hits(one.nodules, one.findings, REPORT_REACH, one.series_uid)
        lost = [
            where_lost(stages[on_it], touched=seen.touched, malignant=nodule.malignant)
            for nodule, on_it, seen in zip(one.nodules, hits, one.segmented.nodules)
        ]
    return [
        FollowedNodule(
            scan=scan,
            malignant=nodule.malignant,
            diameter_mm=nodule.diameter_mm,
            slice_spacing_mm=one.slice_spacing_mm,
            texture=texture,
            lost=end,
            found_at_1_fps=bool(found),
        )
        for nodule, texture, end, found in zip(one.nodules, one.textures or ("",) * len(one.nodules), lost, at_1_fps)
    ]


def _judge_findings(read: Sequence[Evidence]) -> Scored:
    targets: list[bool] = []
    probs: list[float] = []
    for one in read:
        findings, included = one.findings or (), (*one.nodules, *one.unrated)
        hits = find_hits((*included, *one.excluded), findings, OFFICIAL_REACH, one.series_uid)
        on_nodule = np.any(hits[: len(included)], axis=0)
        counted = np.flatnonzero(on_nodule | ~hits.any(axis=0)).tolist()
        targets += on_nodule[counted].tolist()
        probs += [findings[position].prob_nodule for position in counted]
    return Scored(targets=np.array(targets, dtype=np.bool_), probs=np.array(probs, dtype=np.float64))


def _summed_up(scored: Scored) -> dict[str, Any]:
    reliability = scored.reliability
    return {
        "positives": scored.positives,
        "negatives": scored.negatives,
        "auc": finite_or_none(scored.auc),
        "average_precision": finite_or_none(scored.average_precision),
        "calibration": {
            "samples": reliability.samples.tolist(),
            "said": [finite_or_none(share) for share in reliability.said.tolist()],
            "true": [finite_or_none(share) for share in reliability.true.tolist()],
            "ece": finite_or_none(reliability.ece),
            "brier": finite_or_none(reliability.brier),
        },
    }
