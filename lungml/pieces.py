"""Where does a marked shape fall into pieces, each of which may be a nodule of its own?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lungml.components import Ints
from lungml.lattice import OWN, ROWS, Floats, Lattice, Lines, counting_order

BLUR_MM = 0.4  # a mask of voxels makes vessels of one width look knotty; half a voxel's blur smooths most knots
STEPS_AT_ONCE = 4  # to look whether all is done costs as much as half a step


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
    lattice.forget_lines()
    return _blur(lattice, total / np.float32(count))


def distances_mm(lattice: Lattice, chosen: Ints, scratch: npt.NDArray[np.float32]) -> Floats:
    """How far some voxels lie from the nearest that is not among them, exact, one axis after the other.

    The method is Felzenszwalb and Huttenlocher's (2012). Whole lines are
    asked step by step until nothing farther off can be nearer. What a voxel has by its own row is float64, what others
    offer it float32.

    Args:
        lattice: of all voxels.
        chosen: (m,) int64, which of them, ascending.
        scratch: a table of zeros, which it is again afterwards.

    Returns:
        (m,) float64, mm.
    """
    slices_mm, rows_mm, cols_mm = lattice.spacing_irc.astype(np.float32)
    places = lattice.places.take(chosen)
    scratch[places] = 1
    gaps = np.flatnonzero(scratch == 0).astype(np.int32)  # and what was not chosen; the first and last entry among them
    apart = np.diff(gaps)
    behind = np.arange(gaps[-1], dtype=np.int32) - np.repeat(gaps[:-1], apart)
    own = (np.minimum(behind, np.repeat(apart, apart) - behind) * cols_mm) ** 2
    scratch[:-1] = own
    squared = scratch.take(lattice.columns.source)
    scratch[:] = 0
    others = _of_others(squared, lattice.columns, rows_mm)
    squared = np.minimum(squared, others).take(lattice.stacks.source)
    others = np.minimum(others.take(lattice.stacks.source), _of_others(squared, lattice.stacks, slices_mm))
    return np.sqrt(np.minimum(own.take(places), others.take(lattice.stacks.places.take(chosen))))


def _of_others(squared: npt.NDArray[np.float32], lines: Lines, step_mm: np.float32) -> npt.NDArray[np.float32]:
    """The least squared distance that others on a voxel's line offer it; more than that where its own is less.

    Entries so many steps apart may lie in different runs: then there is a gap in between, which offers less.
    """
    others = np.full_like(squared, np.inf)
    for part in lines.spans():
        own, least = squared[part], others[part]
        offered = np.empty_like(own)
        tried, farthest = 0, own.max()
        while farthest >= ((tried + 1) * step_mm) ** 2:
            first, tried = tried + 1, min(tried + STEPS_AT_ONCE, len(own) - 1)
            for steps in range(first, tried + 1):
                np.add(own, (steps * step_mm) ** 2, out=offered)
                np.minimum(least[steps:], offered[:-steps], out=least[steps:])
                np.minimum(least[:-steps], offered[steps:], out=least[:-steps])
            farthest = np.minimum(own, least).max()
    return others


def _blur(lattice: Lattice, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The mean over a voxel and its neighbours, weighted by a Gaussian in mm; what is not marked counts as 0."""
    table = lattice.table(values)
    total, weights = values.copy(), 1.0
    for neighbour in lattice.neighbours():
        weight = np.exp(-((neighbour.off_mm / BLUR_MM) ** 2) / 2)
        if weight > 0.01:  # across thick slices there is nothing to blur
            total += np.float32(weight) * lattice.beside(table, neighbour.row, neighbour.side)
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
    peaks, owner = _ascend(lattice, table, depth_mm)
    of_voxel = owner.take(lattice.places).astype(np.int64) - 1
    depths = depth_mm[peaks].astype(np.float64)
    return Pieces(of_voxel, peaks, depths, *_necks(depths, *_borders(lattice, table, depth_mm, owner)))


def _ascend(
    lattice: Lattice, table: npt.NDArray[np.float32], depth_mm: npt.NDArray[np.float32]
) -> tuple[Ints, npt.NDArray[np.int32]]:
    """Which voxels are peaks, and a table of which peak each voxel leads up to, counted from 1; 0 in gaps."""
    above = _steepest(lattice, table, depth_mm)
    peaks = np.flatnonzero(above.take(lattice.places) == lattice.places)
    while not np.array_equal(above, further := above.take(above)):
        above = further
    numbers = np.zeros(lattice.size, np.int32)
    numbers[lattice.places[peaks]] = np.arange(1, len(peaks) + 1)
    return peaks, numbers.take(above)


def _steepest(lattice: Lattice, table: npt.NDArray[np.float32], depth_mm: npt.NDArray[np.float32]) -> Ints:
    """(size,) int64, where in a table the deepest of a voxel and its neighbours lies; a gap leads to itself.

    Of equal ones the last neighbour behind the voxel is taken, else the voxel itself, else the first before it, so
    that no way leads around in a circle. Of a row around it three are asked at once, by their maximum.
    """
    left, middle, right = table[:-2], table[1:-1], table[2:]
    rows = np.zeros_like(table)
    rows[1:-1] = np.maximum(np.maximum(left, middle), right)
    has_left, has_middle, has_right = (side == rows[1:-1] for side in (left, middle, right))
    first, last = np.zeros((2, len(table)), np.uint8)  # which of the three it is
    first[1:-1] = 2 - np.maximum(2 * has_left.view(np.uint8), has_middle)
    last[1:-1] = np.maximum(2 * has_right.view(np.uint8), has_middle)
    # Where to look, one after the other: rows before, on the left, on the right, rows behind.
    looks = [*((row, 0) for row in range(OWN)), (OWN, -1), (OWN, 1), *((row, 0) for row in range(OWN + 1, len(ROWS)))]
    highest, chosen = depth_mm.copy(), np.zeros(len(depth_mm), np.uint8)
    for number, (row, side) in enumerate(looks, start=1):
        theirs = lattice.beside(table if row == OWN else rows, row, side)
        climbs = theirs >= highest if (row, side) > (OWN, 0) else theirs > highest
        np.maximum(highest, theirs, out=highest)
        np.maximum(chosen, climbs * np.uint8(number), out=chosen)
    above = np.arange(lattice.size)
    for number, (row, side) in enumerate(looks, start=1):
        which = np.flatnonzero(chosen == number)
        there = lattice.left[row].take(which)
        there += 1 + side if row == OWN else (first if row < OWN else last)[1:].take(there)
        above[lattice.places.take(which)] = there
    return above


def _borders(
    lattice: Lattice, table: npt.NDArray[np.float32], depth_mm: npt.NDArray[np.float32], owner: npt.NDArray[np.int32]
) -> tuple[Ints, Ints, Floats]:
    """Which pieces touch, and the greatest depth at which one can step from one to the other; ordered by the pieces."""
    ours = owner.take(lattice.places)
    count = int(ours.max()) + 1
    found = []
    for neighbour in lattice.neighbours()[13:]:
        theirs = lattice.beside(owner, neighbour.row, neighbour.side)
        at = np.flatnonzero((theirs != ours) & (theirs > 0))
        one, other = ours.take(at), theirs.take(at)
        there = lattice.left[neighbour.row].take(at)
        depth = np.minimum(depth_mm.take(at), table[1 + neighbour.side :].take(there))
        found.append(_greatest(np.minimum(one, other), np.maximum(one, other), depth))
    one, other, depth = (np.concatenate(parts) for parts in zip(*found))
    order = counting_order(other, count)
    order = order.take(counting_order(one.take(order), count))
    one, other, depth = _greatest(one.take(order), other.take(order), depth.take(order))
    return one.astype(np.int64) - 1, other.astype(np.int64) - 1, depth.astype(np.float64)


def _greatest(
    one: npt.NDArray[np.int32], other: npt.NDArray[np.int32], depth: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Each pair once that comes several times in a row, with its greatest depth."""
    changes = (one[1:] != one[:-1]) | (other[1:] != other[:-1])
    firsts = np.flatnonzero(np.append(True, changes)[: len(one)])
    return one[firsts], other[firsts], np.maximum.reduceat(depth, firsts)


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
