"""Small readings of phantoms that tests can compute by hand: bright balls in lung, found and filtered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache

import numpy as np
import numpy.typing as npt

from lungml.candidates import GroupingSettings
from lungml.findings import Finding, Stage
from lungml.geometry import Grid, as_triple, irc_to_xyz, xyz_to_irc
from lungml.luna import Excluded
from lungml.marked import Marked
from lungml.reading.record import KnownNodule, KnownTruth, Opinion, Reading

UID = "1.2.826.0.1.3680043.8.498.1"
MADE = datetime(2026, 1, 31, 12, tzinfo=UTC)
LUNG_HU, BALL_HU, WALL_HU = -850, 40, 60
GRID = Grid(shape_irc=(24, 96, 80), spacing_xyz=(1.0, 1.25, 2.5), origin_xyz=(-40.0, -60.0, -300.0))
# (index, row, col), diameter in mm, and what was said: nodule, malignant, U-Net.
BALLS = (
    ((12, 40, 30), 10.0, 0.95, 0.8, 0.95),
    ((6, 60, 55), 8.0, 0.8, 0.2, 0.95),
    ((18, 30, 60), 6.0, 0.4, math.nan, 0.7),
    ((12, 70, 20), 5.0, 0.2, math.nan, 0.6),
    ((20, 50, 40), math.nan, 0.05, math.nan, math.nan),
)


def chest(
    grid: Grid, balls_xyz: Sequence[tuple[Sequence[float], float]], value: int = BALL_HU
) -> npt.NDArray[np.int16]:
    """(index, row, col) int16: lung with balls of so many mm around points in mm."""
    hu = np.full(grid.shape_irc, LUNG_HU, dtype=np.int16)
    places = irc_to_xyz(np.moveaxis(np.indices(grid.shape_irc), 0, -1), grid)
    for center, diameter_mm in balls_xyz:
        hu[np.linalg.norm(places - np.asarray(center), axis=-1) <= diameter_mm / 2] = value
    return hu


def finding_at(
    point_xyz: Sequence[float],
    grid: Grid,
    diameter_mm: float = 8.0,
    nodule: float = 0.9,
    malignant: float = 0.2,
    segmentation: float = 0.95,
) -> Finding:
    """A finding with the stage that thresholds of 0.5 give it."""
    stage: Stage = "filtered" if nodule < 0.5 else "benign" if malignant < 0.5 else "malignant"
    return Finding(
        center_irc=as_triple(xyz_to_irc(point_xyz, grid)),
        center_xyz=as_triple(point_xyz),
        diameter_mm=diameter_mm,
        prob_nodule=nodule,
        prob_malignant=math.nan if stage == "filtered" else malignant,
        stage=stage,
        reason="as a test wants it",
        prob_segmentation=segmentation,
    )


def opinion_of(findings: Sequence[Finding], marked: Marked, bundle: str = "models:/luna/3") -> Opinion:
    """What a bundle says, with thresholds of 0.5."""
    return Opinion(
        bundle=bundle,
        asked_as="models:/luna@champion",
        recipe="best",
        origin="real",
        nodule_threshold=0.5,
        malignant_threshold=0.5,
        grouping=GroupingSettings(),
        findings=tuple(findings),
        marked=marked,
    )


def marked_balls(hu: npt.NDArray[np.int16], prob: float = 0.9) -> Marked:
    """Every bright voxel marked, all as surely."""
    return Marked.of(np.where(hu > 0, prob, 0.0).astype(np.float32), 0.5)


@cache
def small_reading(grid: Grid = GRID) -> Reading:
    """Five candidates of which two are kept, one of them malignant; nobody writes into it."""
    points = [irc_to_xyz(ball[0], grid).tolist() for ball in BALLS]
    hu = chest(grid, [(point, 6.0 if math.isnan(ball[1]) else ball[1]) for point, ball in zip(points, BALLS)])
    findings = [
        finding_at(point, grid, diameter, nodule, malignant, segmentation)
        for point, (_, diameter, nodule, malignant, segmentation) in zip(points, BALLS)
    ]
    return Reading(series_uid=UID, hu=hu, grid=grid, opinions=(opinion_of(findings, marked_balls(hu)),), made=MADE)


def compared_reading() -> Reading:
    """Two opinions: 1 and 2 are found by both, B places 2 a little off; 3 only B keeps; A alone has 4 and 5."""
    reading = small_reading()
    (first,) = reading.opinions
    one, two, three, *_ = first.findings
    x, y, z = two.center_xyz
    moved = finding_at((x + 2, y, z), GRID, 8.0, 0.7, 0.9)
    kept = finding_at(three.center_xyz, GRID, 6.0, 0.6, 0.1)
    far = finding_at((x + 20, y, z), GRID, 5.0, 0.55, 0.1)
    second = opinion_of((one, moved, kept, far), marked_balls(reading.hu, 0.8), bundle="models:/luna/7")
    return replace(reading, opinions=(first, replace(second, origin="phantom")))


def reading_with_truth() -> Reading:
    """1 is a hit, 2 a false positive, 3 a nodule that is filtered out; one nodule was never a candidate."""
    reading = small_reading()
    one, _, three, four, _ = reading.opinions[0].findings
    truth = KnownTruth(
        nodules=(
            KnownNodule(center_xyz=one.center_xyz, diameter_mm=10.0, malignant=True),
            KnownNodule(center_xyz=three.center_xyz, diameter_mm=6.0, malignant=False),
            KnownNodule(center_xyz=as_triple(irc_to_xyz((3, 15, 15), reading.grid)), diameter_mm=7.0),
        ),
        excluded=(Excluded(series_uid=UID, center_xyz=four.center_xyz, diameter_mm=5.0),),
    )
    return replace(reading, truth=truth)
