"""What do the networks see around one point?"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

HU_MIN, HU_MAX = -1000, 1000  # air .. dense bone
CROP_SHAPE = (32, 48, 48)  # (index, row, col) voxels seen by the classifiers
SLAB_SIDE = 96  # the U-Net's training slab: 7 x 96 x 96, of which a window is cut at random
CONTEXT_SLICES = 3


def clip_hu(hu: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A clipped copy, [-1000, 1000] HU, same dtype; the argument stays as it is."""
    return np.clip(hu, HU_MIN, HU_MAX)


def cut_boxes(volume: npt.NDArray[Any], centers_irc: npt.ArrayLike, shape: tuple[int, int, int]) -> npt.NDArray[Any]:
    """Copy a box around each of many voxels, as `cut_box` does.

    Args:
        volume: (index, row, col).
        centers_irc: (n, 3) voxels.
        shape: of a box.

    Returns:
        (n, *shape), of the volume's dtype.
    """
    centers = np.asarray(centers_irc, dtype=np.float64).reshape(-1, 3)
    boxes = np.empty((len(centers), *shape), dtype=volume.dtype)
    for box, center in zip(boxes, centers):
        box[...] = _view_box(volume, center, shape)
    return boxes


def cut_slabs(volume: npt.NDArray[Any], centers_irc: npt.ArrayLike, context_slices: int, side: int) -> npt.NDArray[Any]:
    """Copy the slices around each of many voxels, as `cut_slab` does: (n, 2 * context_slices + 1, side, side)."""
    centers = np.asarray(centers_irc, dtype=np.float64).reshape(-1, 3)
    slabs = np.empty((len(centers), 2 * context_slices + 1, side, side), dtype=volume.dtype)
    for slab, center in zip(slabs, centers):
        slab[...] = cut_slab(volume, center, context_slices, side)
    return slabs


def cut_box(volume: npt.NDArray[Any], center_irc: npt.ArrayLike, shape: tuple[int, int, int]) -> npt.NDArray[Any]:
    """Copy a box around a voxel, shifted inward at the borders; a scan thinner than the box is repeated at its edges.

    The centre voxel sits at `shape // 2` unless the box was shifted. Values are not clipped.

    Args:
        volume: (index, row, col).
        center_irc: (3,) voxels; fractions are rounded half up, so that even and odd centres behave alike.
        shape: of the box.

    Returns:
        a new array of exactly `shape`.
    """
    return np.array(_view_box(volume, center_irc, shape))


def _view_box(volume: npt.NDArray[Any], center_irc: npt.ArrayLike, shape: tuple[int, int, int]) -> npt.NDArray[Any]:
    """The box of `cut_box`, a view of the volume where nothing has to be repeated."""
    # np.rint rounds halves to even: 2.5 and 3.5 would then be 2 voxels apart.
    center = np.floor(np.asarray(center_irc, dtype=np.float64) + 0.5).astype(int)
    parts, missing = [], []
    for middle, wanted, there in zip(center.tolist(), shape, volume.shape):
        size = min(wanted, there)
        start = min(max(middle - wanted // 2, 0), there - size)
        parts.append(slice(start, start + size))
        missing.append(((wanted - size) // 2, wanted - size - (wanted - size) // 2))
    box = volume[tuple(parts)]
    if any(sum(pair) for pair in missing):
        return np.pad(box, missing, mode="edge")
    return box


def cut_slab(
    volume: npt.NDArray[Any],
    center_irc: npt.ArrayLike,
    context_slices: int = CONTEXT_SLICES,
    side: int = SLAB_SIDE,
) -> npt.NDArray[Any]:
    """Copy the slices around a voxel, edge slices repeated; in plane the window is shifted inward at the borders.

    Returns:
        (2 * context_slices + 1, side, side), the centre's own slice in the middle, whatever its index.
    """
    middle = int(np.clip(np.floor(np.asarray(center_irc)[0] + 0.5), 0, volume.shape[0] - 1))
    slices = np.clip(np.arange(middle - context_slices, middle + context_slices + 1), 0, volume.shape[0] - 1)
    block = volume[slices[0] : slices[-1] + 1]
    in_plane = cut_box(block, (block.shape[0] // 2, *np.asarray(center_irc)[1:]), (block.shape[0], side, side))
    return in_plane[slices - slices[0]]
