"""Where is what the networks learn from kept ready, and how is it read without a copy?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lungml import store
from lungml.crops import CONTEXT_SLICES, CROP_SHAPE, SLAB_SIDE, clip_hu, cut_box, cut_slab
from lungml.geometry import Grid, irc_to_xyz

CROP_FORMAT_VERSION = 1
NON_NODULE, BENIGN, MALIGNANT = 0, 1, 2  # labels of crops


@dataclass(frozen=True, kw_only=True)
class CropSite:
    """One place to cut: a voxel, what is there, and how large it is."""

    center_irc: tuple[float, float, float]
    label: int  # NON_NODULE, BENIGN or MALIGNANT
    diameter_mm: float  # NaN for non-nodules


def write_scan_crops(
    group: Path,
    hu: npt.NDArray[np.int16],
    mask: npt.NDArray[np.uint8],
    grid: Grid,
    sites: Sequence[CropSite],
    *,
    slab_sites: Sequence[int],
    key: dict[str, Any],
) -> None:
    """Cut everything that training needs from one scan, in one pass over it, and write it whole or not at all.

    Writes uncompressed arrays that `store.map_array` maps: `crops` int16 (n, 32, 48, 48) clipped HU, `labels` uint8
    (n,), `diameters_mm` float64 (n,), `centers_xyz` float64 (n, 3), and for the sites listed in `slab_sites`
    `slabs` int16 (m, 7, 96, 96) clipped HU, `slab_masks` uint8 (m, 96, 96) and `slab_labels` uint8 (m,).

    Args:
        group: where the scan's crops go.
        hu: (index, row, col) int16.
        mask: (index, row, col) uint8.
        grid: the scan's sampling grid.
        sites: places to cut.
        slab_sites: positions in `sites` that also get a slab for the U-Net.
        key: what the crops depend on.
    """
    clipped = clip_hu(hu)
    centers = np.array([site.center_irc for site in sites], dtype=np.float64).reshape(-1, 3)
    chosen = [sites[i] for i in slab_sites]
    write_arrays = {
        "crops": _stack([cut_box(clipped, c, CROP_SHAPE) for c in centers], CROP_SHAPE, np.int16),
        "labels": np.array([site.label for site in sites], dtype=np.uint8),
        "diameters_mm": np.array([site.diameter_mm for site in sites], dtype=np.float64),
        "centers_xyz": irc_to_xyz(centers, grid),
        "slabs": _stack(
            [cut_slab(clipped, s.center_irc) for s in chosen],
            (2 * CONTEXT_SLICES + 1, SLAB_SIDE, SLAB_SIDE),
            np.int16,
        ),
        "slab_masks": _stack(
            [cut_slab(mask, s.center_irc, context_slices=0)[0] for s in chosen],
            (SLAB_SIDE, SLAB_SIDE),
            np.uint8,
        ),
        "slab_labels": np.array([s.label for s in chosen], dtype=np.uint8),
    }
    store.write_group(group, write_arrays, key=key)


class CropCache:
    """The crops of many scans, memory-mapped: row i of the whole is row j of one scan's file.

    Args:
        groups: one folder per scan, as `write_scan_crops` left it.
        arrays: which arrays to join, all of equal length within a scan, the first of them being counted.
    """

    def __init__(self, groups: Sequence[Path], arrays: Sequence[str]) -> None:
        self.groups = tuple(groups)
        self._maps = {name: [store.map_array(group, name) for group in groups] for name in arrays}
        lengths = [len(part) for part in self._maps[arrays[0]]]
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def column(self, name: str) -> npt.NDArray[Any]:
        """One array over all scans, copied into memory: for labels and diameters."""
        parts = self._maps[name]
        return np.concatenate(parts) if parts else np.empty(0)

    def rows(self, name: str, wanted: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Copy the wanted rows of one array, in the wanted order: (len(wanted), ...)."""
        scans = np.searchsorted(self._starts, wanted, side="right") - 1
        parts = self._maps[name]
        first = parts[int(scans[0])]
        out = np.empty((len(wanted), *first.shape[1:]), dtype=first.dtype)
        for position, (scan, row) in enumerate(zip(scans.tolist(), (wanted - self._starts[scans]).tolist())):
            out[position] = parts[scan][row]
        return out

    def scan_of(self, wanted: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Which scan (position in `groups`) each wanted row comes from."""
        return np.searchsorted(self._starts, wanted, side="right") - 1


def _stack(boxes: list[npt.NDArray[Any]], shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    return np.stack(boxes).astype(dtype, copy=False) if boxes else np.empty((0, *shape), dtype=dtype)
