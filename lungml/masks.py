"""Which voxels belong to an annotated nodule?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from lungml.geometry import Grid, xyz_to_irc
from lungml.luna import Nodule

MASK_VERSION = 1  # part of every mask's key: raise it when a rule changes
THRESHOLD_HU = -700  # the report's border between lung and tissue
START_RADIUS = 2  # voxels
MaskRule = Literal["report", "bounded"]
MASK_NAMES: dict[MaskRule, str] = {"report": "mask_report", "bounded": "mask"}

# A ground-glass nodule may lie wholly below -700 HU: its own contrast to the lung around it is then the border.
GROUND_GLASS_PERCENTILE = 50


def growth_box(hu: npt.NDArray[np.int16], center_irc: npt.NDArray[np.int_]) -> tuple[slice, slice, slice]:
    """The report's box: per axis, a radius that starts at 2 and grows while both ends stay above -700 HU.

    Growth stops at the scan's border, and the box is clipped to it: an index below 0 never wraps around.

    Args:
        hu: (index, row, col) int16.
        center_irc: (3,) whole voxels inside the scan.
    """
    box = []
    for axis in range(3):
        line = hu[tuple(slice(None) if a == axis else int(center_irc[a]) for a in range(3))] > THRESHOLD_HU
        middle, radius = int(center_irc[axis]), START_RADIUS
        while middle - radius >= 0 and middle + radius < len(line) and line[middle - radius] and line[middle + radius]:
            radius += 1
        box.append(slice(max(middle - radius, 0), min(middle + radius, len(line) - 1) + 1))
    return box[0], box[1], box[2]


def report_nodule(
    hu: npt.NDArray[np.int16], center_irc: npt.NDArray[np.int_]
) -> tuple[tuple[slice, slice, slice], npt.NDArray[np.bool_]]:
    """One nodule by the report's rule: the voxels of the growth box above -700 HU."""
    box = growth_box(hu, center_irc)
    return box, hu[box] > THRESHOLD_HU


def bounded_nodule(
    hu: npt.NDArray[np.int16], center_irc: npt.NDArray[np.float64], diameter_mm: float, grid: Grid
) -> tuple[tuple[slice, slice, slice], npt.NDArray[np.bool_]]:
    """One nodule, bounded by its annotation: tissue inside the sphere of its diameter, a quarter voxel diagonal wider.

    Tissue is what lies above -700 HU; where less than half of the inner sphere does (ground glass), the border is
    the whole sphere's own median instead. The centre voxel always belongs.

    Args:
        hu: (index, row, col) int16.
        center_irc: (3,) fractional voxels.
        diameter_mm: as annotated.
        grid: the scan's sampling grid.
    """
    spacing = grid.spacing_irc
    # A quarter of a voxel's diagonal: most boundary voxels that the sphere cuts count as inside.
    radius_mm = diameter_mm / 2 + float(np.linalg.norm(spacing)) / 4
    low = np.maximum(np.floor(center_irc - radius_mm / spacing).astype(int), 0)
    high = np.minimum(np.ceil(center_irc + radius_mm / spacing).astype(int), np.array(hu.shape) - 1)
    box = (slice(low[0], high[0] + 1), slice(low[1], high[1] + 1), slice(low[2], high[2] + 1))
    axes = [(np.arange(s.start, s.stop) - c) * mm for s, c, mm in zip(box, center_irc, spacing)]
    distance_mm = np.sqrt(axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2)
    values = hu[box]
    sphere = distance_mm <= radius_mm
    core = values[distance_mm <= max(diameter_mm / 4, spacing.min())]
    border = THRESHOLD_HU
    if core.size and np.median(core) <= THRESHOLD_HU:
        border = int(np.percentile(values[sphere], GROUND_GLASS_PERCENTILE)) - 1
    inside = sphere & (values > border)
    middle = np.clip(np.rint(center_irc).astype(int), 0, np.array(hu.shape) - 1) - low
    inside[tuple(middle)] = True
    return box, inside


def annotation_mask(
    hu: npt.NDArray[np.int16], nodules: Sequence[Nodule], grid: Grid, rule: MaskRule = "bounded"
) -> npt.NDArray[np.uint8]:
    """The union of a scan's nodule masks; a nodule whose centre lies outside the scan is left out.

    Args:
        hu: (index, row, col) int16, not clipped.
        nodules: of this scan.
        grid: the scan's sampling grid.
        rule: "report" for the specification's growth rule, "bounded" for the annotated diameter's sphere.

    Returns:
        (index, row, col) uint8, 1 inside a nodule.
    """
    mask = np.zeros(hu.shape, dtype=np.uint8)
    for nodule in nodules:
        center = xyz_to_irc(nodule.center_xyz, grid)
        voxel = np.rint(center).astype(int)
        if (voxel < 0).any() or (voxel >= hu.shape).any():
            continue
        if rule == "report":
            box, inside = report_nodule(hu, voxel)
        else:
            box, inside = bounded_nodule(hu, center, nodule.diameter_mm, grid)
        mask[box] |= inside
    return mask
