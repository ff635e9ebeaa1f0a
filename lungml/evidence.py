"""What is known of one scan when a bundle is scored: what is true, and what the bundle said?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lungml.findings import Finding
from lungml.score import Place, Thresholds, Truth
from lungml.segmentation_score import SegmentedScan


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One scan: what is true and what a bundle said. A scan that was set aside has none of the three answers.

    Attributes:
        series_uid: of the scan.
        nodules: annotated, with ratings.
        unrated: nodules that the challenge includes though nobody rated them: only the official score counts them.
        excluded: neither hits nor false positives.
        findings: every candidate; None where the scan was set aside.
        segmented: None where the scan was set aside.
        prob_malignant: calibrated, at the annotated centre of each of `nodules`; None where the scan was set aside.
        slice_spacing_mm: None where it is not known.
        textures: of each of `nodules`, "" where it is not known; empty where none is.
        thresholds: of the bundle that was asked about this scan, where scans of several bundles are scored together;
            None where those of the whole score decide.
    """

    series_uid: str
    nodules: tuple[Truth, ...]
    unrated: tuple[Place, ...] = ()
    excluded: tuple[Place, ...] = ()
    findings: tuple[Finding, ...] | None
    segmented: SegmentedScan | None
    prob_malignant: tuple[float, ...] | None
    slice_spacing_mm: float | None = None
    textures: tuple[str, ...] = ()
    thresholds: Thresholds | None = None


def check_evidence(evidence: Sequence[Evidence]) -> list[Evidence]:
    """The scans in the order of their uid.

    Raises:
        ValueError: no scan, a scan twice, one with some answers and without others, lists of unequal length, or a
            probability or threshold that is NaN or not in [0, 1]. A finding may lack its malignancy: whether
            it needs one depends on the threshold, see `lungml.score.find_stages`.
    """
    if not evidence:
        raise ValueError("there is no scan to score")
    scans = sorted(evidence, key=lambda one: one.series_uid)
    for one, after in pairwise(scans):
        if one.series_uid == after.series_uid:
            raise ValueError(f"{one.series_uid}: this scan is there twice")
    for one in scans:
        lacking = [answer is None for answer in (one.findings, one.segmented, one.prob_malignant)]
        if any(lacking) and not all(lacking):
            raise ValueError(
                f"{one.series_uid}: some answers are there and some are not; give all, or none if set aside"
            )
        count = len(one.nodules)
        for name, given in (
            ("textures", one.textures or one.nodules),
            ("probabilities of malignancy", one.nodules if one.prob_malignant is None else one.prob_malignant),
            ("segmented nodules", one.nodules if one.segmented is None else one.segmented.nodules),
        ):
            if len(given) != count:
                raise ValueError(f"{one.series_uid}: {len(given)} {name} for {count} nodules")
        findings = one.findings or ()
        for probs, may_lack in (
            ([f.prob_nodule for f in findings], False),
            ([f.prob_malignant for f in findings], True),
            (one.prob_malignant or (), False),
        ):
            values = np.array(probs, dtype=np.float64)
            if not (((values >= 0) & (values <= 1)) | (may_lack & np.isnan(values))).all():
                raise ValueError(f"{one.series_uid}: a probability is NaN or not in [0, 1]")
        if not all(0 <= threshold <= 1 for threshold in one.thresholds or ()):
            raise ValueError(f"{one.series_uid}: a threshold is NaN or not in [0, 1]")
    return scans
