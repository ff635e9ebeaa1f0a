"""Where does each of a scan's few marked voxels find its neighbours?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product

import numpy as np
import numpy.typing as npt
from scipy import sparse

from lungml.components import Ints, find_runs, spans

Floats = npt.NDArray[np.float64]
ROWS = tuple(product((-1, 0, 1), repeat=2))  # steps of (index, row) to a voxel's own row and the eight around it
OWN = ROWS.index((0, 0))
GAPS_BEFORE = 2  # with the one before the first run they are the three gaps that a row without neighbours reads
AT_ONCE = 1 << 16  # so few entries that they stay in a processor's cache


@dataclass(frozen=True)
class Neighbour:
    """One of the 26.

    Attributes:
        row: number in `ROWS`.
        side: -1, 0 or 1 columns on.
        off_mm: how far.
    """

    row: int
    side: int
    off_mm: float


@dataclass(frozen=True, eq=False)
class Lines:
    """Voxels laid out along another axis, with one gap between runs; the first and the last entry are gaps, too.

    Attributes:
        source: (n,) int64, where in the layout before this one each entry lies; gaps lie in a gap.
        places: (v,) int64, where each voxel lies, in the lattice's order.
        cuts: some gaps, ascending, the first and the last among them: work may be done from one to the next.
    """

    source: Ints
    places: Ints
    cuts: list[int]

    def spans(self) -> Iterator[slice]:
        """From each cut to the next, both included."""
        return (slice(first, last + 1) for first, last in pairwise(self.cuts))


class Lattice:
    """Marked voxels, one after the other, each with all its neighbours.

    Their values lie in tables: run by run along the rows, with a gap on both sides of every run, which holds 0. Beside
    a voxel in a table lies what lies beside it in its row. Memory and work go with the voxels, not with the scan.

    Attributes:
        places: (v,) int64, where in a table each voxel lies.
        size: entries of a table.
        left: (9, v) int64, where in a table the left one of a voxel's three neighbours in each of `ROWS` lies; the
            two others follow it. Where none of the three is marked, they are three gaps.

    Args:
        shape: of the scan.
        voxels: (v,) int64, flat places in C order, ascending; at least one.
        spacing_irc: mm.
    """

    def __init__(self, shape: tuple[int, int, int], voxels: Ints, spacing_irc: Floats) -> None:
        self.spacing_irc = spacing_irc
        runs = find_runs(voxels, shape)
        lengths = runs.lengths
        row, col = np.divmod(runs.starts, shape[2])
        index, row = np.divmod(row, shape[1])
        # Within the box that holds them, with one empty voxel all around: nothing there lies over an edge.
        index, row, col = index - index.min(), row - row.min() + 1, col - col.min() + 1
        self._box = (int(index.max()) + 1, int(row.max()) + 2, int((col + lengths).max()) + 1)
        self._runs = index, row, col, lengths
        before = (index * self._box[1] + row) * self._box[2] + col - 1
        after = before + lengths + 2
        after[:-1] = np.minimum(after[:-1], before[1:])  # where one voxel is missing, two runs share a gap
        firsts = np.cumsum(after - before) - (after - before) + GAPS_BEFORE
        self.size = int(firsts[-1] + after[-1] - before[-1]) + 1  # the last run's right gap has a right neighbour
        self.places = spans(firsts + 1, lengths)
        self._padded = before, after - before  # flat places in the box of each run with its gaps

    @cached_property
    def left(self) -> Ints:
        """Looked up in three slices at a time."""
        index, row, col, lengths = self._runs
        padded = spans(*self._padded)
        slices, rows, cols = self._box
        plane = rows * cols
        there = spans(row * cols + col, lengths)
        ends = np.concatenate([[0], np.cumsum(lengths)])[np.searchsorted(index, np.arange(slices + 1))]
        padded_ends = np.searchsorted(padded, np.arange(slices + 1) * plane)
        tables = np.zeros((3, plane), np.int64)
        left = np.empty((len(ROWS), len(there)), np.int64)

        def fill(number: int) -> None:
            table = tables[number % 3]
            table[:] = 0
            if number < slices:
                begin, end = padded_ends[number], padded_ends[number + 1]
                table[padded[begin:end] - number * plane] = np.arange(begin, end) + GAPS_BEFORE - 1

        fill(0)
        for number in range(slices):
            fill(number + 1)
            voxels = slice(ends[number], ends[number + 1])
            for way, (step, rows_on) in enumerate(ROWS):
                table = tables[(number + step) % 3]
                np.take(table, there[voxels] + rows_on * cols, out=left[way, voxels], mode="clip")  # never clips
        return left

    def table(self, values: npt.NDArray) -> npt.NDArray:
        """(size,) values of the voxels, 0 at the gaps."""
        table = np.zeros(self.size, values.dtype)
        table[self.places] = values
        return table

    def neighbours(self) -> list[Neighbour]:
        """All 26, in the order of the voxels; the first half lies before a voxel."""
        steps = ((row, step, side) for row, step in enumerate(ROWS) for side in (-1, 0, 1) if (row, side) != (OWN, 0))
        return [
            Neighbour(row, side, float(np.linalg.norm(np.array([*step, side]) * self.spacing_irc)))
            for row, step, side in steps
        ]

    def beside(self, table: npt.NDArray, row: int, side: int) -> npt.NDArray:
        """(v,) what a table holds beside each voxel, in this one of `ROWS` and -1, 0 or 1 columns on."""
        return table[1 + side :].take(self.left[row])

    @cached_property
    def columns(self) -> Lines:
        """Laid out along the columns of each slice, from a table."""
        index, row, col, lengths = self._runs
        slices, rows, cols = self._box
        return _line_up(spans(index * cols + col, lengths), np.repeat(row, lengths), (slices * cols, rows), self.places)

    @cached_property
    def stacks(self) -> Lines:
        """Laid out across the slices, from the columns."""
        index, row, col, lengths = self._runs
        slices, rows, cols = self._box
        line, along = spans(row * cols + col, lengths), np.repeat(index, lengths)
        return _line_up(line, along, (rows * cols, slices + 1), self.columns.places)

    def forget_lines(self) -> None:
        """Give back the memory of the other layouts, which are made anew when they are asked for."""
        for name in ("columns", "stacks"):
            self.__dict__.pop(name, None)


def counting_order(numbers: npt.NDArray[np.integer], count: int) -> Ints:
    """What sorts numbers below a count, and leaves equal ones in their order, in linear time."""
    # Turning a matrix of one row around is a counting sort.
    entries = np.arange(len(numbers), dtype=np.int32), numbers.astype(np.int32), np.array([0, len(numbers)], np.int32)
    return sparse.csr_array(entries, shape=(1, count)).tocsc().data.astype(np.int64)


def _line_up(line: Ints, along: Ints, shape: tuple[int, int], before: Ints) -> Lines:
    """Lay voxels out line by line.

    Args:
        line: (v,) of each voxel.
        along: (v,) where in it, ascending in each line, and never on the last place of one and the first of the next.
        shape: lines, places of each.
        before: (v,) where each voxel lay before.
    """
    order = counting_order(line, shape[0])
    begins = np.ones(len(order), np.bool_)
    begins[1:] = np.diff((line * shape[1] + along).take(order)) != 1
    at = np.arange(len(order)) + np.cumsum(begins)
    gaps = np.append(at[begins] - 1, at[-1] + 1)
    source = np.zeros(gaps[-1] + 1, np.int64)
    source[at] = before.take(order)
    places = np.empty_like(at)
    places[order] = at
    cuts = gaps[np.searchsorted(gaps, np.arange(0, len(source), AT_ONCE))]
    return Lines(source, places, np.unique(np.append(cuts, gaps[-1])).tolist())
