"""Which marked voxels hang together?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse import csgraph

Ints = npt.NDArray[np.int64]
IN_PLANE = ((0, -1), (0, 1))
NEIGHBOURS = ((-1, 0), *IN_PLANE, (1, 0))  # steps of (index, row); those along a row are in the runs themselves


@dataclass(frozen=True, eq=False)
class Runs:
    """Voxels as runs of neighbours along the rows of a scan: work goes with the voxels, not with the scan's size.

    Attributes:
        shape: of the scan, (index, row, col).
        starts: (n,) int64, flat place of each run's first voxel in C order, ascending; no run crosses a row's end.
        ends: (n,) int64, flat place after its last voxel; runs neither meet nor overlap, unless a docstring says so.
    """

    shape: tuple[int, int, int]
    starts: Ints
    ends: Ints

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> Ints:
        """(n,) int64, voxels of each run."""
        return self.ends - self.starts

    def voxels(self) -> Ints:
        """(v,) int64, flat places of all voxels, run by run."""
        return spans(self.starts, self.lengths)

    def shifted(self, index: int, row: int) -> tuple[Runs, Ints]:
        """The runs some slices and rows on; those that leave the scan go.

        Returns:
            the moved runs, and (m,) int64, which run each of them was.
        """
        slices, rows, cols = self.shape
        there = np.ones(len(self), dtype=np.bool_)
        if row:  # a step of slices leaves the flat range, a step of rows the slice
            moved = self.starts // cols % rows + row
            there = (moved >= 0) & (moved < rows)
        step = (index * rows + row) * cols
        starts = self.starts + step
        there &= (starts >= 0) & (starts < slices * rows * cols)
        which = np.flatnonzero(there)
        return Runs(self.shape, starts[which], self.ends[which] + step), which

    def common(self, other: Runs) -> tuple[Runs, Ints, Ints]:
        """The voxels of both.

        Returns:
            the runs that hold them, and twice (m,) int64, which of our and which of the other's runs each came from.
        """
        ours, theirs = _overlaps(self, other)
        starts = np.maximum(self.starts[ours], other.starts[theirs])
        return Runs(self.shape, starts, np.minimum(self.ends[ours], other.ends[theirs])), ours, theirs

    def without(self, other: Runs) -> tuple[Runs, Ints]:
        """Our voxels that the other has not; its runs may meet.

        Returns:
            the runs that hold them, and (m,) int64, which of our runs each came from.
        """
        gaps = Runs(
            self.shape,
            np.concatenate([[0], other.ends]),
            np.concatenate([other.starts, [np.iinfo(np.int64).max]]),
        )
        found, ours, _ = self.common(gaps)
        some = found.lengths > 0
        return found.kept(some), ours[some]

    def kept(self, which: npt.NDArray[np.bool_] | Ints) -> Runs:
        """Some of the runs."""
        return Runs(self.shape, self.starts[which], self.ends[which])


def find_runs(voxels: Ints, shape: tuple[int, int, int]) -> Runs:
    """The runs of some voxels, (v,) int64 flat places in C order, ascending."""
    breaks = np.flatnonzero(voxels[1:] != voxels[:-1] + 1) + 1
    firsts = np.concatenate([np.zeros(min(len(voxels), 1), np.int64), breaks])
    starts = voxels[firsts]
    ends = voxels[np.concatenate([firsts[1:], [len(voxels)]]) - 1] + 1 if len(voxels) else starts
    # A run that goes on into the next row is one run a row.
    cols = shape[2]
    first_row = starts // cols
    rows = (ends - 1) // cols - first_row + 1
    if not (rows > 1).any():
        return Runs(shape, starts, ends)
    row = spans(first_row, rows)
    return Runs(
        shape,
        np.maximum(np.repeat(starts, rows), row * cols),
        np.minimum(np.repeat(ends, rows), (row + 1) * cols),
    )


def erode(runs: Runs) -> Runs:
    """One erosion by the 6-neighbourhood; outside the scan counts as empty, as in `scipy.ndimage.binary_erosion`."""
    cores = Runs(runs.shape, runs.starts + 1, runs.ends - 1)
    cores = cores.kept(cores.lengths > 0)
    for index, row in NEIGHBOURS:
        cores = cores.common(runs.shifted(index, row)[0])[0]
    return cores


def label(runs: Runs) -> tuple[Ints, int]:
    """The 6-connected components.

    Returns:
        (n,) int64, the component of each run, numbered from 0 in the order of their first voxels; and how many.
    """
    pairs = []
    for index, row in ((0, 1), (1, 0)):
        moved, which = runs.shifted(index, row)
        ours, theirs = _overlaps(moved, runs)
        pairs.append((which[ours], theirs))
    one, other = (np.concatenate(side) for side in zip(*pairs))
    links = sparse.coo_array((np.ones(len(one), np.int8), (one, other)), shape=(len(runs), len(runs)))
    count, labels = csgraph.connected_components(links, directed=False)
    return _in_order(labels.astype(np.int64), count), count


def spread(labelled: Runs, labels: Ints, within: Runs) -> tuple[Runs, Ints]:
    """Labelled runs and their 6-neighbours among other runs.

    A voxel beside two labels gets that of the run that starts first.

    Args:
        labelled: what grows, within the others; its runs may meet.
        labels: (n,) int64, of each.
        within: where it may grow.

    Returns:
        the grown runs, which may meet, and (m,) int64, their labels.
    """
    cols = labelled.shape[2]
    longer = Runs(
        labelled.shape,
        labelled.starts - (labelled.starts % cols > 0),
        labelled.ends + (labelled.ends % cols > 0),
    )
    moved = [(longer, np.arange(len(longer))), *(labelled.shifted(index, row) for index, row in NEIGHBOURS)]
    starts = np.concatenate([part.starts for part, _ in moved])
    ends = np.concatenate([part.ends for part, _ in moved])
    grown = labels[np.concatenate([which for _, which in moved])]
    order = np.argsort(starts, kind="stable")
    starts, ends, grown = starts[order], ends[order], grown[order]
    # Each run keeps what those before it left.
    starts[1:] = np.maximum(starts[1:], np.maximum.accumulate(ends)[:-1])
    some = starts < ends
    fresh, which, _ = Runs(labelled.shape, starts[some], ends[some]).common(within)
    grown = grown[some][which]
    fresh, which = fresh.without(labelled)
    starts = np.concatenate([labelled.starts, fresh.starts])
    order = np.argsort(starts, kind="stable")
    ends = np.concatenate([labelled.ends, fresh.ends])
    return Runs(labelled.shape, starts[order], ends[order]), np.concatenate([labels, grown[which]])[order]


def spans(starts: Ints, lengths: Ints) -> Ints:
    """starts[0], starts[0] + 1, ... for as many as the lengths say, one after the other; int64."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)


def _overlaps(one: Runs, other: Runs) -> tuple[Ints, Ints]:
    """Which runs share a voxel with which: twice (m,) int64, ordered by the first, then the second."""
    first = np.searchsorted(other.ends, one.starts, side="right")
    counts = np.searchsorted(other.starts, one.ends, side="left") - first
    return np.repeat(np.arange(len(one)), counts), spans(first, counts)


def _in_order(labels: Ints, count: int) -> Ints:
    """Renumbered so that 0 comes first, then 1 ...: SciPy does not promise an order."""
    firsts = np.empty(count, np.int64)
    firsts[labels[::-1]] = np.arange(len(labels))[::-1]
    numbers = np.empty(count, np.int64)
    numbers[np.argsort(firsts)] = np.arange(count)
    return numbers[labels]
