"""What is known of how well a bundle did on some scans, and where each nodule was lost?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lungml.compare import Difference, Sampled, Statistic
from lungml.findings import Finding
from lungml.froc import FrocResult
from lungml.score import Place, Table, Truth
from lungml.scored import Scored

Lost = Literal["quarantine", "segmentation", "grouping", "classifier", "malignancy"]


@dataclass(frozen=True, kw_only=True)
class SegmentedNodule:
    """What the segmentation did with one annotated nodule.

    Attributes:
        touched: whether it marked any of its voxels.
        dice: of the marked components that touch it and its annotation mask; 0 where none does.
    """

    touched: bool
    dice: float


@dataclass(frozen=True, kw_only=True)
class SegmentedScan:
    """What the segmentation did with one scan.

    Attributes:
        voxels: in all.
        flagged: above the threshold.
        tp, fp, fn: pixels of the full slices that hold any of the annotation mask, as in the report's table.
        slices: how many these are.
        nodules: in the order of the truth.
    """

    voxels: int
    flagged: int
    tp: int
    fp: int
    fn: int
    slices: int
    nodules: tuple[SegmentedNodule, ...]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One scan: what is true and what a bundle said.

    Attributes:
        series_uid: of the scan.
        nodules: annotated, with ratings.
        unrated: nodules that the challenge includes though nobody rated them: only the official score counts them.
        excluded: neither hits nor false positives.
        findings: every candidate; None where the scan was set aside.
        segmented: None where the scan was set aside.
        prob_malignant: calibrated, at the annotated centre of each of `nodules`; None where the scan was set aside.
        slice_spacing_mm: None where it is not known.
        textures: of each of `nodules`, "" where it is not known.
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


@dataclass(frozen=True, kw_only=True)
class Group:
    """Nodules of one kind.

    Attributes:
        name: such as "6 to 10 mm".
        nodules: how many.
        found: of them, by the rule and threshold of the report's table.
        sensitivity: their share found at one false positive a scan by the official rules; NaN without a nodule.
        band: its 95 % bootstrap band over scans.
    """

    name: str
    nodules: int
    found: int
    sensitivity: float
    band: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Where each of some nodules was lost; the parts add up to `nodules`.

    Attributes:
        nodules: in all.
        lost: by the first stage that lost it.
        right: those that came through.
    """

    nodules: int
    lost: Mapping[Lost, int]
    right: int


@dataclass(frozen=True, kw_only=True)
class Funnel:
    """The report's funnel: means a scan that was read."""

    voxels: float
    flagged: float
    candidates: float
    nodules: float
    malignant: float


@dataclass(frozen=True, kw_only=True)
class SegmentationScore:
    """Pixels on full slices as in the report's table, and nodules one by one; NaN where nothing is to be counted."""

    slices: int
    precision: float
    recall: float
    f1: float
    nodules: int
    touched: int
    mean_dice: float
    median_dice: float


@dataclass(frozen=True, kw_only=True)
class Scorecard:
    """Every score of one bundle on some scans.

    Attributes:
        series_uids: the scans, those set aside included.
        set_aside: those that could not be read; their nodules count as missed.
        nodule_threshold, malignant_threshold: of the tables.
        table: the report's, by its rule (0.7 of a diameter).
        official_table: the same by the official radius, excluded findings left out.
        froc: by LUNA16's rules, 1000 bootstraps over scans.
        curve_band: (3, points) the FROC's abscissa (false positives a scan) and its 95 % band there, to draw.
        samples: every statistic of `lungml.compare` with its resamples; equal resamples for every bundle on equal scans.
        over_diameter: the malignancy AUC less the annotated diameter's, on the same nodules.
        by_diameter, by_spacing, by_texture: sensitivity of nodules of each kind; empty where it is not known.
        losses: of all nodules.
        malignant_losses: of the malignant ones.
        funnel: means a scan.
        segmentation: None where no scan was read.
        nodule: every finding that is not on an excluded finding only, judged: is it on a nodule?
        malignancy: the annotated nodules, judged at their centres.
        diameters_mm: of the same nodules in the same order.
    """

    series_uids: tuple[str, ...]
    set_aside: tuple[str, ...]
    nodule_threshold: float
    malignant_threshold: float
    table: Table
    official_table: Table
    froc: FrocResult
    curve_band: np.ndarray
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
    diameters_mm: np.ndarray

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; None for NaN."""
        raise NotImplementedError


def score_scans(
    evidence: Sequence[Evidence],
    *,
    nodule_threshold: float,
    malignant_threshold: float,
    seed: int,
    resamples: int = 2000,
    bootstraps: int = 1000,
) -> Scorecard:
    """Score one bundle on some scans."""
    raise NotImplementedError
