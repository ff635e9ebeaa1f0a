import numpy as np
import pytest
from scipy import ndimage

from lungml.geometry import Grid, xyz_to_irc
from lungml.lungs import LungField, NoLungsError, lung_field, lung_positions, lung_region

GRID = Grid(shape_irc=(30, 80, 80), spacing_xyz=(3.0, 3.0, 3.0), origin_xyz=(-100, 50, 7))


def chest() -> np.ndarray:
    """A body of tissue in air with two lungs, a vessel in one of them."""
    hu = np.full(GRID.shape_irc, -1000, np.int16)
    hu[:, 8:72, 8:72] = 40
    hu[4:26, 20:60, 14:36] = -850
    hu[4:26, 20:60, 44:66] = -850
    hu[:, 38:40, 14:36] = 40
    return hu


def test_lungs_without_the_air_around_the_body() -> None:
    region, step = lung_region(chest(), GRID)
    assert step.tolist() == [1, 1, 1]
    assert region[15, 25, 25]
    assert region[15, 39, 25]  # the vessel belongs
    assert region[15, 30, 50]
    assert not region[15, 2, 2]
    assert not region[15, 40, 40]


def test_no_lungs() -> None:
    region, _ = lung_region(np.full(GRID.shape_irc, 40, np.int16), GRID)
    assert not region.any()
    hu = np.full(GRID.shape_irc, 40, np.int16)
    places = lung_positions(hu, GRID, np.empty((0, 3)), count=5, min_distance_mm=15, rng=np.random.default_rng(0))
    assert places.shape == (0, 3)


def test_positions_are_seeded_in_the_lungs_and_far_from_findings() -> None:
    findings = np.array([[0.0, 150.0, 50.0], [-30.0, 180.0, 60.0]])

    def draw(seed: int) -> np.ndarray:
        return lung_positions(chest(), GRID, findings, count=40, min_distance_mm=15, rng=np.random.default_rng(seed))

    places = draw(3)
    assert len(places) == 40
    np.testing.assert_array_equal(places, draw(3))
    assert (places != draw(4)).any()
    distances = np.linalg.norm(places[:, None] - findings[None], axis=-1)
    assert distances.min() >= 15
    region, _ = lung_region(chest(), GRID)
    assert region[tuple(np.rint(xyz_to_irc(places, GRID)).astype(int).T)].all()


def test_air_of_one_slice_is_not_that_of_the_next() -> None:
    # A hole in the skin of slice 0 lets that slice's lung out, and no other's.
    hu = chest()
    hu[4, 30, 8:14] = -850
    region, _ = lung_region(hu, GRID)
    assert region[15, 25, 25]
    labels, _ = ndimage.label(hu < -400)
    assert labels[15, 25, 25] == labels[15, 2, 2]  # in space all of it hangs together


# The lungs and a margin


def test_the_field_is_what_lies_within_the_margin_of_the_lungs() -> None:
    region, _ = lung_region(chest(), GRID)
    for margin_mm in (0.0, 3.0, 10.0):
        field = lung_field(chest(), GRID, margin_mm)
        away_mm = ndimage.distance_transform_edt(~region, sampling=GRID.spacing_irc)
        np.testing.assert_array_equal(field.near, away_mm <= margin_mm)


def test_the_field_lies_right_on_another_grid_than_the_scans() -> None:
    # Voxels of 1.5 x 0.75 x 0.75 mm: every 2nd slice, 4th row and column are looked at.
    fine = Grid(shape_irc=(32, 320, 321), spacing_xyz=(0.75, 0.75, 1.5), origin_xyz=(-100, 50, 7))
    hu = chest()[4:20].repeat(2, 0).repeat(4, 1).repeat(4, 2)
    hu = np.pad(hu, [(0, 0), (0, 0), (0, 1)], mode="edge")
    field = lung_field(hu, fine, 0.0)
    assert field.step.tolist() == [2, 4, 4]
    voxels = np.indices(hu.shape).reshape(3, -1)
    held = field.holds(tuple(voxels)).reshape(hu.shape)
    away_mm = ndimage.distance_transform_edt(hu != -850, sampling=fine.spacing_irc)
    inside_mm = ndimage.distance_transform_edt(hu == -850, sampling=fine.spacing_irc)
    assert held[inside_mm > 3].all()
    assert not held[(away_mm > 8) & (hu != -1000)].any()  # the vessel between is closed over


@pytest.mark.parametrize("step", [(1, 1, 1), (2, 3, 4), (5, 1, 2)])
def test_a_box_holds_all_of_its_slices_and_no_row_or_column_more(step: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    shape = (13, 31, 29)
    coarse = tuple(-(-size // by) for size, by in zip(shape, step))
    field = LungField(near=rng.random(coarse) < 0.01, step=np.array(step), shape=shape)
    held = field.holds(tuple(np.indices(shape).reshape(3, -1))).reshape(shape)
    assert 0 < held.mean() < 0.1
    for first in range(0, 13, 4):
        end = min(first + 4, 13)
        box = field.box(first, end)
        seen = held[first:end].any(axis=0)
        if box is None:
            assert not seen.any()
            continue
        rows, cols = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        assert (box[0].start, box[0].stop) == (rows[0], rows[-1] + 1)
        assert (box[1].start, box[1].stop) == (cols[0], cols[-1] + 1)


def without_a_lung() -> np.ndarray:
    hu = chest()
    hu[:, :, 44:66] = 40
    return hu


@pytest.mark.parametrize(
    ("hu", "why"),
    [
        (np.full(GRID.shape_irc, 40, np.int16), "0 ml of lung, less than 500"),
        (np.full(GRID.shape_irc, -1000, np.int16), "0 ml of lung"),
        (chest()[14:16], "ml of lung, less than 500"),
        (without_a_lung(), "one lung has 0% of the other's volume"),
        (chest()[:, :, 12:], None),
        (chest()[:, :, 16:], "one lung has 0% of the other's volume"),
        (chest()[:, 25:], "261 ml of lung"),  # what a vessel parts from the rest
        (np.full((1, 1, 1), -800, np.int16), "0 ml of lung"),
    ],
)
def test_lungs_that_cannot_be_all_of_them_are_not_trusted(hu: np.ndarray, why: str | None) -> None:
    grid = Grid(shape_irc=hu.shape, spacing_xyz=GRID.spacing_xyz, origin_xyz=GRID.origin_xyz)
    if why is None:
        assert lung_field(hu, grid, 10.0).near.any()
        return
    with pytest.raises(NoLungsError, match=why) as caught:
        lung_field(hu, grid, 10.0)
    assert len(str(caught.value).splitlines()) == 1


def test_a_lung_that_the_picture_cuts_off_in_a_few_slices_is_noticed() -> None:
    # Both sides keep nearly all of their volume.
    hu = chest()
    hu[4:8, :, :8] = 40  # the body fills the picture there
    assert lung_field(hu, GRID, 10.0).near.any()
    hu[4:8, 30:36, :14] = -850
    with pytest.raises(NoLungsError, match="touch the edge"):
        lung_field(hu, GRID, 10.0)
