"""Where is what the networks learn from kept ready, and how is it read without a copy?"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lungml.crops import CONTEXT_SLICES, CROP_SHAPE, HU_MAX, HU_MIN, SLAB_SIDE, cut_boxes, cut_slabs, place_in_boxes
from lungml.geometry import Grid, irc_to_xyz, xyz_to_irc
from lungml.groups import StoreError, key_digest, map_array, read_attributes, write_group

CROP_FORMAT_VERSION = 3
NON_NODULE, BENIGN, MALIGNANT = 0, 1, 2  # labels of crops
# Of crops at places that a reader corrected: a nodule whose malignancy nobody knows, and what is none though it was
# taken for one. Only training scans have any.
UNJUDGED, REJECTED = 3, 4
IGNORED = 255  # of a slab's mask, -1 as int8: readers disagree whether it is nodule, and nobody learns from it
NODULES, NON_NODULES = (BENIGN, MALIGNANT, UNJUDGED), (NON_NODULE, REJECTED)
PIECE_BYTES = 2**26  # of an array on its way to a device


@dataclass(frozen=True, kw_only=True)
class CropSite:
    """One place to cut: a voxel, what is there, and how large it is."""

    center_irc: tuple[float, float, float]
    label: int  # NON_NODULE, BENIGN, MALIGNANT, UNJUDGED or REJECTED
    diameter_mm: float  # NaN for non-nodules
    ratings: tuple[int, ...] = ()  # the radiologists' malignancy ratings, 1..5


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

    Writes uncompressed arrays that `groups.map_array` maps: `crops` int16 (n, 32, 48, 48) clipped HU, `labels` uint8
    (n,), `diameters_mm` float64 (n,), `centers_xyz` float64 (n, 3), `places_irc` float64 (n, 3): where in
    its crop the site lies, voxels, `spacings_mm` float64 (n, 3): the scan's, (index, row, col), `rating_counts` uint8
    (n, 5): how many radiologists rated the malignancy 1..5, for soft labels; and for the sites listed in `slab_sites`
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
    centers = np.array([site.center_irc for site in sites], dtype=np.float64).reshape(-1, 3)
    slabbed = np.array(slab_sites, dtype=np.int64)
    labels = np.array([site.label for site in sites], dtype=np.uint8)
    crops = cut_boxes(hu, centers, CROP_SHAPE)
    slabs = cut_slabs(hu, centers[slabbed], CONTEXT_SLICES, SLAB_SIDE)
    for cut in (crops, slabs):  # they are copies; clipping the scan instead would take its size in memory again
        np.clip(cut, HU_MIN, HU_MAX, out=cut)
    arrays = {
        "crops": crops,
        "labels": labels,
        "diameters_mm": np.array([site.diameter_mm for site in sites], dtype=np.float64),
        "centers_xyz": irc_to_xyz(centers, grid),
        "places_irc": place_in_boxes(hu.shape, centers, CROP_SHAPE),
        "spacings_mm": np.tile(grid.spacing_irc, (len(sites), 1)),
        "rating_counts": _rating_counts(sites),
        "slabs": slabs,
        "slab_masks": cut_slabs(mask, centers[slabbed], 0, SLAB_SIDE)[:, 0],
        "slab_labels": labels[slabbed],
    }
    write_group(group, arrays, key=key)


def ignoring(
    mask: npt.NDArray[np.uint8], places: Iterable[tuple[tuple[float, float, float], float]], grid: Grid
) -> npt.NDArray[np.uint8]:
    """A scan's mask with balls of `IGNORED` where nobody learns; nodules that reach into them stay.

    Args:
        mask: (index, row, col), 0 or 1.
        places: centre in LPS mm and diameter in mm of each ball.
        grid: of the scan.
    """
    mask = mask.copy()
    for center_xyz, diameter_mm in places:
        center, reach = xyz_to_irc(center_xyz, grid), diameter_mm / 2
        around = [
            slice(max(math.floor(c - reach / mm), 0), max(math.ceil(c + reach / mm) + 1, 0))
            for c, mm in zip(center, grid.spacing_irc)
        ]
        part = mask[tuple(around)]
        axes = np.ogrid[tuple(slice(s.start, s.start + n) for s, n in zip(around, part.shape))]
        squared = sum(((axis - c) * mm) ** 2 for axis, c, mm in zip(axes, center, grid.spacing_irc))
        part[(squared <= reach**2) & (part == 0)] = IGNORED
    return mask


def _rating_counts(sites: Sequence[CropSite]) -> npt.NDArray[np.uint8]:
    counts = np.zeros((len(sites), 5), dtype=np.uint8)
    for row, site in enumerate(sites):
        np.add.at(counts[row], np.array(site.ratings, dtype=np.int64) - 1, 1)
    return counts


class CropCache:
    """The crops of many scans, memory-mapped: row i of the whole is row j of one scan's file.

    A read is one copy, straight from the page cache, on one thread: two are not faster, memory is the limit. What was
    not read before is asked for ahead of the copy, all of a batch at once.

    Args:
        groups: one folder per scan, as `write_scan_crops` left it.
        arrays: which arrays to join, all of equal length within a scan, the first of them being counted.
        digests: one `key_digest` per group: what its crops must have been cut from.

    Raises:
        StoreError: when a group is missing or damaged, or was cut from something else than its digest says.
    """

    def __init__(self, groups: Sequence[Path], arrays: Sequence[str], *, digests: Sequence[str] | None = None) -> None:
        self.groups = tuple(groups)
        self._maps = {name: [map_array(group, name) for group in groups] for name in arrays}
        # One row, one run of values: joining such runs is a single call, and a plain copy of each.
        self._flat = {
            name: [part.reshape(len(part), math.prod(part.shape[1:])) for part in parts]
            for name, parts in self._maps.items()
        }
        # After mapping: what is mapped stays as it is, whatever another run puts in its place.
        for group, digest in zip(groups, digests, strict=True) if digests is not None else ():
            if key_digest(read_attributes(group)["key"]) != digest:
                raise StoreError(f"{group}: changed by another run since this one prepared it; run again")
        lengths = [len(part) for part in self._maps[arrays[0]]]
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        # What this cache has read lies in memory, unless there is more of it than memory.
        everything = sum(part.nbytes for parts in self._maps.values() for part in parts)
        self._fits = everything < _memory_bytes() / 2
        self._read = {name: np.zeros(len(self), dtype=np.bool_) for name in arrays}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def column(self, name: str) -> npt.NDArray[Any]:
        """One array over all scans, copied into memory: for labels and diameters."""
        parts = self._maps[name]
        return np.concatenate(parts) if parts else np.empty(0)

    def scan_of(self, wanted: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Which scan (position in `groups`) each wanted row comes from."""
        return np.searchsorted(self._starts, wanted, side="right") - 1

    def nbytes(self, name: str) -> int:
        """The size of one array over all scans."""
        return sum(part.nbytes for part in self._maps[name])

    def rows(self, name: str, wanted: npt.NDArray[np.int64], out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Copy the wanted rows of one array, in the wanted order.

        Args:
            name: of the array.
            wanted: (n,) int64 row numbers.
            out: (n, ...) of the array's dtype, C-contiguous, to be written and returned; a new array when None.
        """
        scans, flat = self.scan_of(wanted), self._flat[name]
        found = [flat[scan][row] for scan, row in zip(scans.tolist(), (wanted - self._starts[scans]).tolist())]
        if out is None:
            first = self._maps[name][0]
            out = np.empty((len(wanted), *first.shape[1:]), dtype=first.dtype)
        elif not out.flags.c_contiguous:
            raise ValueError("rows are written to C-contiguous arrays only")
        unread = ~self._read[name][wanted]
        if unread.any():
            for position in np.flatnonzero(unread).tolist():
                _will_need(found[position])
            self._read[name][wanted] = self._fits
        if found:
            np.concatenate(found, out=out.reshape(-1))
        return out

    def batch(self, name: str, wanted: npt.NDArray[np.int64], *, pinned: bool = False) -> torch.Tensor:
        """The wanted rows as a new tensor on the CPU.

        Args:
            name: of the array.
            wanted: (n,) int64 row numbers.
            pinned: in page-locked memory, which PyTorch keeps for the next batch once this one was copied to the GPU.
        """
        if not pinned:
            return torch.from_numpy(self.rows(name, wanted))
        shape, kind = self._row(name)
        tensor = torch.empty((len(wanted), *shape), dtype=kind, pin_memory=True)
        self.rows(name, wanted, out=tensor.numpy())
        return tensor

    def resident(self, name: str, device: torch.device, budget_bytes: int) -> torch.Tensor | None:
        """One array over all scans on a device, in its own dtype; None when it takes more than the budget.

        It is copied in pieces of `PIECE_BYTES`, page-locked on the way to a GPU.
        """
        if not len(self) or self.nbytes(name) > budget_bytes:
            return None
        shape, kind = self._row(name)
        whole = torch.empty((len(self), *shape), dtype=kind, device=device)
        piece = max(1, PIECE_BYTES * len(self) // self.nbytes(name))
        for start in range(0, len(self), piece):
            wanted = np.arange(start, min(start + piece, len(self)))
            whole[start : start + piece] = self.batch(name, wanted, pinned=device.type == "cuda")
        return whole

    def _row(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and PyTorch's dtype of one row."""
        first = self._maps[name][0]
        return first.shape[1:], torch.from_numpy(np.empty(0, first.dtype)).dtype


def _will_need(row: npt.NDArray[Any]) -> None:
    """Ask the kernel to read one mapped row into the page cache, now and no more than it.

    Left alone, it reads on demand and far ahead: on a disk set to read 8 MB ahead, nine times slower for single crops.
    """
    address = row.__array_interface__["data"][0]
    start = address - address % mmap.PAGESIZE
    _madvise()(start, address + row.nbytes - start, mmap.MADV_WILLNEED)  # a hint: that it failed does not matter


@cache
def _madvise() -> Any:
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
