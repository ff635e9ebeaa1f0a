import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from lungml import pieces
from lungml.pieces import Lattice, Pieces, depths_mm, distances_mm, find_pieces

SHAPES = st.sampled_from([(1, 9, 9), (9, 1, 9), (9, 9, 1), (2, 7, 8), (6, 7, 8)])
SPACING = np.array([2.5, 0.7, 0.8])


def lattice_of(mask: np.ndarray, spacing_irc: np.ndarray = SPACING) -> Lattice:
    return Lattice(mask.shape, np.flatnonzero(mask), spacing_irc)


def pieces_of(depths: list[float]) -> Pieces:
    """Of a row of voxels, 0 where nothing is marked."""
    row = np.array(depths, np.float32)
    return find_pieces(lattice_of(row.reshape(1, 1, -1) > 0), row[row > 0])


@given(st.integers(0, 500), SHAPES, st.sampled_from([0.5, 0.9, 1.0]))
def test_distances_equal_scipys_with_outside_as_background(
    seed: int, shape: tuple[int, int, int], share: float
) -> None:
    mask = np.random.default_rng(seed).random(shape) < share
    mask[0, 0, 0] = True
    inner = mask & (np.random.default_rng(seed + 1).random(shape) < 0.95)
    lattice = lattice_of(mask)
    scratch = lattice.table(np.zeros(mask.sum(), np.float32))
    for chosen in (mask, inner):  # one after the other in the same scratch
        expected = ndimage.distance_transform_edt(np.pad(chosen, 1), sampling=SPACING)[1:-1, 1:-1, 1:-1]
        found = distances_mm(lattice, np.flatnonzero(chosen[mask]), scratch)
        np.testing.assert_allclose(found, expected[chosen], rtol=1e-5)
    assert not scratch.any()


def test_depth_is_the_mean_over_the_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "BLUR_MM", 0.01)
    probs = np.array([0.4, 0.9, 0.9, 0.9, 0.4], np.float32)
    lattice = lattice_of(np.ones((1, 1, 5), np.bool_), np.array([9.0, 9.0, 1.0]))
    # Above 0.3 the distances are 1 2 3 2 1, above 0.5 they are 0 1 2 1 0.
    np.testing.assert_allclose(depths_mm(lattice, probs, [0.3, 0.5]), [0.5, 1.5, 2.5, 1.5, 0.5])


def test_the_blur_reaches_neighbours_that_are_near_in_mm_only() -> None:
    lattice = lattice_of(np.ones((3, 3, 3), np.bool_), np.array([2.5, 2.5, 0.4]))
    depth = depths_mm(lattice, np.ones(27, np.float32), [0.5]).reshape(3, 3, 3)
    near = np.exp(-0.5)  # one standard deviation off
    # Distances along every row are 0.4 0.8 0.4.
    np.testing.assert_allclose(
        depth[1, 1], np.array([0.4 + 0.8 * near, 0.8 * (1 + near), 0.4 + 0.8 * near]) / (1 + 2 * near)
    )


def test_a_row_of_depths_falls_into_its_hills() -> None:
    found = pieces_of([1, 3, 2, 1, 2, 1, 0, 1, 1.5])
    assert found.of_voxel.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert found.peaks.tolist() == [1, 4, 7]
    assert found.depth_mm.tolist() == [3, 2, 1.5]
    assert found.neck_mm.tolist() == [0, 1, 0]
    assert found.joins.tolist() == [0, 0, 2]
    assert found.joins_mm.tolist() == [3, 3, 1.5]


def test_a_hill_joins_what_lies_beyond_its_highest_pass() -> None:
    # 4 is left by the pass at 3, towards 5; the lake of both by the pass at 1, towards 6.
    found = pieces_of([4, 3, 5, 1, 6])
    assert found.depth_mm.tolist() == [4, 5, 6]
    assert found.neck_mm.tolist() == [3, 1, 0]
    assert found.joins.tolist() == [1, 2, 2]
    assert found.joins_mm.tolist() == [5, 6, 6]


def test_a_plateau_is_one_hill_or_hills_without_a_waist() -> None:
    found = pieces_of([1, 2, 2, 2, 1])
    top = found.neck_mm == 0
    assert top.sum() == 1
    assert (found.neck_mm[~top] == found.depth_mm[~top]).all()


def test_voxels_that_meet_at_a_corner_hang_together_and_rows_that_meet_in_memory_do_not() -> None:
    mask = np.zeros((2, 3, 3), np.bool_)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    mask[0, 1, 2] = mask[0, 2, 0] = True  # one voxel on in memory
    found = find_pieces(lattice_of(mask), np.ones(4, np.float32))
    # (0, 1, 2) and (1, 1, 1) are neighbours as well; (0, 2, 0) touches (1, 1, 1) by a corner.
    assert (found.neck_mm == 0).sum() == 1
    mask[1, 1, 1] = False
    assert (find_pieces(lattice_of(mask), np.ones(3, np.float32)).neck_mm == 0).sum() == 3


@given(st.integers(0, 300), SHAPES)
def test_components_are_scipys_of_26_neighbours_and_every_voxel_leads_up(
    seed: int, shape: tuple[int, int, int]
) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < 0.4
    mask[0, 0, 0] = True
    depth = rng.integers(1, 4, mask.sum()).astype(np.float32)  # many ties
    found = find_pieces(lattice_of(mask), depth)
    root = np.arange(len(found.peaks))
    for _ in root:
        root = found.joins[root]
    expected, count = ndimage.label(mask, np.ones((3, 3, 3)))
    assert (found.neck_mm == 0).sum() == count
    assert len({*zip(root[found.of_voxel].tolist(), expected[mask].tolist())}) == count
    assert (depth <= found.depth_mm[found.of_voxel]).all()
    assert (found.neck_mm <= found.depth_mm).all()
    assert (found.joins_mm >= found.depth_mm).all()
    assert found.of_voxel[found.peaks].tolist() == list(range(len(found.peaks)))
