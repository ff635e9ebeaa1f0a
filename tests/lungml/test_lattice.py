from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lungml import lattice
from lungml.lattice import ROWS, Lattice, Lines, counting_order

# One slice, one row, one column, thin and thick; rows short enough that full ones meet.
SHAPES = st.sampled_from([(1, 9, 9), (9, 1, 9), (9, 9, 1), (2, 7, 8), (3, 5, 4), (1, 1, 12), (6, 7, 8), (5, 2, 3)])
SHARES = st.sampled_from([0.05, 0.3, 0.7, 0.95, 1.0])
SPACING = np.array([2.5, 0.7, 0.8])


def random_mask(seed: int, shape: tuple[int, int, int], share: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < share
    mask[tuple(rng.integers(shape))] = True
    return mask


def lattice_of(mask: np.ndarray) -> Lattice:
    return Lattice(mask.shape, np.flatnonzero(mask), SPACING)


@given(st.integers(0, 1000), SHAPES, SHARES)
def test_each_voxel_finds_what_lies_beside_it(seed: int, shape: tuple[int, int, int], share: float) -> None:
    mask = random_mask(seed, shape, share)
    values = np.arange(1, mask.sum() + 1)
    around = np.zeros(shape, np.int64)
    around[mask] = values
    around = np.pad(around, 1)
    voxels = lattice_of(mask)
    table = voxels.table(values)
    assert table.shape == (voxels.size,)
    assert sorted(table[table > 0].tolist()) == values.tolist()
    for (row, (index, rows)), side in product(enumerate(ROWS), (-1, 0, 1)):
        expected = np.roll(around, (-index, -rows, -side), (0, 1, 2))[1:-1, 1:-1, 1:-1][mask]
        np.testing.assert_array_equal(voxels.beside(table, row, side), expected)


def test_neighbours_come_in_the_order_of_the_voxels() -> None:
    mask = np.ones((3, 3, 3), np.bool_)
    voxels = lattice_of(mask)
    table = voxels.table(np.arange(27))
    middle = [voxels.beside(table, n.row, n.side)[13] for n in voxels.neighbours()]
    assert middle == [*range(13), *range(14, 27)]
    assert [n.off_mm for n in voxels.neighbours()][12:14] == [0.8, 0.8]
    assert voxels.neighbours()[0].off_mm == pytest.approx(np.linalg.norm(SPACING))


def laid_out(lines: Lines, before: np.ndarray) -> list[list[int]]:
    """The runs of a layout."""
    entries = before[lines.source]
    assert entries[0] == entries[-1] == 0
    runs = [part[1:].tolist() for part in np.split(entries, np.flatnonzero(entries == 0))]
    return [run for run in runs if run]


def runs_along(volume: np.ndarray, axes: tuple[int, int, int]) -> list[list[int]]:
    lines = np.pad(volume.transpose(axes).reshape(-1, volume.shape[axes[2]]), ((0, 0), (0, 1))).reshape(-1)
    return [run for part in np.split(lines, np.flatnonzero(lines == 0)) if (run := part[part > 0].tolist())]


@given(st.integers(0, 1000), SHAPES, SHARES)
def test_other_layouts_hold_the_runs_along_other_axes(seed: int, shape: tuple[int, int, int], share: float) -> None:
    mask = random_mask(seed, shape, share)
    volume = np.zeros(shape, np.int64)
    volume[mask] = np.arange(1, mask.sum() + 1)
    voxels = lattice_of(mask)
    table = voxels.table(volume[mask])
    assert laid_out(voxels.columns, table) == runs_along(volume, (0, 2, 1))
    columns = table[voxels.columns.source]
    assert laid_out(voxels.stacks, columns) == runs_along(volume, (1, 2, 0))
    for entries, lines in ((columns, voxels.columns), (columns[voxels.stacks.source], voxels.stacks)):
        assert entries[lines.places].tolist() == volume[mask].tolist()


def test_layouts_are_cut_at_gaps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lattice, "AT_ONCE", 10)
    mask = random_mask(0, (6, 7, 8), 0.6)
    lines = lattice_of(mask).columns
    parts = list(lines.spans())
    assert len(parts) > 5
    assert (parts[0].start, parts[-1].stop) == (0, len(lines.source))
    assert all(one.stop == other.start + 1 for one, other in pairwise(parts))
    assert not set(lines.cuts) & set(lines.places.tolist())


def test_forgotten_layouts_are_made_anew() -> None:
    voxels = lattice_of(random_mask(0, (3, 4, 5), 0.6))
    before = voxels.stacks
    voxels.forget_lines()
    assert voxels.stacks is not before
    np.testing.assert_array_equal(voxels.stacks.source, before.source)


@given(st.lists(st.integers(0, 9), max_size=50))
def test_counting_sorts_and_keeps_equal_ones_in_order(numbers: list[int]) -> None:
    values = np.array(numbers, np.int64)
    np.testing.assert_array_equal(counting_order(values, 10), np.argsort(values, kind="stable"))
