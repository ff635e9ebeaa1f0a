"""Where are the lungs, roughly, and which places in them can serve as non-nodules?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

from lungml.geometry import Grid, irc_to_xyz

TISSUE_HU = -400  # lung parenchyma and airways lie below, tissue above
COARSE_MM = 3.0  # the search runs on a grid of about this spacing
CLOSING_MM = 6.0  # vessels and nodules of up to about this radius belong to the lung
MIN_LUNG_ML = 50.0
IN_PLANE = np.array([[[0, 0, 0]] * 3, [[0, 1, 0], [1, 1, 1], [0, 1, 0]], [[0, 0, 0]] * 3])  # neighbours of one slice
# What keeps lungs from being trusted as all of the lungs. Adults have 2000 to 6000 ml; a scan of ten slices shows 500.
LEAST_FIELD_ML = 500.0
LEAST_SIDE = 0.25  # of the other lung's volume: the left one has some 0.85 of the right one's
MOST_CUT = 0.01  # of the volume
LUNG_FLOOR_HU, AIR_FLOOR_HU = -930, -1100  # lung is denser than the one; padding is set to the other, below air


class NoLungsError(ValueError):
    """What looks like lungs cannot be all of them; the message is one line that says why."""


def lung_region(hu: npt.NDArray[np.int16], grid: Grid) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int_]]:
    """Air inside the body, closed over its vessels, on a coarse grid; false everywhere when no lung is found.

    Args:
        hu: (index, row, col) int16.
        grid: the scan's sampling grid.

    Returns:
        (i, r, c) bool, and the (3,) whole-voxel steps of its grid in the scan's voxels.
    """
    coarse, step = _coarse(hu, grid)
    labels, outside = _air_of_slices(coarse)
    return _close(~outside[labels], step * grid.spacing_irc), step


@dataclass(frozen=True, kw_only=True, eq=False)
class LungField:
    """The lungs and what lies around them, on a coarse grid.

    Attributes:
        near: (i, r, c) bool, true in the lungs and up to the margin around them.
        step: (3,) whole-voxel steps of that grid in the scan's voxels; each of its voxels stands for those nearest.
        shape: of the scan.
    """

    near: npt.NDArray[np.bool_]
    step: npt.NDArray[np.int_]
    shape: tuple[int, int, int]

    def holds(self, voxels_irc: tuple[npt.NDArray[np.int64], ...]) -> npt.NDArray[np.bool_]:
        """Whether each voxel, given as three (n,) arrays, lies in the field."""
        return self.near[tuple(self._nearest(axis)[voxels] for axis, voxels in enumerate(voxels_irc))]

    def box(self, first: int, end: int) -> tuple[slice, slice] | None:
        """The rows and columns that hold all of the field in the slices from `first` up to `end`; None where none is.

        Voxels of the scan, not of the coarse grid.
        """
        seen = np.argwhere(self.near[np.unique(self._nearest(0)[first:end])])
        if not len(seen):
            return None
        sides = []
        for axis in (1, 2):
            there = np.flatnonzero(np.isin(self._nearest(axis), seen[:, axis]))
            sides.append(slice(int(there[0]), int(there[-1]) + 1))
        return sides[0], sides[1]

    def _nearest(self, axis: int) -> npt.NDArray[np.int_]:
        step = self.step[axis]
        return np.minimum((np.arange(self.shape[axis]) + step // 2) // step, self.near.shape[axis] - 1)


def lung_field(hu: npt.NDArray[np.int16], grid: Grid, margin_mm: float) -> LungField:
    """The lungs and a margin around them, when they can be trusted to be all of the lungs.

    Whoever looks only there must know that nothing was left out: lungs that the picture cuts off count as air outside
    the body, and a lung without air is no lung to `lung_region`. Such scans are refused; some whole ones may be, too.

    Args:
        hu: (index, row, col) int16.
        grid: the scan's sampling grid.
        margin_mm: how far around the lungs the field reaches, up to half a step of the coarse grid.

    Raises:
        NoLungsError: when the volume is too small, one side has next to none of it, or the picture cuts a lung off.
    """
    coarse, step = _coarse(hu, grid)
    spacing_irc = step * grid.spacing_irc
    voxel_ml = float(np.prod(spacing_irc)) / 1000
    labels, outside = _air_of_slices(coarse)
    region = _close(~outside[labels], spacing_irc)
    volume_ml = np.count_nonzero(region) * voxel_ml
    if volume_ml < LEAST_FIELD_ML:
        raise NoLungsError(f"{volume_ml:.0f} ml of lung, less than {LEAST_FIELD_ML:.0f}")
    columns = (coarse > TISSUE_HU).sum(axis=(0, 1))
    middle = int(np.searchsorted(columns.cumsum(), columns.sum() / 2))
    sides = np.count_nonzero(region[:, :, :middle]), np.count_nonzero(region[:, :, middle:])
    if min(sides) < LEAST_SIDE * max(sides):
        raise NoLungsError(f"one lung has {min(sides) / max(sides):.0%} of the other's volume")
    # Lung on the picture's edge: air of a slice, large enough to tell, and too dense on average to be mere air.
    sizes = np.bincount(labels.ravel(), minlength=len(outside))
    sums_hu = np.bincount(labels.ravel(), np.clip(coarse, AIR_FLOOR_HU, 0).ravel(), minlength=len(outside))
    cut = outside & (sizes * spacing_irc[1] * spacing_irc[2] >= 100) & (sums_hu > LUNG_FLOOR_HU * sizes)
    cut[0] = False
    cut_ml = sizes[cut].sum() * voxel_ml
    if cut_ml > MOST_CUT * volume_ml:
        raise NoLungsError(f"{cut_ml:.0f} ml of what looks like lung touch the edge of the picture")
    return LungField(
        near=_grow(region, margin_mm, spacing_irc), step=step, shape=(hu.shape[0], hu.shape[1], hu.shape[2])
    )


def _coarse(hu: npt.NDArray[np.int16], grid: Grid) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int_]]:
    step = np.maximum(1, np.rint(COARSE_MM / grid.spacing_irc)).astype(int)
    return np.ascontiguousarray(hu[:: step[0], :: step[1], :: step[2]]), step


def _air_of_slices(coarse: npt.NDArray[np.int16]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """Labels of the air, slice by slice (0: tissue), and of each label whether it is no air in the body."""
    labels, count = ndimage.label(coarse < TISSUE_HU, IN_PLANE)
    outside = np.zeros(count + 1, dtype=np.bool_)
    # Air that touches the edge of the picture is outside the body.
    for edge in (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]):
        outside[edge.ravel()] = True
    outside[0] = True
    return labels, outside


def _close(air: npt.NDArray[np.bool_], spacing_irc: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """The large components of the air in the body, closed."""
    closed = np.zeros_like(air)
    labels, count = ndimage.label(air)
    if not count:
        return closed
    sizes_ml = np.bincount(labels.ravel()) * float(np.prod(spacing_irc)) / 1000
    sizes_ml[0] = 0
    large = sizes_ml >= min(MIN_LUNG_ML, sizes_ml.max())
    large[0] = False
    lungs = large[labels]
    box = ndimage.find_objects(lungs.view(np.uint8))[0]
    reach = [max(1, round(CLOSING_MM / float(s))) for s in spacing_irc]
    padded = np.pad(lungs[box], [(r, r) for r in reach])
    closed[box] = ndimage.binary_closing(padded, _ball(reach))[tuple(slice(r, -r) for r in reach)]
    return closed


def _grow(
    region: npt.NDArray[np.bool_], margin_mm: float, spacing_irc: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """A region and everything within a margin of it; distances run from voxel centre to voxel centre."""
    box = ndimage.find_objects(region.view(np.uint8))[0]
    reach = np.ceil(margin_mm / spacing_irc).astype(int)
    around = tuple(slice(max(0, side.start - far), side.stop + far) for side, far in zip(box, reach.tolist()))
    grown = np.zeros_like(region)
    grown[around] = ndimage.distance_transform_edt(~region[around], sampling=spacing_irc) <= margin_mm
    return grown


def lung_positions(
    hu: npt.NDArray[np.int16],
    grid: Grid,
    findings_xyz: npt.NDArray[np.float64],
    *,
    count: int,
    min_distance_mm: float,
    rng: np.random.Generator,
) -> npt.NDArray[np.float64]:
    """Seeded places in the lungs that are far from every finding: negatives for a data set without candidates.

    Half of them lie on tissue (vessels, scars), where a detector errs, half anywhere in the lungs.

    Args:
        hu: (index, row, col) int16.
        grid: the scan's sampling grid.
        findings_xyz: (n, 3) mm, annotated and excluded findings.
        count: how many to draw; fewer come back when the lungs hold fewer places.
        min_distance_mm: to every finding.
        rng: source of the draw.

    Returns:
        (m, 3) float64, mm, LPS.
    """
    region, step = lung_region(hu, grid)
    places = np.argwhere(region) * step
    if findings_xyz.size and len(places):
        points = irc_to_xyz(places, grid)
        distance_mm, _ = cKDTree(findings_xyz).query(points)
        places = places[distance_mm >= min_distance_mm]
    tissue = hu[tuple(places.T)] > TISSUE_HU
    chosen = []
    for pool, wanted in ((places[tissue], count // 2), (places[~tissue], count - count // 2)):
        chosen.append(rng.permutation(pool)[:wanted])
    return irc_to_xyz(np.concatenate(chosen), grid)


def _ball(reach: list[int]) -> npt.NDArray[np.bool_]:
    axes = np.ogrid[tuple(slice(-r, r + 1) for r in reach)]
    return np.asarray(sum((axis / r) ** 2 for axis, r in zip(axes, reach)) <= 1)
