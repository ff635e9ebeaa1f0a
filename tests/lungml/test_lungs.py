import numpy as np

from lungml.geometry import Grid, xyz_to_irc
from lungml.lungs import lung_positions, lung_region

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
