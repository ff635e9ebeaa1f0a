"""Where does a marked shape fall into pieces, each of which may be a nodule of its own?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from lungml.components import Ints, find_runs, spans

Floats = npt.NDArray[np.float64]
Steps = tuple[int, int, int]
BLUR_MM = 0.4  # a mask of voxels makes vessels of one width look knotty; half a voxel's blur smooths most knots


class Lattice:
    """Marked voxels in the box that holds them, with one empty voxel all around: each has all its neighbours.

    Values of the whole box are read at the voxels and their neighbours only. The system gives memory to those parts
    of the box that hold voxels.

    Args:
        shape: of the scan.
        voxels: (v,) int64, flat places in C order, ascending; at least one.
        spacing_irc: mm.
    """

    def __init__(self, shape: tuple[int, int, int], voxels: Ints, spacing_irc: Floats) -> None:
        irc = np.unravel_index(voxels, shape)
        lows = [axis.min() for axis in irc]
        self._box = tuple(int(axis.max() - low) + 3 for axis, low in zip(irc, lows))
        self.places = np.ravel_multi_index([axis - low + 1 for axis, low in zip(irc, lows)], self._box)
        self.strides: Steps = (self._box[1] * self._box[2], self._box[2], 1)
        self.spacing_irc = spacing_irc

    def table(self, values: npt.NDArray) -> npt.NDArray:
        """The whole box, flat: (v,) values at the voxels, 0 elsewhere."""
        table = np.zeros(np.prod(self._box), values.dtype)
        table[self.places] = values
        return table

    def neighbours(self) -> list[tuple[int, float]]:
        """Steps to the 26 neighbours, ascending, and how many mm off they are; the first half lies before a voxel."""
        steps = (np.array(step) for step in product((-1, 0, 1), repeat=3) if any(step))
        return sorted((int(step @ self.strides), float(np.linalg.norm(step * self.spacing_irc))) for step in steps)


def depths_mm(lattice: Lattice, probs: npt.NDArray[np.float32], levels: Iterable[float]) -> npt.NDArray[np.float32]:
    """How deep each voxel lies in what is marked, averaged over several thresholds.

    At one threshold it is the distance to the nearest voxel that is not marked, in mm, voxels outside the scan
    counting as such: the depth of erosion by a ball that it outlives. A way is shallow where it is narrow, and where
    only low probabilities make it one. Blurred by `BLUR_MM`.

    Args:
        lattice: of the voxels.
        probs: (v,) of each.
        levels: thresholds, exclusive.

    Returns:
        (v,) float32.
    """
    total, count = np.zeros(len(probs), np.float32), 0
    scratch = lattice.table(total)
    for level in levels:
        chosen = np.flatnonzero(probs > level)
        total[chosen] += distances_mm(lattice, chosen, scratch)
        count += 1
    return _blur(lattice, total / np.float32(count))


def distances_mm(lattice: Lattice, chosen: Ints, scratch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """How far some voxels lie from the nearest that is not among them, exact, one axis after the other.

    The method is Felzenszwalb and Huttenlocher's (2012); a voxel is asked only as far off as something nearer may lie.

    Args:
        lattice: of all voxels.
        chosen: (m,) int64, which of them, ascending.
        scratch: a table of zeros, which it is again afterwards.

    Returns:
        (m,) float32, mm.
    """
    slices_mm, rows_mm, cols_mm = lattice.spacing_irc.astype(np.float32)
    places = lattice.places[chosen]
    lengths = find_runs(places, (1, 1, len(scratch))).lengths  # the box's empty border ends every run with its row
    behind = spans(np.ones_like(lengths), lengths)
    squared = (np.minimum(behind, np.repeat(lengths + 1, lengths) - behind) * cols_mm) ** 2
    for stride, step_mm in ((lattice.strides[1], rows_mm), (lattice.strides[0], slices_mm)):
        scratch[places] = squared
        steps, farther = 1, np.flatnonzero(squared > step_mm**2)
        while len(farther):
            there = places[farther]
            nearer = np.minimum(scratch.take(there - steps * stride), scratch.take(there + steps * stride))
            nearest = np.minimum(squared[farther], nearer + (steps * step_mm) ** 2)
            squared[farther] = nearest
            steps += 1
            farther = farther[nearest > (steps * step_mm) ** 2]
    scratch[places] = 0
    return np.sqrt(squared)


def _blur(lattice: Lattice, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The mean over a voxel and its neighbours, weighted by a Gaussian in mm; what is not marked counts as 0."""
    table = lattice.table(values)
    total, weights = values.copy(), 1.0
    for step, off_mm in lattice.neighbours():
        weight = np.exp(-((off_mm / BLUR_MM) ** 2) / 2)
        if weight > 0.01:  # across thick slices there is nothing to blur
            total += np.float32(weight) * table.take(lattice.places + step)
            weights += weight
    return total / np.float32(weights)


@dataclass(frozen=True, eq=False)
class Pieces:
    """What a landscape of depths falls into, from its deepest places outward.

    Attributes:
        of_voxel: (v,) int64, the piece that each voxel leads up to.
        peaks: (n,) int64, which voxel is each piece's deepest; pieces are in the order of these voxels.
        depth_mm: (n,) float64, of that voxel: about the radius of the largest ball within the piece.
        neck_mm: (n,) float64, the greatest depth at which a way leads out of the piece to a deeper one; 0 where none.
        joins: (n,) int64, the piece that this way leads to, itself where none.
        joins_mm: (n,) float64, the greatest depth of all that hangs together there, its own where there is none.
    """

    of_voxel: Ints
    peaks: Ints
    depth_mm: Floats
    neck_mm: Floats
    joins: Ints
    joins_mm: Floats


def find_pieces(lattice: Lattice, depth_mm: npt.NDArray[np.float32]) -> Pieces:
    """Every local maximum of depth, with the voxels whose steepest ascent ends there, neighbours by a corner included.

    Nothing is left out and nothing smoothed: along a vessel of one width there is a piece every few mm. What is
    a shape of its own is for the caller to say, by depths and necks.
    """
    table = lattice.table(depth_mm)
    highest, step = depth_mm.copy(), np.zeros(len(depth_mm), np.int64)
    for neighbour, _ in lattice.neighbours():
        theirs = table.take(lattice.places + neighbour)
        # Of equal ones the last is the highest, so that no way leads around in a circle.
        climb = theirs >= highest if neighbour > 0 else theirs > highest
        np.copyto(highest, theirs, where=climb)
        step[climb] = neighbour
    top = lattice.table(np.arange(len(depth_mm), dtype=np.int32)).take(lattice.places + step)
    while not np.array_equal(top, above := top[top]):
        top = above
    is_peak = step == 0
    peaks, of_voxel = np.flatnonzero(is_peak), (np.cumsum(is_peak) - 1)[top]
    depths = depth_mm[peaks].astype(np.float64)
    return Pieces(of_voxel, peaks, depths, *_necks(depths, *_borders(lattice, table, depth_mm, of_voxel)))


def _borders(
    lattice: Lattice, table: npt.NDArray[np.float32], depth_mm: npt.NDArray[np.float32], of_voxel: Ints
) -> tuple[Ints, Ints, Floats]:
    """Which pieces touch, and the greatest depth at which one can step from one to the other."""
    owner = lattice.table(of_voxel.astype(np.int32) + 1)
    count = int(of_voxel.max()) + 1
    keys, depths = [], []
    for neighbour, _ in lattice.neighbours()[13:]:
        theirs = owner.take(lattice.places + neighbour) - 1
        at = np.flatnonzero((theirs != of_voxel) & (theirs >= 0))
        one, other = of_voxel[at], theirs[at].astype(np.int64)
        keys.append(np.minimum(one, other) * count + np.maximum(one, other))
        depths.append(np.minimum(depth_mm[at], table.take(lattice.places[at] + neighbour)))
    key, depth = np.concatenate(keys), np.concatenate(depths).astype(np.float64)
    order = np.argsort(key, kind="stable")
    key = key[order]
    firsts = np.flatnonzero(np.append(True, key[1:] != key[:-1])[: len(key)])
    return key[firsts] // count, key[firsts] % count, np.maximum.reduceat(depth[order], firsts)


def _necks(depths: Floats, one: Ints, other: Ints, border_mm: Floats) -> tuple[Floats, Ints, Floats]:
    """Flood from the deepest border up: where two lakes meet, the shallower one's deepest piece has its neck."""
    count = len(depths)
    lake, deepest = list(range(count)), list(range(count))  # of each lake, its deepest piece
    depth = depths.tolist()
    neck, joins, joins_mm = np.zeros(count), np.arange(count), depths.copy()

    def find(piece: int) -> int:
        while lake[piece] != piece:
            lake[piece] = lake[lake[piece]]
            piece = lake[piece]
        return piece

    order = np.argsort(-border_mm, kind="stable")
    for a, b, saddle in zip(one[order].tolist(), other[order].tolist(), border_mm[order].tolist()):
        high, low = find(a), find(b)
        if high == low:
            continue
        if depth[deepest[high]] < depth[deepest[low]]:
            high, low = low, high
        piece = deepest[low]
        neck[piece], joins[piece], joins_mm[piece] = saddle, deepest[high], depth[deepest[high]]
        lake[low] = high
    return neck, joins, joins_mm
