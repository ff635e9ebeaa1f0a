"""What do the networks see around one point?"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

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


def resample_mm(
    crops: torch.Tensor,
    places_irc: torch.Tensor,
    spacings_irc_mm: torch.Tensor,
    shape: tuple[int, int, int],
    out_spacing_irc_mm: tuple[float, float, float],
) -> torch.Tensor:
    """Resample each crop trilinearly to a grid in mm around a place in it; what lies outside repeats the border.

    The place is in the middle whatever the crop's borders, and a mirror image has it there, too: a network that
    measures sizes can rely on it.

    Args:
        crops: (B, 1, D, H, W) float.
        places_irc: (B, 3) fractional voxels of the crop: what comes to lie in the middle, (shape - 1) / 2.
        spacings_irc_mm: (B, 3) of the crops.
        shape: of the result.
        out_spacing_irc_mm: of the result.

    Returns:
        (B, 1, *shape), a new tensor of the same dtype; the work is done on its device, under autocast too.
    """
    with torch.autocast(crops.device.type, enabled=False):
        boxes = crops[:, 0]
        # Trilinear weights are products of one weight an axis. The axis in front is replaced and goes to the back.
        for axis, (size, step_mm) in enumerate(zip(shape, out_spacing_irc_mm)):
            there = crops.shape[2 + axis]
            steps = torch.arange(size, device=crops.device) - (size - 1) / 2
            steps = steps * (step_mm / spacings_irc_mm[:, axis, None])
            source = (places_irc[:, axis, None] + steps).clamp(0, there - 1)  # (B, size) float64
            away = (source[:, :, None] - torch.arange(there, device=crops.device)).abs()
            weights = (1 - away).clamp(min=0).to(crops.dtype)  # (B, size, there)
            boxes = (weights @ boxes.flatten(2)).unflatten(2, boxes.shape[2:]).movedim(1, -1)
        return boxes[:, None].contiguous()


def place_in_boxes(
    volume_shape: tuple[int, ...], centers_irc: npt.ArrayLike, shape: tuple[int, int, int]
) -> npt.NDArray[np.float64]:
    """Where in the boxes of `cut_boxes` do their centres lie?

    Returns:
        (n, 3) fractional voxels of the box; `shape // 2` or less than a voxel off, unless the box was shifted.
    """
    centers = np.asarray(centers_irc, dtype=np.float64).reshape(-1, 3)
    starts = [[start - before for start, _, before, _ in _spans(volume_shape, c, shape)] for c in centers]
    return centers - np.array(starts, dtype=np.float64).reshape(-1, 3)


def _spans(
    volume_shape: tuple[int, ...], center_irc: npt.ArrayLike, shape: tuple[int, int, int]
) -> list[tuple[int, int, int, int]]:
    """Of each axis of a box: first voxel, past the last, and how many are repeated before and after them."""
    # np.rint rounds halves to even: 2.5 and 3.5 would then be 2 voxels apart.
    center = np.floor(np.asarray(center_irc, dtype=np.float64) + 0.5).astype(int)
    spans = []
    for middle, wanted, there in zip(center.tolist(), shape, volume_shape):
        size = min(wanted, there)
        start = min(max(middle - wanted // 2, 0), there - size)
        spans.append((start, start + size, (wanted - size) // 2, wanted - size - (wanted - size) // 2))
    return spans


def index_boxes(
    volume_shape: tuple[int, ...], centers_irc: npt.ArrayLike, shape: tuple[int, int, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which slices, rows and columns of a volume do the boxes of `cut_boxes` hold?

    Returns:
        (n, D, 1, 1), (n, 1, H, 1) and (n, 1, 1, W): `volume[index_boxes(...)]` are the boxes.
    """
    centers = np.floor(np.asarray(centers_irc, dtype=np.float64).reshape(-1, 3) + 0.5).astype(np.int64)
    voxels = []
    for middle, wanted, there in zip(centers.T, shape, volume_shape):
        size = min(wanted, there)
        start = np.clip(middle - wanted // 2, 0, there - size)[:, None]
        voxels.append(np.clip(start - (wanted - size) // 2 + np.arange(wanted), start, start + size - 1))
    index, row, col = voxels
    return index[:, :, None, None], row[:, None, :, None], col[:, None, None, :]


def _view_box(volume: npt.NDArray[Any], center_irc: npt.ArrayLike, shape: tuple[int, int, int]) -> npt.NDArray[Any]:
    """The box of `cut_box`, a view of the volume where nothing has to be repeated."""
    spans = _spans(volume.shape, center_irc, shape)
    missing = [(before, after) for _, _, before, after in spans]
    box = volume[tuple(slice(start, end) for start, end, _, _ in spans)]
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
