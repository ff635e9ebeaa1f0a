"""Where does a scan live, and what is stored with it?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lungml.ct import READING_VERSION
from lungml.geometry import Grid
from lungml.groups import Box, Sparse, read_array, read_attributes, write_group
from lungml.remote import Location

# Raised whenever the bytes or attributes of a scan's store or its masks change: older ones are rebuilt, never read.
SCAN_FORMAT_VERSION = 3
CHUNK_IRC = (8, 512, 512)  # 4 MiB of whole slices: enough chunks for a few cores, few files to sync


def write_scan(
    path: Location,
    hu: npt.NDArray[np.int16],
    grid: Grid,
    *,
    key: Mapping[str, Any],
    source: Callable[[], Mapping[str, Any]] | None = None,
) -> None:
    """Write one scan's HU volume and grid, with OME-Zarr 0.5 metadata so that standard viewers open it.

    Args:
        path: `<series_uid>.zarr`.
        hu: (index, row, col) int16.
        grid: where the voxels lie.
        key: what the store depends on, see `scan_key`.
        source: tells of what files it was made, and is asked last: see `lungml.verify.source_described`.
    """
    spacing = grid.spacing_irc.tolist()
    multiscale = {
        "name": path.stem,
        "axes": [{"name": axis, "type": "space", "unit": "millimeter"} for axis in "zyx"],
        # OME-Zarr 0.5 knows scale and translation only: the direction stays in `grid`.
        "datasets": [
            {"path": "volume", "coordinateTransformations": [{"type": "scale", "scale": spacing}]},
        ],
    }
    write_group(
        path,
        {"volume": hu},
        key=key,
        attributes=lambda: {
            "grid": grid.to_json(),
            "source": dict(source()) if source else {},
            "ome": {"version": "0.5", "multiscales": [multiscale]},
        },
        chunks={"volume": CHUNK_IRC},
    )


def scan_key(fingerprint: str) -> dict[str, Any]:
    """What a scan's store depends on: the source files, how they are read, and this format."""
    return {"source": fingerprint, "format_version": SCAN_FORMAT_VERSION, "reading_version": READING_VERSION}


def read_grid(path: Location) -> Grid:
    """The sampling grid of a stored scan."""
    return Grid.from_json(read_attributes(path)["grid"])


def read_volume(path: Location, *, key: Mapping[str, Any] | None = None) -> npt.NDArray[np.int16]:
    """The whole HU volume of a stored scan, (index, row, col) int16, not clipped.

    Args:
        path: `<series_uid>.zarr`.
        key: what it must have been converted under, see `scan_key`; any when None.

    Raises:
        StoreError: when there is none or another, or a chunk is damaged.
    """
    return read_array(path, "volume", key=key)


def write_mask(
    path: Location,
    name: str,
    shape: tuple[int, int, int],
    boxes: Sequence[tuple[Box, npt.NDArray[np.bool_]]],
    *,
    key: Mapping[str, Any],
) -> None:
    """Add a mask to a stored scan, as a group of its own inside it: whole or not at all.

    Args:
        path: `<series_uid>.zarr`, written before.
        name: `mask` or another mask's name.
        shape: of the scan, (index, row, col).
        boxes: where the nodules are and which voxels there belong to one; only the chunks they touch are written.
        key: what the mask depends on.
    """
    read_attributes(path)
    arrays = {"volume": Sparse(shape=shape, boxes=boxes)}
    write_group(path / name, arrays, key=key, chunks={"volume": CHUNK_IRC}, within=True)


def read_mask(path: Location, name: str, *, key: Mapping[str, Any] | None = None) -> npt.NDArray[np.uint8]:
    """A stored mask, (index, row, col) uint8, 1 inside a nodule.

    Args:
        path: `<series_uid>.zarr`.
        name: of the mask.
        key: what it must have been drawn under; any when None.

    Raises:
        StoreError: when there is none or another, or a chunk is damaged.
    """
    return read_array(path / name, "volume", key=key)
