"""Which voxel plane lies next to a place, how does radiology hang it, and what is on its sides?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lungml.geometry import Grid

LETTERS = (("L", "R"), ("P", "A"), ("S", "I"))  # where +x, +y, +z lead, and where back
LEAST_SHARE = 0.26  # of a direction to earn its letter: sin(15 degrees)


@dataclass(frozen=True, kw_only=True)
class Plane:
    """One of the three voxel planes through a place; nothing is resampled, so a tilted grid's are tilted.

    Attributes:
        name: axial, coronal or sagittal.
        cut: axis of (index, row, col) across which the plane lies, and `index`, which of its voxels.
        down, across: the axes that run down and across the picture; `to_down`, `to_across`: +1 where they do so with
            growing voxels, -1 where with falling ones.
    """

    name: str
    cut: int
    index: int
    down: int
    across: int
    to_down: int
    to_across: int


def planes_at(center_irc: Sequence[float], grid: Grid) -> tuple[Plane, Plane, Plane]:
    """The axial, coronal and sagittal voxel plane next to a place, as radiology hangs them.

    The patient's right is on the left of the first two, the front on the left of the third; the front is up in the
    first, the head in the others, however the scan's axes run.
    """
    direction = np.asarray(grid.direction)
    index = [min(max(math.floor(c + 0.5), 0), n - 1) for c, n in zip(center_irc, grid.shape_irc)]
    up = [1 if direction[2 - axis, 2 - axis] >= 0 else -1 for axis in range(3)]  # towards head, back and left
    return (
        Plane(name="axial", cut=0, index=index[0], down=1, across=2, to_down=up[1], to_across=up[2]),
        Plane(name="coronal", cut=1, index=index[1], down=0, across=2, to_down=-up[0], to_across=up[2]),
        Plane(name="sagittal", cut=2, index=index[2], down=0, across=1, to_down=-up[0], to_across=up[1]),
    )


def side_letters(plane: Plane, grid: Grid) -> dict[str, str]:
    """What lies towards the left, right, top and bottom of a plane's picture: R, L, A, P, S, I, or two such letters."""
    direction = np.asarray(grid.direction)
    right, bottom = direction[:, 2 - plane.across] * plane.to_across, direction[:, 2 - plane.down] * plane.to_down
    return {"left": letters(-right), "right": letters(right), "top": letters(-bottom), "bottom": letters(bottom)}


def letters(step_xyz: npt.ArrayLike) -> str:
    """Where a direction in patient axes (LPS) leads: its main letter, and a second where it is 15 degrees off."""
    step = np.asarray(step_xyz, dtype=np.float64)
    largest = np.argsort(-np.abs(step), kind="stable")[:2]
    told = [axis for place, axis in enumerate(largest) if place == 0 or abs(step[axis]) >= LEAST_SHARE]
    return "".join(LETTERS[axis][0 if step[axis] >= 0 else 1] for axis in told)


def cut_radius_mm(diameter_mm: float, distance_mm: float) -> float:
    """The radius of the circle in which a plane cuts a sphere; 0 where it passes by."""
    return math.sqrt(max((diameter_mm / 2) ** 2 - distance_mm**2, 0.0))
