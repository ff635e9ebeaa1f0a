import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from lungml.geometry import Grid, GridError, irc_to_xyz, xyz_to_irc


def tilted_grid(angle_deg: float = 12.0) -> Grid:
    direction = Rotation.from_euler("xz", [angle_deg, 5.0], degrees=True).as_matrix() @ np.diag([-1, -1, 1])
    return Grid(
        shape_irc=(40, 64, 48),
        spacing_xyz=(0.7, 0.8, 2.5),
        origin_xyz=(-100.0, 30.5, -340.045),
        direction=tuple(tuple(row) for row in direction.tolist()),
    )


def test_a_hand_computed_point() -> None:
    grid = Grid(shape_irc=(4, 4, 4), spacing_xyz=(0.5, 1.0, 2.0), origin_xyz=(10, 20, 30))
    assert irc_to_xyz([3, 2, 1], grid).tolist() == [10.5, 22.0, 36.0]
    assert xyz_to_irc([10.5, 22.0, 36.0], grid).tolist() == [3.0, 2.0, 1.0]


def test_the_inverse_direction_multiplies_from_the_left() -> None:
    # Multiplying from the right is the same for identity and flips, and wrong for any tilt.
    grid = tilted_grid()
    point_cri = np.array([5.0, 7.0, 3.0])
    xyz = np.asarray(grid.direction) @ (point_cri * grid.spacing_xyz) + grid.origin_xyz
    np.testing.assert_allclose(irc_to_xyz(point_cri[::-1], grid), xyz)
    np.testing.assert_allclose(xyz_to_irc(xyz, grid), point_cri[::-1], atol=1e-9)
    wrong = (xyz - grid.origin_xyz) @ np.linalg.inv(np.asarray(grid.direction)) / grid.spacing_xyz
    assert np.abs(wrong - point_cri).max() > 0.5


@given(
    angle=st.floats(-30, 30),
    point=st.tuples(st.floats(-50, 400), st.floats(-50, 600), st.floats(-50, 600)),
)
def test_round_trip(angle: float, point: tuple[float, float, float]) -> None:
    grid = tilted_grid(angle)
    np.testing.assert_allclose(xyz_to_irc(irc_to_xyz(point, grid), grid), point, atol=1e-8)


def test_many_points_keep_their_leading_axes() -> None:
    points = np.zeros((2, 5, 3))
    assert xyz_to_irc(points, tilted_grid()).shape == (2, 5, 3)


def test_json_round_trip_is_exact() -> None:
    grid = tilted_grid()
    assert Grid.from_json(grid.to_json()) == grid


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"direction": ((1, 0.1, 0), (0, 1, 0), (0, 0, 1))}, "orthonormal"),
        ({"direction": ((0, 0, 0), (0, 1, 0), (0, 0, 1))}, "orthonormal"),
        ({"spacing_xyz": (0.7, 0.7, 0.0)}, "positive"),
        ({"spacing_xyz": (0.7, 0.7, float("nan"))}, "finite"),
        ({"origin_xyz": (0.0, float("inf"), 0.0)}, "finite"),
        ({"shape_irc": (0, 5, 5)}, "shape"),
    ],
)
def test_impossible_grids_are_refused(change: dict, message: str) -> None:
    fields = {"shape_irc": (4, 5, 6), "spacing_xyz": (1, 1, 1), "origin_xyz": (0, 0, 0)} | change
    with pytest.raises(GridError, match=message):
        Grid(**fields)
