"""Which cases show best where a bundle is wrong?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from lungml.evidence import Evidence
from lungml.findings import Finding
from lungml.score import OFFICIAL_REACH, REPORT_REACH, find_hits
from lungml.wording import probability

Kind = Literal["missed", "filtered out", "malignant called benign", "false positive"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One place where a bundle was wrong.

    Attributes:
        series_uid: of the scan.
        center_xyz: mm, LPS: of the nodule as annotated, or of the finding that is on none.
        diameter_mm: of the nodule as annotated, or of the finding as segmented; NaN where nothing tells it.
        kind: what went wrong.
        words: what is true there and what was said.
    """

    series_uid: str
    center_xyz: tuple[float, float, float]
    diameter_mm: float
    kind: Kind
    words: str


def choose_worst(
    evidence: Sequence[Evidence], nodule_threshold: float, malignant_threshold: float, limit: int = 4
) -> list[Case]:
    """The worst cases of every kind, by the rules of the report's table (0.7 of a diameter).

    Missed nodules and those filtered out come malignant ones first; then missed ones the larger first, and those
    filtered out the least probable first. Of malignant ones called benign the least probably malignant come first, of
    false positives the most probable. Equal ones stay in the order given. What lies on an excluded finding or on a
    nodule that nobody rated is no false positive here. Scans that were set aside have no cases: nothing was said of
    them.

    Args:
        evidence: of the scans.
        nodule_threshold, malignant_threshold: inclusive; of scans whose evidence has none of its own.
        limit: at most so many of each kind.

    Returns:
        the kinds in the order of `Kind`, each the worst first.
    """
    ranked: dict[Kind, list[tuple[tuple[float, ...], Case]]] = {kind: [] for kind in get_args(Kind)}
    for scan in evidence:
        if scan.findings is not None:
            nodule_from, malignant_from = scan.thresholds or (nodule_threshold, malignant_threshold)
            for rank, case in (
                *_wrong_nodules(scan, scan.findings, nodule_from, malignant_from),
                *_alarms(scan, scan.findings, nodule_from),
            ):
                ranked[case.kind].append((rank, case))
    return [case for cases in ranked.values() for _, case in sorted(cases, key=lambda item: item[0])[:limit]]


def _wrong_nodules(
    scan: Evidence, findings: Sequence[Finding], nodule_threshold: float, malignant_threshold: float
) -> Iterator[tuple[tuple[float, ...], Case]]:
    """Nodules lost, and malignant ones called benign; of several findings the one that came furthest counts."""
    for nodule, on_it in zip(scan.nodules, find_hits(scan.nodules, findings, REPORT_REACH, scan.series_uid)):
        here = [finding for finding, hit in zip(findings, on_it) if hit]
        taken = [f for f in here if f.prob_nodule >= nodule_threshold]
        what = "malignant" if nodule.malignant else "benign"
        kind: Kind
        rank: tuple[float, ...]
        if not here:
            kind, rank, said = "missed", (not nodule.malignant, -nodule.diameter_mm), "no candidate here"
        elif not taken:
            best = max(f.prob_nodule for f in here)
            kind, rank, said = "filtered out", (not nodule.malignant, best), f"nodule probability {probability(best)}"
        else:
            best = max(f.prob_malignant for f in taken)
            if not nodule.malignant or best >= malignant_threshold:
                continue
            kind, rank, said = "malignant called benign", (best,), f"malignancy probability {probability(best)}"
        case = Case(
            series_uid=scan.series_uid,
            center_xyz=nodule.center_xyz,
            diameter_mm=nodule.diameter_mm,
            kind=kind,
            words=f"{what} nodule of {nodule.diameter_mm:.1f} mm; {said}",
        )
        yield rank, case


def _alarms(
    scan: Evidence, findings: Sequence[Finding], nodule_threshold: float
) -> Iterator[tuple[tuple[float, ...], Case]]:
    """Findings taken for nodules where none is."""
    alarms = [f for f in findings if f.prob_nodule >= nodule_threshold]
    places = [*scan.excluded, *scan.unrated]
    hits = [
        find_hits(scan.nodules, alarms, REPORT_REACH, scan.series_uid),
        find_hits(places, alarms, OFFICIAL_REACH, scan.series_uid),
    ]
    for finding, known in zip(alarms, np.concatenate(hits).sum(axis=0)):
        if known:
            continue
        said = f"nodule probability {probability(finding.prob_nodule)}"
        if not math.isnan(finding.prob_malignant):
            said += f", malignancy {probability(finding.prob_malignant)}"
        case = Case(
            series_uid=scan.series_uid,
            center_xyz=finding.center_xyz,
            diameter_mm=finding.diameter_mm,
            kind="false positive",
            words=f"nothing annotated; {said}",
        )
        yield (-finding.prob_nodule,), case
