"""Where was each nodule lost, nodules of which kind are found, and how much does each stage pass on?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from lungml.compare import Sampled
from lungml.score import FILTERED, PREDICTED_MALIGNANT, finite_or_none

Lost = Literal["quarantine", "segmentation", "grouping", "classifier", "malignancy"]
LOST: tuple[Lost, ...] = get_args(Lost)  # in the order of the stages

# Lung-RADS 2022 has its borders at 6 and 8 mm; 10 and 20 mm part the larger ones. The lower border belongs to a kind.
DIAMETER_BORDERS_MM = (6.0, 8.0, 10.0, 20.0)
DIAMETER_KINDS = ("under 6 mm", "6 to 8 mm", "8 to 10 mm", "10 to 20 mm", "20 mm or more")
# LUNA16 took scans of at most 2.5 mm; usual are 0.625 to 1, 1.25 to 2, and 2.5. The upper border belongs to a kind.
SPACING_BORDERS_MM = (1.0, 2.0)
SPACING_DIGITS = 3  # a header's 1.0000001 mm is 1 mm
SPACING_KINDS = ("1 mm or less", "over 1 to 2 mm", "over 2 mm")
UNKNOWN = "not known"


@dataclass(frozen=True, kw_only=True)
class FollowedNodule:
    """One annotated nodule and what became of it.

    Attributes:
        scan: its scan's place in the list of scans.
        malignant, diameter_mm: as annotated.
        slice_spacing_mm: of its scan; None where it is not known.
        texture: "" where it is not known.
        lost: the first stage that lost it, see `where_lost`; None for one that came through.
        found_at_1_fps: whether its best mark, by the official rules, is above the threshold at which all scans
            together have one false positive a scan.
    """

    scan: int
    malignant: bool
    diameter_mm: float
    slice_spacing_mm: float | None
    texture: str
    lost: Lost | None
    found_at_1_fps: bool

    @property
    def found(self) -> bool:
        """Whether it was taken for a nodule, by the rule and threshold of the report's table."""
        return self.lost in (None, "malignancy")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Nodules of one kind.

    Attributes:
        name: such as "6 to 8 mm".
        nodules: how many.
        found: of them, by the rule and threshold of the report's table.
        sensitivity: their share found by the official rules at the threshold at which all scans together have one
            false positive a scan; NaN without a nodule.
        band: its 95 % bootstrap band over scans, the threshold held; NaN where the resamples tell too little, see
            `lungml.compare.Sampled`.
        left_out: resamples without a nodule of the kind.
    """

    name: str
    nodules: int
    found: int
    sensitivity: float
    band: tuple[float, float]
    left_out: int = 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; None for NaN."""
        band = [finite_or_none(edge) for edge in self.band]
        return asdict(self) | {"sensitivity": finite_or_none(self.sensitivity), "band": band}


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Where each of some nodules was lost.

    Attributes:
        nodules: in all.
        lost: by the first stage that lost it, see `where_lost`; every stage has an entry.
        right: those that came through.

    Raises:
        ValueError: the parts do not add up to `nodules`.
    """

    nodules: int
    lost: Mapping[Lost, int]
    right: int

    def __post_init__(self) -> None:
        if sum(self.lost.values()) + self.right != self.nodules:
            raise ValueError(f"{dict(self.lost)} lost and {self.right} right are not {self.nodules} nodules")

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"nodules": self.nodules, "lost": dict(self.lost), "right": self.right}


@dataclass(frozen=True, kw_only=True)
class Funnel:
    """The report's funnel: means a scan that was read; NaN where none was."""

    voxels: float
    flagged: float
    candidates: float
    nodules: float
    malignant: float

    @classmethod
    def of(cls, scans: Sequence[tuple[int, int, int, int, int]]) -> Funnel:
        """Of the five counts of each scan."""
        means = np.mean(scans, axis=0).tolist() if len(scans) else [math.nan] * 5
        voxels, flagged, candidates, nodules, malignant = means
        return cls(voxels=voxels, flagged=flagged, candidates=candidates, nodules=nodules, malignant=malignant)

    def as_dict(self) -> dict[str, float | None]:
        """JSON-able; None for NaN."""
        return {name: finite_or_none(value) for name, value in asdict(self).items()}


def where_lost(stages: npt.NDArray[np.int64], *, touched: bool, malignant: bool) -> Lost | None:
    """The first stage that lost a nodule of a scan that was read; None for one that came through.

    A nodule that the segmentation did not touch, but near which a candidate lies all the same, is followed on by that
    candidate. Of several candidates the one that came furthest decides, as in the report's table. A benign nodule that
    was called malignant was found and is not lost; only the table has it.

    Args:
        stages: (n,) of the candidates within the report's reach of it, see `lungml.score.find_stages`.
        touched: whether the segmentation marked any of its voxels where grouping could look, see
            `lungml.segmentation_score.SegmentedNodule`. Grouping also loses what it offers no more: beyond its limit of
            a scan, or outside the lungs where only these are read.
        malignant: as annotated.
    """
    if not len(stages):
        return "grouping" if touched else "segmentation"
    furthest = int(stages.max())
    if furthest == FILTERED:
        return "classifier"
    return "malignancy" if malignant and furthest != PREDICTED_MALIGNANT else None


def count_losses(nodules: Sequence[FollowedNodule]) -> Losses:
    """Every nodule in exactly one part."""
    ends = Counter(nodule.lost for nodule in nodules)
    return Losses(nodules=len(nodules), lost={stage: ends[stage] for stage in LOST}, right=ends[None])


def group_by_diameter(nodules: Sequence[FollowedNodule], times: npt.NDArray[np.int64]) -> tuple[Group, ...]:
    """By annotated diameter, kinds without a nodule included; empty where there is no nodule at all.

    Args:
        nodules: of all scans.
        times: (resamples, scans) how often each scan counts, see `lungml.compare.draw_resamples`.
    """
    at = np.searchsorted(DIAMETER_BORDERS_MM, [n.diameter_mm for n in nodules], side="right")
    return _group(nodules, [DIAMETER_KINDS[i] for i in at], DIAMETER_KINDS, times)


def group_by_spacing(nodules: Sequence[FollowedNodule], times: npt.NDArray[np.int64]) -> tuple[Group, ...]:
    """By the spacing of their scan's slices, kinds without a nodule included; empty where none is known."""
    kinds = [
        UNKNOWN
        if n.slice_spacing_mm is None
        else SPACING_KINDS[np.searchsorted(SPACING_BORDERS_MM, round(n.slice_spacing_mm, SPACING_DIGITS))]
        for n in nodules
    ]
    return _group(nodules, kinds, SPACING_KINDS, times)


def group_by_texture(nodules: Sequence[FollowedNodule], times: npt.NDArray[np.int64]) -> tuple[Group, ...]:
    """By texture, as it was given, in alphabetical order; empty where none is known."""
    kinds = [n.texture or UNKNOWN for n in nodules]
    return _group(nodules, kinds, sorted(set(kinds) - {UNKNOWN}), times)


def _group(
    nodules: Sequence[FollowedNodule], kinds: Sequence[str], names: Sequence[str], times: npt.NDArray[np.int64]
) -> tuple[Group, ...]:
    if set(kinds) <= {UNKNOWN}:
        return ()
    scans, kind_of = np.array([n.scan for n in nodules], dtype=np.int64), np.array(kinds)
    found = np.array([n.found for n in nodules], dtype=np.bool_)
    at_1_fps = np.array([n.found_at_1_fps for n in nodules], dtype=np.bool_)
    groups = []
    for name in (*names, *([UNKNOWN] if UNKNOWN in kinds else [])):
        ours = kind_of == name
        in_scan, found_in_scan = (
            np.bincount(scans[chosen], minlength=times.shape[1]) for chosen in (ours, ours & at_1_fps)
        )
        counted = np.concatenate([[np.ones_like(in_scan)], times])
        total, hits = counted @ in_scan, counted @ found_in_scan
        observed, *resampled = np.divide(hits, total, out=np.full(len(counted), np.nan), where=total > 0)
        sampled = Sampled(observed=float(observed), resampled=np.array(resampled), scans=int((in_scan > 0).sum()))
        groups.append(
            Group(
                name=name,
                nodules=int(ours.sum()),
                found=int((ours & found).sum()),
                sensitivity=sampled.observed,
                band=sampled.band,
                left_out=sampled.left_out,
            )
        )
    return tuple(groups)
