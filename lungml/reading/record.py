"""What is known of one scan once bundles have read it, and how is that written down?"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from lungml.candidates import GroupingSettings
from lungml.files import csv_text
from lungml.findings import FINDINGS_COLUMNS, Finding, findings_rows
from lungml.geometry import Grid
from lungml.luna import CENTER_COLUMNS, Excluded
from lungml.marked import Marked
from lungml.score import OFFICIAL_REACH
from lungml.submission import SUBMISSION_HEADER
from lungml.tables import SERIES_COLUMN

FORMAT, FORMAT_VERSION = "luna-findings", 1
NOT_FOR = "A model's opinion, not for clinical use."
READING_COLUMNS = ("finding", *FINDINGS_COLUMNS, "bundle", "luna_version")


@dataclass(frozen=True, kw_only=True, eq=False)
class Opinion:
    """What one bundle said of a scan.

    Attributes:
        bundle: `models:/luna/N`; an alias was resolved, since it moves on.
        asked_as: how it was asked for, such as `models:/luna@champion`.
        recipe: that its models were trained by.
        origin: of the scans they learned from, real or phantom.
        nodule_threshold, malignant_threshold: on the probabilities that findings show, inclusive.
        grouping: how marked voxels became candidates.
        findings: every candidate, the most probable nodule first; finding number n is the n-th, from 1.
        marked: what the segmentation marked.
        left_out: places beyond the limit of candidates.
        models: member -> URIs.
    """

    bundle: str
    asked_as: str
    recipe: str
    origin: str
    nodule_threshold: float
    malignant_threshold: float
    grouping: GroupingSettings
    findings: tuple[Finding, ...]
    marked: Marked
    left_out: int = 0
    models: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class KnownNodule:
    """A nodule of the truth that a reading is compared with; `malignant` is None where nothing says."""

    center_xyz: tuple[float, float, float]
    diameter_mm: float
    malignant: bool | None = None


@dataclass(frozen=True, kw_only=True)
class KnownTruth:
    """What the tables say of a scan: its nodules, and what is neither a hit nor a false positive."""

    nodules: tuple[KnownNodule, ...] = ()
    excluded: tuple[Excluded, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """One scan with what one bundle, or two that are compared, said of it.

    Attributes:
        series_uid: of the scan.
        hu: (index, row, col) int16, as stored.
        grid: its sampling grid.
        opinions: one or two.
        made: when, UTC.
        warnings: what a person should know of the scan, one line each.
        truth: where it is known.
    """

    series_uid: str
    hu: npt.NDArray[np.int16]
    grid: Grid
    opinions: tuple[Opinion, ...]
    made: datetime
    warnings: tuple[str, ...] = ()
    truth: KnownTruth | None = None


@dataclass(frozen=True, kw_only=True)
class TruthAt:
    """What truth stands at a finding.

    Attributes:
        kind: "nodule" nearer than its radius to one, "excluded" to one of those, else "none".
        nodule: which one of `KnownTruth.nodules`, from 0; None where it is none.
    """

    kind: str
    nodule: int | None = None


def truth_at(findings: Sequence[Finding], truth: KnownTruth) -> tuple[TruthAt, ...]:
    """The truth at every finding, whatever its stage, by LUNA16's rule: a hit is nearer than the radius."""
    return tuple(_truth_at(finding, truth) for finding in findings)


def found_nodules(findings: Sequence[Finding], truth: KnownTruth) -> frozenset[int]:
    """Which nodules of the truth are hit by a finding that was taken for a nodule."""
    ends = truth_at(findings, truth)
    return frozenset(end.nodule for end, f in zip(ends, findings) if end.nodule is not None and f.stage != "filtered")


def _truth_at(finding: Finding, truth: KnownTruth) -> TruthAt:
    away = [math.dist(finding.center_xyz, nodule.center_xyz) / nodule.diameter_mm for nodule in truth.nodules]
    nearest = int(np.argmin(away)) if away else -1
    if away and away[nearest] < OFFICIAL_REACH:
        return TruthAt(kind="nodule", nodule=nearest)
    if any(math.dist(finding.center_xyz, e.center_xyz) < OFFICIAL_REACH * e.diameter_mm for e in truth.excluded):
        return TruthAt(kind="excluded")
    return TruthAt(kind="none")


@cache
def luna_version() -> str:
    """Of the installed package; its metadata lie in a file, and every row and every measurement names it."""
    return version("luna-pipeline")


def reading_csv(reading: Reading) -> str:
    """The text of a reading's `findings.csv`: every candidate of every bundle a row, `READING_COLUMNS`."""
    rows = [
        (number, *row, opinion.bundle, luna_version())
        for opinion in reading.opinions
        for number, row in enumerate(findings_rows(reading.series_uid, opinion.findings), start=1)
    ]
    return csv_text(READING_COLUMNS, rows)


def submission_csv(series_uid: str, findings: Sequence[Finding]) -> str:
    """The text of a `submission.csv` as LUNA16 takes it: every candidate a mark, filtered or not, the surest first."""
    header = SUBMISSION_HEADER.split(",")
    assert header[:4] == [SERIES_COLUMN, *CENTER_COLUMNS]
    return csv_text(header, [(series_uid, *(f"{mm:.4f}" for mm in f.center_xyz), f.prob_nodule) for f in findings])


def reading_dict(reading: Reading) -> dict[str, Any]:
    """A reading without its voxels, JSON-able: what `findings.json` holds; None for what is not a number."""
    grid, truth = reading.grid, reading.truth
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "note": NOT_FOR,
        "luna_version": luna_version(),
        "made": reading.made.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "series_uid": reading.series_uid,
        "scan": {
            "shape_irc": list(grid.shape_irc),
            "spacing_xyz": list(grid.spacing_xyz),
            "origin_xyz": list(grid.origin_xyz),
            "direction": [list(row) for row in grid.direction],
            "warnings": list(reading.warnings),
        },
        "bundles": [_opinion(opinion, truth) for opinion in reading.opinions],
        "truth": None
        if truth is None
        else {
            "nodules": [asdict(nodule) for nodule in truth.nodules],
            "excluded": [{"center_xyz": e.center_xyz, "diameter_mm": e.diameter_mm} for e in truth.excluded],
        },
    }


def reading_json(reading: Reading) -> str:
    """The text of a `findings.json`."""
    return json.dumps(reading_dict(reading), indent=1, allow_nan=False) + "\n"


def _opinion(opinion: Opinion, truth: KnownTruth | None) -> dict[str, Any]:
    ends = truth_at(opinion.findings, truth) if truth else [None] * len(opinion.findings)
    return {
        "bundle": opinion.bundle,
        "asked_as": opinion.asked_as,
        "recipe": opinion.recipe,
        "origin": opinion.origin,
        "models": {member: list(uris) for member, uris in opinion.models.items()},
        "nodule_threshold": opinion.nodule_threshold,
        "malignant_threshold": opinion.malignant_threshold,
        "grouping": {"rule": opinion.grouping.rule, "threshold": opinion.grouping.threshold},
        "left_out": opinion.left_out,
        "findings": [
            {
                "finding": number,
                "center_xyz": [round(mm, 4) for mm in f.center_xyz],
                "center_irc": [round(voxel, 4) for voxel in f.center_irc],
                "diameter_mm": _number(f.diameter_mm, 2),
                "prob_segmentation": _number(f.prob_segmentation, 4),
                "prob_nodule": f.prob_nodule,
                "prob_malignant": _number(f.prob_malignant),
                "stage": f.stage,
                "reason": f.reason,
                **({} if end is None else {"truth": asdict(end)}),
            }
            for number, (f, end) in enumerate(zip(opinion.findings, ends), start=1)
        ],
    }


def _number(value: float, digits: int | None = None) -> float | None:
    if math.isnan(value):
        return None
    return value if digits is None else round(value, digits)
