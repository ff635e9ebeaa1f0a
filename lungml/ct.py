"""What does this scan file hold, in HU and in millimetres, and can it be trusted?

A scan read slightly wrong costs more than a scan set aside: whatever is not exactly a CT is refused with
one line that says what to do. Values stay as stored: nothing is clipped, padding (-2048, -3024) is kept.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lungml.geometry import Grid
from lungml.metaimage import MAX_HEADER_BYTES, MhdHeader, open_plain, read_header, read_voxels
from lungml.scan_errors import (
    ByteCountError,
    DuplicateScanError,
    ElementTypeError,
    FormatError,
    HeaderError,
    ImplausibleScanError,
    MissingDataError,
    ScanError,
    ScanGeometryError,
    UnsafePathError,
)

__all__ = [
    "ByteCountError",
    "DuplicateScanError",
    "ElementTypeError",
    "FormatError",
    "HeaderError",
    "ImplausibleScanError",
    "MhdHeader",
    "MissingDataError",
    "Scan",
    "ScanError",
    "ScanGeometryError",
    "UnsafePathError",
    "find_scans",
    "read_header",
    "read_scan",
    "scan_fingerprint",
]

AIR_BELOW_HU = -500  # every chest CT goes below: lung is about -850
TISSUE_ABOVE_HU = -200  # and above: fat is about -100, water 0
PLAUSIBLE_HU = (-4096, 8192)  # padding goes to -3024, metal in LUNA16 to +5892
MAX_IMPLAUSIBLE = 0.05  # of the voxels; int16 in the wrong byte order is nearly uniform: about 0.8
# LUNA16's lung masks carry the scans' own names; they may lie in the same folder and are no scans.
MASK_FOLDER_PREFIX = "seg-lungs"


@dataclass(frozen=True, eq=False)
class Scan:
    """One CT as stored.

    Attributes:
        series_uid: the file's name without its suffix.
        hu: (index, row, col) int16, HU, neither clipped nor resampled.
        grid: where the voxels lie in the patient.
    """

    series_uid: str
    hu: npt.NDArray[np.int16]
    grid: Grid
    warnings: tuple[str, ...] = ()


def read_scan(path: Path) -> Scan:
    """Read one scan with every check.

    Args:
        path: `.mhd` or `.mha`.

    Returns:
        the scan in int16 HU as stored; wider types are converted only where that loses nothing.

    Raises:
        ScanError: one of its kinds, whenever the scan is not exactly what a CT has to be.
    """
    header = read_header(path)
    stored = read_voxels(header)
    hu = _as_int16(stored, path).reshape(header.grid.shape_irc)
    _check_plausible(hu, path)
    return Scan(series_uid=path.stem, hu=hu, grid=header.grid)


def find_scans(luna_dir: Path) -> dict[str, Path]:
    """Find every `**/<series_uid>.mhd` under a folder.

    Folders that are links are followed, each real folder once. Hidden names are skipped, and so are folders
    called `seg-lungs...`: LUNA16's lung masks have the scans' own names.

    Returns:
        series_uid -> path, sorted by series_uid; empty when there is none.

    Raises:
        DuplicateScanError: two files have one series_uid.
        MissingDataError: `luna_dir` is not a folder.
    """
    if not luna_dir.is_dir():
        raise MissingDataError(luna_dir, "no such folder", "name the folder that holds the scans (.mhd)")
    found: dict[str, Path] = {}
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(luna_dir, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(
            s for s in subfolders if not s.startswith(".") and not s.lower().startswith(MASK_FOLDER_PREFIX)
        )
        for name in sorted(names):
            if not name.endswith(".mhd") or name.startswith("."):
                continue
            path = Path(folder) / name
            if path.stem in found:
                raise DuplicateScanError(
                    found[path.stem], f"{path} has the same series_uid", "keep one of the two files"
                )
            found[path.stem] = path
    return dict(sorted(found.items()))


def scan_fingerprint(path: Path) -> str:
    """What a scan's derived files depend on, cheap enough to ask for 888 scans at every start.

    sha256 over the header's bytes and the data file's name, size and mtime (ns). The voxels are not read: a
    data file changed in place with its old size and time goes unseen here, a full checksum would see it.

    Raises:
        ScanError: the header cannot be parsed or the data file is missing.
    """
    header = read_header(path)
    with open_plain(path, path) as handle:
        # In a .mha the header ends where the voxels start; beyond that, size and mtime speak.
        head = handle.read(header.data_offset or MAX_HEADER_BYTES)
    with open_plain(header.data_file, path) as handle:
        stat = os.fstat(handle.fileno())
    about = f"{header.data_file.name}\0{stat.st_size}\0{stat.st_mtime_ns}".encode("utf-8", "surrogateescape")
    return hashlib.sha256(hashlib.sha256(head).digest() + about).hexdigest()


def source_files(path: Path) -> tuple[Path, ...]:
    """The files whose bytes make the scan, sorted."""
    return tuple(sorted({path, read_header(path).data_file}))


def _as_int16(stored: npt.NDArray[Any], path: Path) -> npt.NDArray[np.int16]:
    """The same values as native int16; wider types only when nothing is lost."""
    if stored.dtype.itemsize == 2:
        return stored.astype(np.int16, copy=False)
    with np.errstate(invalid="ignore"):  # NaN and too large values are what the comparison below finds
        hu = stored.astype(np.int16)
    if not np.array_equal(hu, stored):
        raise ElementTypeError(
            path, f"{stored.dtype.name} values that are not whole HU in -32768..32767", "store it as int16"
        )
    return hu


def _check_plausible(hu: npt.NDArray[np.int16], path: Path) -> None:
    """Refuse values that no chest CT has. Padding and metal pass; whether there are lungs is not asked."""
    low, high = int(hu.min()), int(hu.max())
    if low == high:
        raise ImplausibleScanError(path, f"every voxel is {low} HU: an empty scan", "export the scan again")
    if low >= AIR_BELOW_HU:
        raise ImplausibleScanError(
            path,
            f"no air: the lowest value is {low} HU, every chest CT goes below {AIR_BELOW_HU}",
            "check that the values are HU (a missing rescale intercept of -1024?)",
        )
    if high <= TISSUE_ABOVE_HU:
        raise ImplausibleScanError(
            path,
            f"no tissue: the highest value is {high} HU, every chest CT goes above {TISSUE_ABOVE_HU}",
            "check that the values are HU and the field of view is not empty",
        )
    if low >= PLAUSIBLE_HU[0] and high <= PLAUSIBLE_HU[1]:
        return
    # The lowest value may be padding of any size, so it does not count.
    wild = int(np.count_nonzero((hu > PLAUSIBLE_HU[1]) | ((hu < PLAUSIBLE_HU[0]) & (hu != low))))
    if wild > MAX_IMPLAUSIBLE * hu.size:
        raise ImplausibleScanError(
            path,
            f"{wild / hu.size:.0%} of the voxels lie outside {PLAUSIBLE_HU[0]}..{PLAUSIBLE_HU[1]} HU",
            "check the byte order (BinaryDataByteOrderMSB)",
        )
