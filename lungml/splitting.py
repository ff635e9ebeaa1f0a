"""Which pieces of what was marked may be a nodule each?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from lungml.components import Ints
from lungml.lattice import Floats, Lattice
from lungml.marked import Marked
from lungml.pieces import Pieces, depths_mm, find_pieces

SMALLEST_MM = 3.0  # the smallest nodules that LUNA16 asks for; smaller ones were not measured
# Chosen on simulated segmentations (tests/lungml/fixtures/segmentations.py) by the nodules lost and the places offered.
WAIST = 0.83  # a piece is a shape of its own when every way out is narrower than this share of it: two balls, a waist
BUMP, BUMP_WAIST = 1.3, 0.92  # or when what it leads to is so much thicker: a nodule on a wall has hardly a waist
# Depths jump by a part of a voxel from one voxel to the next, so that a vessel of one width seems to have waists.
WAIST_VOXELS, BUMP_VOXELS = 0.2, 0.1
# Where a network marks half of the chest there is no end of parts: the classifiers are to cost at most so much more
# than by the report's rule. Up to so many candidates cost a second, whatever the report's rule has.
MOST_OF_REPORT, FREELY = 1.2, 100


@dataclass(frozen=True, eq=False)
class Parts:
    """Shapes of their own.

    Attributes:
        of_voxel: (v,) int64, the part of each voxel; -1 where it belongs to none.
        peaks: (n,) int64, which voxel is each part's deepest.
        depth_mm: (n,) float64, of that voxel: about the radius of the largest ball within the part.
        component: (v,) int64, the deepest part of each voxel's component; -1 where it belongs to none.
        left_out: parts that stay joined to a deeper one, or were too unsure, because the limit was reached.
    """

    of_voxel: Ints
    peaks: Ints
    depth_mm: Floats
    component: Ints
    left_out: int


def split(marked: Marked, spacing_irc: Floats, levels: Sequence[float], threshold: float, reported: int) -> Parts:
    """Split what was marked where it narrows; what does not split stays whole.

    Of each component (neighbours by a corner included) that exceeds the threshold somewhere and has as many voxels as
    a sphere of `SMALLEST_MM`, two parts are never left out: the deepest, and the one that is most separate from it.
    Of the others, which are further parts and what stays below the threshold, the surest and most separate come
    first, up to `MOST_OF_REPORT` or `FREELY` parts in all.

    Args:
        marked: above the lowest level; at least one voxel.
        spacing_irc: (3,) mm.
        levels: thresholds whose depths are averaged.
        threshold: above it the segmentation takes a voxel for a nodule's.
        reported: how many candidates the report's rule has.
    """
    lattice = Lattice(marked.shape, marked.voxels, spacing_irc)
    pieces = find_pieces(lattice, depths_mm(lattice, marked.probs, levels))
    whole = pieces.neck_mm == 0
    component = _owners(pieces.joins, whole)
    stands = whole | _is_distinct(pieces, min(spacing_irc[1:]))
    fewest = fewest_voxels(tuple(spacing_irc.tolist()), SMALLEST_MM)
    sizes = np.bincount(_owners(pieces.joins, stands)[pieces.of_voxel], minlength=len(whole))
    large = sizes >= fewest
    large[whole] = np.bincount(component[pieces.of_voxel], minlength=len(whole))[whole] >= fewest
    stands &= large
    stands[_doubles(marked, spacing_irc, pieces, np.flatnonzero(stands))] = False
    seen = np.zeros(len(whole), dtype=np.bool_)
    seen[component[pieces.of_voxel[marked.probs > threshold]]] = True
    clear = marked.probs[pieces.peaks] * (1 - pieces.neck_mm / pieces.depth_mm)
    order = np.flatnonzero(stands)
    order = order[np.lexsort((-clear[order], ~whole[order], component[order]))]
    first = np.flatnonzero(np.append(True, np.diff(component[order]) != 0)[: len(order)])
    place = np.arange(len(order)) - np.repeat(first, np.diff(np.append(first, len(order))))
    always = seen[component[order]] & (place < 2)
    rest = order[~always]
    room = max(int(MOST_OF_REPORT * reported), FREELY) - int(always.sum())
    dropped = rest[np.argsort(-clear[rest], kind="stable")[max(room, 0) :]]
    stands[dropped] = False
    numbers = np.where(stands, np.cumsum(stands) - 1, -1)
    return Parts(
        of_voxel=numbers[_owners(pieces.joins, stands | whole)][pieces.of_voxel],
        peaks=pieces.peaks[stands],
        depth_mm=pieces.depth_mm[stands],
        component=numbers[component][pieces.of_voxel],
        left_out=len(dropped),
    )


def _is_distinct(pieces: Pieces, voxel_mm: float) -> npt.NDArray[np.bool_]:
    depth, neck = pieces.depth_mm, pieces.neck_mm
    waist = (neck < WAIST * depth) & (depth - neck > WAIST_VOXELS * voxel_mm)
    bump = (neck < BUMP_WAIST * depth) & (depth - neck > BUMP_VOXELS * voxel_mm) & (pieces.joins_mm > BUMP * depth)
    return waist | bump


def _owners(joins: Ints, stands: npt.NDArray[np.bool_]) -> Ints:
    """(n,) int64, for each piece the first one that stands on its way to ever deeper ones."""
    owner = np.where(stands, np.arange(len(joins)), joins)
    while not np.array_equal(owner, further := owner[owner]):
        owner = further
    return owner


def _doubles(marked: Marked, spacing_irc: Floats, pieces: Pieces, which: Ints) -> Ints:
    """Pieces whose largest ball holds a deeper piece's centre: whoever looks there sees them, too."""
    centers = np.stack(np.unravel_index(marked.voxels[pieces.peaks[which]], marked.shape), axis=1) * spacing_irc
    depth = pieces.depth_mm[which]
    near = cKDTree(centers).query_pairs(depth.max(initial=0), output_type="ndarray")
    apart = np.linalg.norm(centers[near[:, 0]] - centers[near[:, 1]], axis=1)
    shallower = np.where(depth[near[:, 0]] < depth[near[:, 1]], near[:, 0], near[:, 1])
    return which[np.unique(shallower[apart < depth[shallower]])]


@cache
def fewest_voxels(spacing_irc: tuple[float, float, float], diameter_mm: float) -> int:
    """How many voxel centres a sphere holds at least, wherever it lies (24 places a voxel and axis are tried)."""
    radius = diameter_mm / 2
    squared = []
    for step in spacing_irc:
        reach = int(radius / step) + 1
        offsets = np.linspace(0, 0.5, 13) * step
        squared.append((np.arange(-reach, reach + 1) * step - offsets[:, None]) ** 2)
    counts = (np.count_nonzero(a[:, None, None] + b[:, None] + c <= radius**2) for a, b, c in product(*squared))
    return max(min(int(count) for count in counts), 1)
