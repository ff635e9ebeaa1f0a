"""Which voxels of a scan belong to which kept finding?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lungml.components import Ints, spans
from lungml.findings import Finding
from lungml.geometry import Grid
from lungml.groups import Box
from lungml.reading.record import Opinion

REACH = 2.0  # radii: a nodule is not longer than twice its width, which is also the grouping's bound
TOUCHING = np.ones((3, 3, 3))  # voxels that share a corner hang together
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class NoduleMask:
    """The voxels of one finding.

    Attributes:
        finding: its number, from 1.
        box: the smallest that holds its voxels.
        inside: bool, of the box's shape; true for at least one voxel.
    """

    finding: int
    box: Box
    inside: npt.NDArray[np.bool_]

    def slices(self) -> list[int]:
        """Indices of the scan's slices that hold voxels of it, ascending."""
        return (np.flatnonzero(self.inside.any(axis=(1, 2))) + self.box[0].start).tolist()

    def volume_mm3(self, grid: Grid) -> float:
        """Of its voxels."""
        return int(self.inside.sum()) * float(grid.spacing_irc.prod())


@dataclass(frozen=True, kw_only=True)
class NoduleMasks:
    """The kept findings of one opinion.

    Attributes:
        masks: in the order of their numbers; no voxel is in two of them.
        without: numbers of the kept findings that have no voxel.
    """

    masks: tuple[NoduleMask, ...]
    without: tuple[int, ...]


def kept_findings(opinion: Opinion) -> list[tuple[int, Finding]]:
    """The findings that were taken for nodules, with their numbers."""
    return [(number, f) for number, f in enumerate(opinion.findings, start=1) if f.stage != "filtered"]


def nodule_masks(opinion: Opinion, grid: Grid) -> NoduleMasks:
    """The voxels of every kept finding: what the segmentation marked there, as much of it as the diameter says.

    Of the voxels above the grouping's threshold, a finding may have those within `REACH` radii of its centre that are
    nearer to it, in radii, than to any other kept finding; of two equally near ones the first has them. Of these it has
    the piece that holds the one nearest to its centre, and of that piece as many voxels as a sphere of its diameter
    holds, nearest first, so that a vessel that leads away stays outside. A quarter of a voxel's diagonal is added to
    each radius, as where nodules are annotated.

    A finding has no voxel where none lies within its radius, or where nothing tells its diameter.

    No array is larger than what was marked on the slices of one finding.
    """
    kept = kept_findings(opinion)
    marked = opinion.marked.above(opinion.grouping.threshold)
    centers = np.array([f.center_irc for _, f in kept], dtype=np.float64).reshape(-1, 3)
    radii_mm = np.array([f.diameter_mm for _, f in kept]) / 2 + float(np.linalg.norm(grid.spacing_irc)) / 4
    masks, without = [], []
    for place, (number, finding) in enumerate(kept):
        own = np.empty((0, 3), np.int64)
        if math.isfinite(finding.diameter_mm):
            near = _near(marked, grid, centers[place], REACH * radii_mm[place])
            own = _own(near, place, centers, radii_mm, grid)
            own = _limited(own, finding.diameter_mm, grid)
        if len(own):
            masks.append(_boxed(number, own))
        else:
            without.append(number)
    return NoduleMasks(masks=tuple(masks), without=tuple(without))


def _near(marked: Ints, grid: Grid, center_irc: Floats, reach_mm: float) -> Ints:
    """(n, 3) marked voxels, (index, row, col), of the box that a sphere just fits in."""
    low = np.clip(np.ceil(center_irc - reach_mm / grid.spacing_irc), 0, grid.shape_irc).astype(np.int64)
    high = np.clip(np.floor(center_irc + reach_mm / grid.spacing_irc) + 1, low, grid.shape_irc).astype(np.int64)
    _, rows, cols = grid.shape_irc
    # Row by row of the box: the marked voxels are in C order.
    index, row = np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1]), indexing="ij")
    lines = ((index * rows + row) * cols).ravel()
    first = np.searchsorted(marked, lines + low[2])
    last = np.searchsorted(marked, lines + high[2])
    return np.stack(np.unravel_index(marked[spans(first, last - first)], grid.shape_irc), axis=1)


def _own(voxels: Ints, place: int, centers: Floats, radii_mm: Floats, grid: Grid) -> Ints:
    """Those of a finding's voxels that no other finding is nearer to, its own piece of them, nearest first."""
    away = _away(voxels, centers[place], radii_mm[place], grid)
    voxels, away = voxels[away <= REACH], away[away <= REACH]
    free = np.ones(len(voxels), dtype=np.bool_)
    between_mm = np.linalg.norm((centers - centers[place]) * grid.spacing_irc, axis=1)
    rivals = between_mm <= REACH * (radii_mm + radii_mm[place])  # NaN: it claims nothing
    rivals[place] = False
    for other in np.flatnonzero(rivals):
        # Whatever is nearer to it lies within its reach: on these slices.
        half = REACH * radii_mm[other] / grid.spacing_irc[0]
        low, high = np.searchsorted(voxels[:, 0], (centers[other, 0] - half, centers[other, 0] + half + 1))
        theirs, ours = _away(voxels[low:high], centers[other], radii_mm[other], grid), away[low:high]
        free[low:high] &= ours < theirs if other < place else ours <= theirs
    voxels, away = voxels[free], away[free]
    order = np.argsort(away, kind="stable")
    voxels, away = voxels[order], away[order]
    return _piece(voxels) if len(voxels) and away[0] <= 1 else voxels[:0]


def _limited(voxels: Ints, diameter_mm: float, grid: Grid) -> Ints:
    """As many of the first as a sphere holds, one at least, and of these what hangs together with the first."""
    count = round(math.pi / 6 * diameter_mm**3 / float(grid.spacing_irc.prod()))
    return _piece(voxels[: max(count, 1)])


def _piece(voxels: Ints) -> Ints:
    """The voxels that hang together with the first, in their order."""
    if not len(voxels):
        return voxels
    low = voxels.min(axis=0)
    inside = np.zeros(voxels.max(axis=0) - low + 1, dtype=np.bool_)
    at = tuple((voxels - low).T)
    inside[at] = True
    pieces = ndimage.label(inside, structure=TOUCHING)[0][at]
    return voxels[pieces == pieces[0]]


def _away(voxels: Ints, center_irc: Floats, radius_mm: float, grid: Grid) -> Floats:
    """How many radii voxels lie from a centre."""
    return np.linalg.norm((voxels - center_irc) * grid.spacing_irc, axis=1) / radius_mm


def _boxed(number: int, voxels: Ints) -> NoduleMask:
    low, high = voxels.min(axis=0), voxels.max(axis=0) + 1
    inside = np.zeros(high - low, dtype=np.bool_)
    inside[tuple((voxels - low).T)] = True
    box = (slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1])), slice(int(low[2]), int(high[2])))
    return NoduleMask(finding=number, box=box, inside=inside)


def labelled(
    masks: Sequence[NoduleMask], slices: Sequence[int], grid: Grid
) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """Some slices of the scan, (slice, row, col): 1 for voxels of the first mask, 2 for the second, ...

    Args:
        masks: that share no voxel; on other slices they may have voxels too.
        slices: indices, ascending.
        grid: the scan's sampling grid.

    Returns:
        uint8 where that can count the masks, else uint16.
    """
    volume = np.zeros((len(slices), *grid.shape_irc[1:]), dtype=np.uint8 if len(masks) < 256 else np.uint16)
    place = {index: n for n, index in enumerate(slices)}
    for segment, mask in enumerate(masks, start=1):
        for index, inside in enumerate(mask.inside, start=mask.box[0].start):
            if index in place:
                volume[place[index], mask.box[1], mask.box[2]][inside] = segment
    return volume
