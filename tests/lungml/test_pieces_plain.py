"""Is what was made fast equal, to the last bit, to the plain way of doing it?"""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lungml import lattice, pieces
from lungml.lattice import Lattice
from lungml.pieces import distances_mm, find_pieces

SHAPES = st.sampled_from([(1, 9, 9), (9, 1, 9), (9, 9, 1), (2, 7, 8), (6, 7, 8), (3, 12, 12)])
# Equal steps: many distances are tied, and some round otherwise than others of the same length.
SPACINGS = st.sampled_from([(2.5, 0.703125, 0.703125), (0.7, 0.7, 0.7), (1.25, 0.6, 0.8), (0.1, 0.3, 0.9)])
NEIGHBOURS = [step for step in product((-1, 0, 1), repeat=3) if any(step)]
Voxel = tuple[int, int, int]


def lattice_of(mask: np.ndarray, spacing: tuple[float, float, float]) -> Lattice:
    return Lattice(mask.shape, np.flatnonzero(mask), np.array(spacing))


def plain_distances(chosen: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Voxel by voxel, every other one on its row, then its column, then across the slices."""
    around = np.pad(chosen, 1)
    slice_mm, row_mm, col_mm = np.array(spacing).astype(np.float32)
    own = np.zeros(around.shape)
    for *line, col in np.argwhere(around).tolist():
        gaps = np.flatnonzero(~around[tuple(line)])
        own[(*line, col)] = (np.abs(gaps - col).min() * np.float64(col_mm)) ** 2
    squared, others = own.astype(np.float32), np.full(around.shape, np.inf, np.float32)
    for axis, step_mm in ((1, row_mm), (0, slice_mm)):
        offered = others.copy()
        for there in map(tuple, np.argwhere(around).tolist()):
            for place in range(around.shape[axis]):
                if place != there[axis]:
                    other = tuple(place if a == axis else at for a, at in enumerate(there))
                    far = (abs(place - there[axis]) * step_mm) ** 2
                    offered[there] = min(offered[there], squared[other] + far)
        others = offered
        squared = np.minimum(squared, others)
    return np.sqrt(np.minimum(own, others))[1:-1, 1:-1, 1:-1][chosen]


@given(st.integers(0, 500), SHAPES, SPACINGS, st.sampled_from([0.6, 0.9, 1.0]))
def test_distances(seed: int, shape: Voxel, spacing: tuple[float, float, float], share: float) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < share
    mask[0, 0, 0] = True
    chosen = mask & (rng.random(shape) < 0.9)
    voxels = lattice_of(mask, spacing)
    found = distances_mm(voxels, np.flatnonzero(chosen[mask]), voxels.table(np.zeros(mask.sum(), np.float32)))
    assert found.tolist() == plain_distances(chosen, spacing).tolist()


def test_distances_of_layouts_that_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lattice, "AT_ONCE", 16)
    mask = np.random.default_rng(3).random((5, 12, 12)) < 0.97
    voxels = lattice_of(mask, (0.7, 0.7, 0.7))
    found = distances_mm(voxels, np.arange(mask.sum()), voxels.table(np.zeros(mask.sum(), np.float32)))
    assert found.tolist() == plain_distances(mask, (0.7, 0.7, 0.7)).tolist()


def plain_ascent(depths: dict[Voxel, float]) -> dict[Voxel, Voxel]:
    """Of each voxel the peak it leads up to, step by step."""
    above = {}
    for there, depth in depths.items():
        highest, above[there] = depth, there
        for step in NEIGHBOURS:
            beside = tuple(np.add(there, step).tolist())
            theirs = depths.get(beside, 0)
            if theirs > highest or (theirs == highest and step > (0, 0, 0)):
                highest, above[there] = theirs, beside

    def peak(voxel: Voxel) -> Voxel:
        while above[voxel] != voxel:
            voxel = above[voxel]
        return voxel

    return {there: peak(there) for there in depths}


@given(st.integers(0, 500), SHAPES, st.sampled_from([0.3, 0.8, 1.0]), st.integers(2, 9))
def test_pieces_and_their_borders(seed: int, shape: Voxel, share: float, heights: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < share
    mask[0, 0, 0] = True
    depth = rng.integers(1, heights, mask.sum()).astype(np.float32)  # many ties
    depths = dict(zip(map(tuple, np.argwhere(mask).tolist()), depth.tolist()))
    peak_of = plain_ascent(depths)
    peaks = sorted({*peak_of.values()})
    number = {there: peaks.index(peak) for there, peak in peak_of.items()}
    borders: dict[tuple[int, int], float] = {}
    for there, step in product(depths, NEIGHBOURS):
        beside = tuple(np.add(there, step).tolist())
        if beside in depths and number[there] < number[beside]:
            pair = number[there], number[beside]
            borders[pair] = max(borders.get(pair, 0.0), min(depths[there], depths[beside]))
    pairs = sorted(borders)
    one, other = np.array(pairs, np.int64).reshape(-1, 2).T
    top = np.array([depths[peak] for peak in peaks])
    neck, joins, joins_mm = pieces._necks(top, one, other, np.array([borders[pair] for pair in pairs]))

    found = find_pieces(lattice_of(mask, (2.5, 0.7, 0.8)), depth)
    assert found.of_voxel.tolist() == list(number.values())
    assert np.argwhere(mask)[found.peaks].tolist() == [list(peak) for peak in peaks]
    assert found.depth_mm.tolist() == top.tolist()
    assert found.neck_mm.tolist() == neck.tolist()
    assert found.joins.tolist() == joins.tolist()
    assert found.joins_mm.tolist() == joins_mm.tolist()
