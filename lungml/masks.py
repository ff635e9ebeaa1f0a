"""Which voxels belong to an annotated nodule?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lungml.errors import LunaError
from lungml.geometry import Grid, xyz_to_irc
from lungml.groups import Box
from lungml.luna import Nodule

MASK_VERSION = 2  # part of every mask's key: raise it when a rule changes
THRESHOLD_HU = -700  # the report's border between lung and tissue
START_RADIUS = 2  # voxels
MaskRule = Literal["report", "bounded", "consensus"]
MASK_NAMES: dict[MaskRule, str] = {"report": "mask_report", "bounded": "mask", "consensus": "mask_consensus"}

NoduleBox = tuple[Box, npt.NDArray[np.bool_]]  # a box and which of its voxels belong to the nodule


class MaskError(LunaError):
    """A nodule whose place or size is not a number, or a contour that does not fit its scan."""


@dataclass(frozen=True, kw_only=True)
class NoduleBoxes:
    """The nodules of one scan, each in its own box; boxes may overlap.

    Attributes:
        boxes: by position in the list of nodules; the arrays are new.
        left_out: positions of the nodules whose centre lies outside the scan.
    """

    boxes: Mapping[int, NoduleBox]
    left_out: tuple[int, ...]


def nodule_boxes(
    hu: npt.NDArray[np.int16],
    nodules: Sequence[Nodule],
    grid: Grid,
    rule: MaskRule = "bounded",
    contours: Mapping[int, NoduleBox] | None = None,
) -> NoduleBoxes:
    """The voxels of every nodule of a scan; only the boxes' part of the scan is looked at.

    Args:
        hu: (index, row, col) int16, not clipped.
        nodules: of this scan.
        grid: the scan's sampling grid.
        rule: "report" for the specification's growth, "bounded" for tissue in the annotated diameter's sphere,
            "consensus" for the readers' contours, and bounded where a nodule has none.
        contours: the readers' boxes by position in `nodules`, for the rule "consensus".

    Raises:
        MaskError: when a centre or diameter is not a number, or a contour does not fit the scan.
    """
    for nodule in nodules:
        if not all(map(math.isfinite, (*nodule.center_xyz, nodule.diameter_mm))) or nodule.diameter_mm <= 0:
            where = ", ".join(f"{mm:g}" for mm in nodule.center_xyz)
            raise MaskError(
                f"{nodule.series_uid}: a nodule at ({where}) mm of {nodule.diameter_mm:g} mm is no nodule; "
                "correct its row in the table"
            )
    if not nodules:
        return NoduleBoxes(boxes={}, left_out=())
    centers = xyz_to_irc([nodule.center_xyz for nodule in nodules], grid)
    voxels = np.rint(centers)
    boxes: dict[int, NoduleBox] = {}
    left_out = []
    for position, (nodule, center) in enumerate(zip(nodules, centers)):
        voxel = voxels[position]
        # Compared as floats: a centre kilometres away does not fit into an integer.
        if not all(0 <= v < n for v, n in zip(voxel.tolist(), hu.shape)):
            left_out.append(position)
            continue
        contour = (contours or {}).get(position) if rule == "consensus" else None
        if contour is not None and contour[1].any():
            boxes[position] = _checked(contour, hu.shape, nodule.series_uid)
        elif rule == "report":
            boxes[position] = report_nodule(hu, voxel.astype(int))
        else:
            boxes[position] = bounded_nodule(hu, center, nodule.diameter_mm, grid)
    return NoduleBoxes(boxes=boxes, left_out=tuple(left_out))


def annotation_mask(
    hu: npt.NDArray[np.int16],
    nodules: Sequence[Nodule],
    grid: Grid,
    rule: MaskRule = "bounded",
    contours: Mapping[int, NoduleBox] | None = None,
) -> npt.NDArray[np.uint8]:
    """The union of a scan's nodules as an array of the scan's size; arguments and errors as of `nodule_boxes`.

    A nodule whose centre lies outside the scan is left out: `nodule_boxes` says which.

    Returns:
        (index, row, col) uint8, 1 inside a nodule.
    """
    mask = np.zeros(hu.shape, dtype=np.uint8)
    for box, inside in nodule_boxes(hu, nodules, grid, rule, contours).boxes.values():
        mask[box] |= inside
    return mask


def growth_box(hu: npt.NDArray[np.int16], center_irc: npt.NDArray[np.int_]) -> Box:
    """The report's box: per axis, a radius that starts at 2 and grows while both ends lie above -700 HU.

    What lies outside the scan is not above -700 HU: growth stops there, and the box is clipped to the scan, so that
    an index below 0 never wraps around.

    Args:
        hu: (index, row, col) int16.
        center_irc: (3,) whole voxels inside the scan.
    """
    index, row, col = np.asarray(center_irc).tolist()
    lines = (hu[:, row, col].data, hu[index, :, col].data, hu[index, row].data)  # plain numbers, not NumPy's
    box = []
    for line, middle in zip(lines, (index, row, col)):
        # Voxel by voxel: a nodule ends after a few, and all of a line across the slices is slow to fetch.
        radius, farthest = START_RADIUS, min(middle, len(line) - 1 - middle)
        while radius <= farthest and line[middle + radius] > THRESHOLD_HU and line[middle - radius] > THRESHOLD_HU:
            radius += 1
        box.append(slice(max(middle - radius, 0), min(middle + radius + 1, len(line))))
    return box[0], box[1], box[2]


def report_nodule(hu: npt.NDArray[np.int16], center_irc: npt.NDArray[np.int_]) -> NoduleBox:
    """One nodule by the report's rule: the voxels of the growth box above -700 HU.

    The annotated diameter plays no part: along a vessel or into the chest wall the box grows as far as they go.
    """
    box = growth_box(hu, center_irc)
    return box, hu[box] > THRESHOLD_HU


def bounded_nodule(
    hu: npt.NDArray[np.int16], center_irc: npt.NDArray[np.float64], diameter_mm: float, grid: Grid
) -> NoduleBox:
    """One nodule, bounded by its annotation: tissue in the sphere of its diameter that hangs together with its core.

    The sphere is a quarter of a voxel's diagonal wider than annotated, the core half as wide. Tissue is what lies
    above -700 HU. Where the core does not (ground glass), its own contrast is the border: half way from the median of
    the lung around the sphere to the core's; where there is no contrast, the sphere is all that is known.

    A vessel or wall that passes by within the sphere is left out when it does not touch the nodule. One that runs
    through the nodule keeps the piece of it inside the sphere: nothing tells the two apart there, and no voxel
    outside the annotated sphere ever belongs. The centre voxel always does.

    Args:
        hu: (index, row, col) int16.
        center_irc: (3,) fractional voxels; rounded, they lie inside the scan.
        diameter_mm: as annotated, positive; a sphere larger than the scan is the scan.
        grid: the scan's sampling grid.
    """
    spacing, last = grid.spacing_irc, np.array(hu.shape) - 1
    # A quarter of a voxel's diagonal: most boundary voxels that the sphere cuts count as inside.
    radius_mm = diameter_mm / 2 + float(np.linalg.norm(spacing)) / 4
    radius_mm = min(radius_mm, 2 * float(np.linalg.norm(spacing * hu.shape)))
    low = np.clip(np.floor(center_irc - radius_mm / spacing), 0, last).astype(int)
    high = np.clip(np.ceil(center_irc + radius_mm / spacing), 0, last).astype(int)
    box = (slice(low[0], high[0] + 1), slice(low[1], high[1] + 1), slice(low[2], high[2] + 1))
    values = hu[box]
    squares = [((np.arange(s.start, s.stop) - c) * mm) ** 2 for s, c, mm in zip(box, center_irc, spacing)]
    middle = tuple(np.rint(center_irc).astype(int) - low)
    sphere = _ball(squares, radius_mm)
    core = _ball(squares, max(min(diameter_mm / 4, radius_mm), float(spacing.min())))
    core[middle] = True
    inside = sphere & (values > _border(values, sphere, core))
    inside[middle] = True
    parts, count = ndimage.label(inside, structure=np.ones((3, 3, 3)))  # voxels that share a corner hang together
    if count > 1:
        of_core = np.zeros(count + 1, dtype=np.bool_)
        of_core[parts[core & inside]] = True
        inside = of_core[parts]
    return box, inside


def _border(values: npt.NDArray[np.int16], sphere: npt.NDArray[np.bool_], core: npt.NDArray[np.bool_]) -> float:
    """The radiodensity above which a voxel of the sphere is the nodule's, HU."""
    core_hu = float(np.median(values[core]))
    if core_hu > THRESHOLD_HU:
        return THRESHOLD_HU
    lung = values[~sphere & (values <= THRESHOLD_HU)]
    lung_hu = float(np.median(lung)) if lung.size else core_hu
    return (core_hu + lung_hu) / 2 if core_hu > lung_hu else -np.inf


def _ball(squares_mm: Sequence[npt.NDArray[np.float64]], radius_mm: float) -> npt.NDArray[np.bool_]:
    """Where the sum of one square from each axis is within a radius; no array of floats of the box's size is made."""
    index, row, col = squares_mm
    return index[:, None, None] <= radius_mm**2 - (row[:, None] + col)


def _checked(contour: NoduleBox, shape: tuple[int, ...], series_uid: str) -> NoduleBox:
    box, inside = contour
    sizes = tuple(s.stop - s.start for s in box)
    if sizes != inside.shape or any(s.start < 0 or s.stop > n for s, n in zip(box, shape)):
        raise MaskError(f"{series_uid}: a contour of shape {inside.shape} at {box} does not fit the scan's {shape}")
    return box, inside.astype(np.bool_)
