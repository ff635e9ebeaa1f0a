"""Where are the lungs, roughly, and which places in them can serve as non-nodules?"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

from lungml.geometry import Grid, irc_to_xyz

AIR_HU = -400  # lung parenchyma and airways lie below, tissue above
COARSE_MM = 3.0  # the search runs on a grid of about this spacing
CLOSING_MM = 6.0  # vessels and nodules of up to about this radius belong to the lung
MIN_LUNG_ML = 50.0


def lung_region(hu: npt.NDArray[np.int16], grid: Grid) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int_]]:
    """Air inside the body, closed over its vessels, on a coarse grid; false everywhere when no lung is found.

    Args:
        hu: (index, row, col) int16.
        grid: the scan's sampling grid.

    Returns:
        (i, r, c) bool, and the (3,) whole-voxel steps of its grid in the scan's voxels.
    """
    step = np.maximum(1, np.rint(COARSE_MM / grid.spacing_irc)).astype(int)
    coarse = hu[:: step[0], :: step[1], :: step[2]]
    air = coarse < AIR_HU
    # Slice by slice, air that touches the edge of the picture is outside the body.
    outside = np.zeros_like(air)
    for index, plane in enumerate(air):
        labels, _ = ndimage.label(plane)
        edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
        outside[index] = np.isin(labels, edge[edge > 0])
    labels, count = ndimage.label(air & ~outside)
    if not count:
        return np.zeros_like(air), step
    voxel_ml = float(np.prod(step * grid.spacing_irc)) / 1000
    sizes_ml = np.bincount(labels.ravel())[1:] * voxel_ml
    large = 1 + np.flatnonzero(sizes_ml >= min(MIN_LUNG_ML, sizes_ml.max()))
    lungs = np.isin(labels, large)
    reach = [max(1, round(CLOSING_MM / float(s))) for s in step * grid.spacing_irc]
    padded = np.pad(lungs, [(r, r) for r in reach])
    closed = ndimage.binary_closing(padded, _ball(reach))
    return closed[tuple(slice(r, -r) for r in reach)], step


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
    tissue = hu[tuple(places.T)] > AIR_HU
    chosen = []
    for pool, wanted in ((places[tissue], count // 2), (places[~tissue], count - count // 2)):
        chosen.append(rng.permutation(pool)[:wanted])
    return irc_to_xyz(np.concatenate(chosen), grid)


def _ball(reach: list[int]) -> npt.NDArray[np.bool_]:
    axes = np.ogrid[tuple(slice(-r, r + 1) for r in reach)]
    return np.asarray(sum((axis / r) ** 2 for axis, r in zip(axes, reach)) <= 1)
