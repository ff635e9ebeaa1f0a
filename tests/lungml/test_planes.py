"""The planes of a grid whose axes run in any direction, their sides by name, and what they cut of a sphere."""

from __future__ import annotations

import math

import pytest

from lungml.geometry import Grid
from lungml.planes import cut_radius_mm, letters, planes_at, side_letters

COS, SIN = math.cos(math.radians(20)), math.sin(math.radians(20))
DIRECTIONS = {
    "straight": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "flipped": ((-1, 0, 0), (0, -1, 0), (0, 0, 1)),
    "feet last": ((1, 0, 0), (0, 1, 0), (0, 0, -1)),
    "tilted": ((1, 0, 0), (0, COS, -SIN), (0, SIN, COS)),  # x forward: the top of the gantry leans
}
SHAPE = (12, 20, 30)


def grid(name: str = "straight") -> Grid:
    return Grid(shape_irc=SHAPE, spacing_xyz=(1.0, 1.5, 2.5), origin_xyz=(-7, 11, 30), direction=DIRECTIONS[name])


@pytest.mark.parametrize("name", ["straight", "flipped", "feet last"])
def test_letters_name_the_sides(name: str) -> None:
    axial, coronal, sagittal = (side_letters(plane, grid(name)) for plane in planes_at((6, 10, 15), grid(name)))
    assert axial == {"left": "R", "right": "L", "top": "A", "bottom": "P"}
    assert coronal == {"left": "R", "right": "L", "top": "S", "bottom": "I"}
    assert sagittal == {"left": "A", "right": "P", "top": "S", "bottom": "I"}


def test_a_tilted_side_has_two_letters() -> None:
    axial, coronal, sagittal = (side_letters(plane, grid("tilted")) for plane in planes_at((6, 10, 15), grid("tilted")))
    assert axial == {"left": "R", "right": "L", "top": "AI", "bottom": "PS"}
    assert coronal == {"left": "R", "right": "L", "top": "SA", "bottom": "IP"}
    assert sagittal == {"left": "AI", "right": "PS", "top": "SA", "bottom": "IP"}
    assert letters((0, math.sin(math.radians(14)), 1)) == "S"
    assert letters((0, math.sin(math.radians(16)), 1)) == "SP"
    assert letters((-1, 0, 0)) == "R"


def test_a_plane_cuts_a_sphere_in_a_circle() -> None:
    assert cut_radius_mm(10, 0) == 5
    assert cut_radius_mm(10, 3) == 4
    assert cut_radius_mm(10, -4) == 3
    assert cut_radius_mm(10, 5) == cut_radius_mm(10, 7) == 0
