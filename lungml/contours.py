"""Which pixels does a radiologist's contour enclose?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lungml.lidc_xml import Contour

Z_DIGITS = 3  # slices lie 0.5 mm apart or more; the digits beyond are noise of how a position was written


@dataclass(frozen=True, eq=False)
class Patch:
    """Pixels of one slice.

    Attributes:
        row, col: of the first pixel of `inside`.
        inside: (rows, cols) bool.
    """

    row: int
    col: int
    inside: npt.NDArray[np.bool_]

    @property
    def points(self) -> npt.NDArray[np.int_]:
        """(N, 2) (row, col) of the pixels inside."""
        return np.add(np.argwhere(self.inside), (self.row, self.col))


Region = Mapping[float, Patch]  # the pixels of each slice, by its z in mm


def fill_contours(contours: Iterable[Contour]) -> Region:
    """The pixels of one reading: what its contours enclose, without the holes and the lines around them.

    A contour's last point is joined to the first and a gap is bridged by a straight line. A pixel is enclosed when no
    path over the four sides of pixels leads from it around the line, so pockets between two windings are enclosed too.
    The line itself, the outer border, is never part of the nodule: around a hole as little as around the nodule. This
    counts exactly the voxels of LUNA16's annotations_excluded.csv, in which a diameter is that of the sphere of a
    single reader's voxels (of its 15 readings with holes 14 agree, and 1 with holes that keep their line).
    A slice without a pixel is left out. A reading too small to enclose any pixel consists of its lines.

    Returns:
        by z in mm, rounded to 0.001, ascending.
    """
    outlines: dict[float, list[Contour]] = {}
    for contour in contours:
        outlines.setdefault(round(contour.z_mm, Z_DIGITS), []).append(contour)
    region = {z_mm: _slice(outlines[z_mm]) for z_mm in sorted(outlines)}
    region = {z_mm: patch for z_mm, patch in region.items() if patch.inside.any()}
    if region:
        return region
    lines = {z_mm: [(*_drawn(c.points), True) for c in outlines[z_mm] if c.inclusion] for z_mm in sorted(outlines)}
    return {z_mm: _painted(layers) for z_mm, layers in lines.items() if layers}


def overlap(one: Region, other: Region) -> bool:
    """Whether two regions share a pixel of a slice."""
    return any(_meet(one[z_mm], other[z_mm]) for z_mm in one.keys() & other.keys())


def union(regions: Sequence[Region]) -> Region:
    """The pixels of any of the regions."""
    if len(regions) == 1:
        return regions[0]
    heights = sorted({z_mm for region in regions for z_mm in region})
    layers = {z_mm: [region[z_mm] for region in regions if z_mm in region] for z_mm in heights}
    return {z_mm: _painted([((p.row, p.col), p.inside, True) for p in found]) for z_mm, found in layers.items()}


def count_pixels(region: Region) -> int:
    return sum(int(np.count_nonzero(patch.inside)) for patch in region.values())


def centroid(region: Region) -> tuple[float, float, float]:
    """The mean (z in mm, row, col) of a region's pixels."""
    placed = [(z_mm, patch.points) for z_mm, patch in region.items()]
    row, col = np.concatenate([points for _, points in placed]).mean(axis=0).tolist()
    z_mm = sum(z * len(points) for z, points in placed) / sum(len(points) for _, points in placed)
    return z_mm, row, col


def _slice(contours: Sequence[Contour]) -> Patch:
    """One reading's pixels on one slice: holes are cut last, whatever the order of the contours."""
    layers = []
    for contour in contours:
        low, line = _drawn(contour.points)
        enclosed = ndimage.binary_fill_holes(line)
        layers.append((low, enclosed & ~line if contour.inclusion else enclosed, contour.inclusion))
    return _painted(sorted(layers, key=lambda layer: not layer[2]))


def _painted(layers: Sequence[tuple[Sequence[int], npt.NDArray[np.bool_], bool]]) -> Patch:
    """Layers (first pixel, pixels, whether they are added or cut) one after the other."""
    row, col = (min(low[axis] for low, _, _ in layers) for axis in (0, 1))
    rows, cols = (max(low[axis] + pixels.shape[axis] for low, pixels, _ in layers) for axis in (0, 1))
    inside = np.zeros((rows - row, cols - col), dtype=np.bool_)
    for low, pixels, added in layers:
        top, left = low[0] - row, low[1] - col
        part = inside[top : top + pixels.shape[0], left : left + pixels.shape[1]]
        part[pixels] = added
    return Patch(int(row), int(col), inside)


def _drawn(points: npt.NDArray[np.int32]) -> tuple[tuple[int, int], npt.NDArray[np.bool_]]:
    """The closed line through the points: its first (row, col), and its pixels in a box just as large."""
    steps = np.roll(points, -1, axis=0) - points
    lengths = np.abs(steps).max(axis=1)
    if lengths.max() > 1:
        pieces = [p + np.rint(np.outer(np.arange(max(n, 1)) / max(n, 1), s)) for p, s, n in zip(points, steps, lengths)]
        points = np.concatenate(pieces).astype(np.int32)
    low = points.min(axis=0)
    line = np.zeros(tuple(points.max(axis=0) - low + 1), dtype=np.bool_)
    line[tuple((points - low).T)] = True
    return (int(low[0]), int(low[1])), line


def _meet(one: Patch, other: Patch) -> bool:
    row, col = max(one.row, other.row), max(one.col, other.col)
    bottom, right = (min(one_end, other_end) for one_end, other_end in zip(_end(one), _end(other)))
    if bottom <= row or right <= col:
        return False
    mine, others = (p.inside[row - p.row : bottom - p.row, col - p.col : right - p.col] for p in (one, other))
    return bool((mine & others).any())


def _end(patch: Patch) -> tuple[int, int]:
    return patch.row + patch.inside.shape[0], patch.col + patch.inside.shape[1]
