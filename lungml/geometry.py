"""Where is this voxel in the patient, and which voxel holds this point?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lungml.errors import LunaError

# A rotation read from a text header keeps about six digits; real LUNA16 headers are exact to 1e-6.
ORTHONORMAL_TOLERANCE = 1e-3


class GridError(LunaError):
    """The sampling grid is not one that a CT scanner makes."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The sampling grid of one scan.

    Attributes:
        shape_irc: voxels along (index, row, col).
        spacing_xyz: mm between voxel centres along (col, row, index), all positive.
        origin_xyz: mm, LPS, centre of voxel (0, 0, 0).
        direction: 3 x 3; its columns are the unit steps of (col, row, index) in patient axes.

    Raises:
        GridError: when a value is not finite, a spacing not positive, or the direction not orthonormal.
    """

    shape_irc: tuple[int, int, int]
    spacing_xyz: tuple[float, float, float]
    origin_xyz: tuple[float, float, float]
    direction: tuple[tuple[float, float, float], ...] = ((1, 0, 0), (0, 1, 0), (0, 0, 1))

    def __post_init__(self) -> None:
        matrix = np.asarray(self.direction, dtype=np.float64)
        if matrix.shape != (3, 3):
            raise GridError(f"direction has shape {matrix.shape}, not 3 x 3")
        if len(self.shape_irc) != 3 or min(self.shape_irc) < 1:
            raise GridError(f"shape {self.shape_irc} is not three positive sizes")
        if not (np.isfinite(self.spacing_xyz).all() and np.isfinite(self.origin_xyz).all()):
            raise GridError(f"spacing {self.spacing_xyz} or origin {self.origin_xyz} is not finite")
        if min(self.spacing_xyz) <= 0:
            raise GridError(f"spacing {self.spacing_xyz} is not positive")
        if not np.isfinite(matrix).all() or np.abs(matrix @ matrix.T - np.eye(3)).max() > ORTHONORMAL_TOLERANCE:
            raise GridError(f"direction {matrix.ravel().tolist()} is not orthonormal (sheared or singular)")

    @property
    def spacing_irc(self) -> npt.NDArray[np.float64]:
        """(3,) mm along (index, row, col)."""
        return np.asarray(self.spacing_xyz[::-1], dtype=np.float64)

    def to_json(self) -> dict[str, list]:
        """Plain lists, exact: floats keep their value through JSON."""
        return {
            "shape_irc": list(self.shape_irc),
            "spacing_xyz": list(self.spacing_xyz),
            "origin_xyz": list(self.origin_xyz),
            "direction": [list(row) for row in self.direction],
        }

    @classmethod
    def from_json(cls, fields: dict[str, list]) -> Grid:
        """The inverse of `to_json`."""
        index, row, col = (int(n) for n in fields["shape_irc"])
        return cls(
            shape_irc=(index, row, col),
            spacing_xyz=as_triple(fields["spacing_xyz"]),
            origin_xyz=as_triple(fields["origin_xyz"]),
            direction=tuple(as_triple(r) for r in fields["direction"]),
        )


def as_triple(values: npt.ArrayLike) -> tuple[float, float, float]:
    """Three numbers as a tuple of Python floats."""
    x, y, z = (float(v) for v in np.asarray(values, dtype=np.float64).reshape(3))
    return (x, y, z)


def xyz_to_irc(points_xyz: npt.ArrayLike, grid: Grid) -> npt.NDArray[np.float64]:
    """Map patient coordinates to fractional voxel indices.

    The result is neither rounded nor clipped: the caller decides whether to snap
    to a voxel, and a point outside the scan keeps its out-of-range index.

    Args:
        points_xyz: (..., 3) float, mm, LPS.
        grid: the scan's sampling grid.

    Returns:
        (..., 3) float64, voxels; whole numbers fall on voxel centres.
    """
    offsets_mm = np.asarray(points_xyz, dtype=np.float64) - grid.origin_xyz
    # Rows are points, so R^-1 v per row is v @ R^-T, and R^-T = R: R is orthonormal.
    steps_cri = offsets_mm @ np.asarray(grid.direction) / grid.spacing_xyz
    return steps_cri[..., ::-1]


def irc_to_xyz(points_irc: npt.ArrayLike, grid: Grid) -> npt.NDArray[np.float64]:
    """Map (fractional) voxel indices to patient coordinates: xyz = R @ (cri * spacing) + origin.

    Args:
        points_irc: (..., 3) float or int, voxels.
        grid: the scan's sampling grid.

    Returns:
        (..., 3) float64, mm, LPS.
    """
    steps_cri = np.asarray(points_irc, dtype=np.float64)[..., ::-1]
    return (steps_cri * grid.spacing_xyz) @ np.asarray(grid.direction).T + grid.origin_xyz
