"""What does this scan hold, in HU and in millimetres, and can it be trusted?

A scan read slightly wrong costs more than a scan set aside: whatever is not exactly a CT is refused with
one line that says what to do. Values stay as stored: nothing is clipped, padding (-2048, -3024) is kept.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from lungml.dicom import dicom_files, find_dicom_series, read_series, read_series_and_headers
from lungml.files import walk
from lungml.geometry import Grid
from lungml.metaimage import MAX_HEADER_BYTES, MhdHeader, open_plain, read_header, read_voxels
from lungml.nifti import SUFFIXES as NIFTI_SUFFIXES
from lungml.nifti import read_nifti
from lungml.plausibility import as_int16, check_plausible, doubts
from lungml.scan_errors import (
    ByteCountError,
    ByteOrderError,
    DuplicateScanError,
    DuplicateSliceError,
    ElementTypeError,
    EmptyScanError,
    FormatError,
    HeaderError,
    ImplausibleScanError,
    MissingDataError,
    MissingSliceError,
    ScanError,
    ScanGeometryError,
    SeriesUidError,
    SeveralSeriesError,
    TiltError,
    UnevenSlicesError,
    UnsafePathError,
)
from lungml.series_files import is_folder

__all__ = [
    "ByteCountError",
    "ByteOrderError",
    "DuplicateScanError",
    "DuplicateSliceError",
    "ElementTypeError",
    "EmptyScanError",
    "FormatError",
    "HeaderError",
    "ImplausibleScanError",
    "MhdHeader",
    "MissingDataError",
    "MissingSliceError",
    "Scan",
    "ScanError",
    "ScanGeometryError",
    "SeriesUidError",
    "SeveralSeriesError",
    "TiltError",
    "UnevenSlicesError",
    "UnsafePathError",
    "find_dicom_series",
    "find_scans",
    "read_header",
    "read_scan",
    "read_scan_and_headers",
    "scan_fingerprint",
    "scan_name",
    "source_files",
]

# Raised whenever some file is read as other voxels or another grid than before: its store is then made anew.
READING_VERSION = 1
KINDS = ".mhd, .mha, .nii, .nii.gz, or the folder or .zip of a DICOM series"
LONGEST_UID = 128  # bytes: DICOM has 64, and file names with suffixes must stay below 255
# LUNA16's lung masks carry the scans' own names; they may lie in the same folder and are no scans.
MASK_FOLDER_PREFIX = "seg-lungs"


@dataclass(frozen=True, eq=False)
class Scan:
    """One CT as stored.

    Attributes:
        series_uid: of a DICOM series its SeriesInstanceUID, else the file's name without its suffix.
        hu: (index, row, col) int16, HU, neither clipped nor resampled. Slices are axial: a volume stored along
            another axis is turned, exactly; an axis stored backwards stays so, its direction says it.
        grid: where the voxels lie in the patient.
        warnings: what a person should know, one line each: no lungs seen, not a whole chest.
    """

    series_uid: str
    hu: npt.NDArray[np.int16]
    grid: Grid
    warnings: tuple[str, ...] = ()


def read_scan(path: Path) -> Scan:
    """Read one scan with every check.

    Args:
        path: `.mhd`, `.mha`, `.nii`, `.nii.gz`, or the folder or `.zip` of a DICOM series.

    Returns:
        the scan in int16 HU as stored; wider types are converted only where that loses nothing.

    Raises:
        ScanError: one of its kinds, whenever the scan is not exactly what a CT has to be.
    """
    kind = scan_kind(path)
    if kind == "dicom":
        series_uid, hu, grid = read_series(path)
    elif kind == "nifti":
        series_uid = scan_name(path)
        stored, grid = read_nifti(path)
        hu = as_int16(stored, path)
    else:
        header = read_header(path)
        series_uid, grid = path.stem, header.grid
        hu = as_int16(read_voxels(header), path).reshape(grid.shape_irc)
    return _checked(path, series_uid, hu, grid)


def read_scan_and_headers(path: Path) -> tuple[Scan, list[Dataset] | None]:
    """Read one scan as `read_scan` does, and of a DICOM series what objects made from it take over.

    Returns:
        the scan, and what `lungml.dicom.read_headers` gives of the very files that its voxels came from; None for a
        scan of another kind.

    Raises:
        ScanError: as of `read_scan`.
    """
    if scan_kind(path) != "dicom":
        return read_scan(path), None
    series_uid, hu, grid, headers = read_series_and_headers(path)
    return _checked(path, series_uid, hu, grid), headers


def _checked(path: Path, series_uid: str, hu: npt.NDArray[np.int16], grid: Grid) -> Scan:
    _check_uid(series_uid, path)
    check_plausible(hu, path)
    hu, grid = _axial(hu, grid)
    return Scan(series_uid=series_uid, hu=hu, grid=grid, warnings=doubts(hu, grid))


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
    for folder, subfolders, names in walk(luna_dir):
        subfolders[:] = [name for name in subfolders if not name.lower().startswith(MASK_FOLDER_PREFIX)]
        for name in names:
            if not name.endswith(".mhd"):
                continue
            path = folder / name
            if path.stem in found:
                raise DuplicateScanError(
                    found[path.stem], f"{path} has the same series_uid", "keep one of the two files"
                )
            found[path.stem] = path
    return dict(sorted(found.items()))


def scan_fingerprint(path: Path) -> str:
    """What a scan's derived files depend on, cheap enough to ask for 888 scans at every start.

    sha256 over the names, sizes and mtimes (ns) of the scan's files, and over the first bytes of a single file, the
    header's where it has one. The voxels are not read: a data file changed in place with its old size and time goes
    unseen here, the full checksum in the store sees it.

    Raises:
        ScanError: the header cannot be parsed or a file is missing.
    """
    kind = scan_kind(path)
    if path.is_dir():
        return _fingerprint(b"", path, dicom_files(path))
    if kind != "dicom":
        _check_uid(scan_name(path), path)
    header = read_header(path) if kind == "metaimage" else None
    with open_plain(path, path) as handle:
        # In a .mha the header ends where the voxels start; beyond that, size and mtime speak.
        head = handle.read(header.data_offset or MAX_HEADER_BYTES if header else MAX_HEADER_BYTES)
    return _fingerprint(hashlib.sha256(head).digest(), path, [header.data_file if header else path])


def source_files(path: Path) -> tuple[Path, ...]:
    """The files whose bytes make the scan, sorted.

    Raises:
        ScanError: the header cannot be parsed.
    """
    kind = scan_kind(path)
    if kind == "dicom":
        return dicom_files(path)
    return (path,) if kind == "nifti" else tuple(sorted({path, read_header(path).data_file}))


def _fingerprint(head: bytes, path: Path, files: Iterable[Path]) -> str:
    found = hashlib.sha256(head)
    for file in files:
        with open_plain(file, path) as handle:
            stat = os.fstat(handle.fileno())
        name = file.relative_to(path) if file.is_relative_to(path) and file != path else file.name
        found.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    return found.hexdigest()


def scan_kind(path: Path) -> Literal["dicom", "nifti", "metaimage"]:
    """What a path is read as, by its name.

    Raises:
        FormatError: none of them.
        MissingDataError: neither its name nor the system says what it is.
    """
    name = path.name.lower()
    if is_folder(path) or name.endswith(".zip"):
        return "dicom"
    if name.endswith(NIFTI_SUFFIXES):
        return "nifti"
    if name.endswith((".mhd", ".mha")):
        return "metaimage"
    try:
        path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise MissingDataError(path, "a link to nowhere", "fetch its file, or name another") from None
        unknown = f", and {path.suffix} is not a kind of scan we read" if path.suffix else ""
        raise MissingDataError(path, f"no such file or folder{unknown}", "check the path") from None
    except OSError as error:
        raise MissingDataError(path, f"it cannot be looked up: {error.strerror}", "check the path") from error
    raise FormatError(path, f"{path.suffix or 'no suffix'} is not a kind of scan we read", f"name a {KINDS}")


def scan_name(path: Path) -> str:
    """What a scan is called before it is read: a file's name without its suffix, a folder's whole name."""
    if is_folder(path):
        return path.name
    suffix = next((s for s in (".nii.gz", ".nii") if path.name.lower().endswith(s)), path.suffix)
    return path.name[: len(path.name) - len(suffix)]


def _check_uid(series_uid: str, path: Path) -> None:
    if (length := len(series_uid.encode("utf-8", "surrogateescape"))) > LONGEST_UID:
        raise SeriesUidError(path, f"a series_uid of {length} bytes, not {LONGEST_UID} at most", "rename it")
    if not re.fullmatch(r"[\w.\- ]+", series_uid) or set(series_uid) <= {"."} or series_uid.startswith("."):
        raise SeriesUidError(path, f"{series_uid[:80]!r} is no series_uid", "rename it: letters, digits, dots, dashes")


def _axial(hu: npt.NDArray[np.int16], grid: Grid) -> tuple[npt.NDArray[np.int16], Grid]:
    """Turn a volume so that its slices are axial; nothing is interpolated and no axis is flipped."""
    direction = np.asarray(grid.direction)
    # Of each patient axis x, y, z the stored axis (col, row, index) that runs along it most.
    along = [int(np.argmax(np.abs(direction[axis]))) for axis in range(3)]
    if along == [0, 1, 2] or sorted(along) != [0, 1, 2]:
        return hu, grid
    x, y, z = along
    turned = np.ascontiguousarray(hu.transpose(2 - z, 2 - y, 2 - x))
    return turned, Grid(
        shape_irc=(turned.shape[0], turned.shape[1], turned.shape[2]),
        spacing_xyz=(grid.spacing_xyz[x], grid.spacing_xyz[y], grid.spacing_xyz[z]),
        origin_xyz=grid.origin_xyz,
        direction=tuple((float(a), float(b), float(c)) for a, b, c in direction[:, along]),
    )
