"""What does a NIfTI file (`.nii`, `.nii.gz`) hold, and is every byte of it there?

nibabel reads the header; what it would guess or look away from is refused here.
"""

from __future__ import annotations

import io
import math
import os
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from lungml.geometry import Grid, GridError
from lungml.metaimage import (
    MAX_AXIS_VOXELS,
    MAX_DEFLATE_RATIO,
    MAX_SPACING_MM,
    MAX_VOXELS,
    MIN_SPACING_MM,
    inflate,
    open_plain,
)
from lungml.scan_errors import (
    ByteCountError,
    ElementTypeError,
    FormatError,
    HeaderError,
    ScanGeometryError,
)

SUFFIXES = (".nii", ".nii.gz")
HEADER_BYTES = {b"n+1\0": (344, 348), b"n+2\0": (4, 540)}  # where the magic stands, and the header's size
LONGEST_HEADER = 1024 * 1024  # extensions included
DATA_TYPES = {4: "i2", 8: "i4", 16: "f4", 64: "f8", 512: "u2"}  # NIfTI's codes
EIGHT_BIT_OR_COLOUR = {2, 128, 256, 2304}
UNITS = {0: "no", 1: "metre", 2: "mm", 3: "micron"}  # the lowest three bits of xyzt_units
MAX_DISAGREEMENT = 1e-3  # between an axis' length and pixdim, as a part of it
MAX_APART = 0.1  # voxels between the places that qform and sform give; float32 quaternions make about 1e-3 of it
TO_LPS = np.diag([-1.0, -1.0, 1.0])  # NIfTI's axes point right and forward, DICOM's left and back


def read_nifti(path: Path) -> tuple[npt.NDArray[Any], Grid]:
    """Read a NIfTI-1 or NIfTI-2 file.

    Returns:
        the values after scaling, (index, row, col), and the grid in LPS. The stored order of axes and their
        directions are kept: a flipped axis has a negative direction.

    Raises:
        ScanError: whatever the bytes are, this and no other error.
    """
    with open_plain(path, path) as handle:
        compressed = handle.read(2) == b"\x1f\x8b"
        handle.seek(0)
        if compressed != path.name.lower().endswith(".gz"):
            really = "is" if compressed else "is not"
            raise FormatError(path, f"it {really} compressed with gzip, unlike its name says", "rename it")
        head = handle.read(LONGEST_HEADER) if not compressed else _first_bytes(handle.read(LONGEST_HEADER), path)
        header, size = _header(head, path)
        shape, element = _shape(header, path), _data_type(header, path)
        grid = _grid(header, shape, path)
        offset = _offset(header, size, path)
        expected = offset + math.prod(shape) * element.itemsize
        handle.seek(0)
        if compressed:
            packed = os.fstat(handle.fileno()).st_size
            if expected > MAX_DEFLATE_RATIO * packed + LONGEST_HEADER:  # no such stream can hold that much
                raise ByteCountError(
                    path, f"too short: {packed} compressed bytes cannot hold {expected}", "download the scan again"
                )
            content = inflate(handle, expected, path, path.name)
        else:
            there = os.fstat(handle.fileno()).st_size
            if there != expected:  # before they are read: a file may be larger than the memory
                raise _wrong_count(path, there, expected)
            content = np.fromfile(handle, dtype=np.uint8)
    if content.size != expected:
        raise _wrong_count(path, content.size, expected)
    stored = content[offset:].view(element).reshape(shape)
    return _scaled(stored, header, path), grid


def _wrong_count(path: Path, there: int, expected: int) -> ByteCountError:
    word = "short" if there < expected else "long"
    return ByteCountError(
        path, f"too {word}: {there} bytes, the header says {expected}", "copy or download the scan again"
    )


def _first_bytes(packed: bytes, path: Path) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(packed, LONGEST_HEADER)
    except zlib.error as error:
        raise ByteCountError(path, f"not whole gzip data ({error})", "copy or download it again") from error


def _header(head: bytes, path: Path) -> tuple[Any, int]:
    for magic, (place, size) in HEADER_BYTES.items():
        if head[place : place + len(magic)] == magic and len(head) >= size:
            kind = nib.Nifti1Header if size == 348 else nib.Nifti2Header
            try:
                return kind.from_fileobj(io.BytesIO(head[:size]), check=False), size
            except Exception as error:  # nibabel promises no kind of error for damaged bytes
                raise HeaderError(path, f"its header cannot be parsed ({_words(error)})", "export it again") from error
    if head[344:348] == b"ni1\0":
        raise FormatError(path, "the header of a .hdr/.img pair", "store the scan as one .nii file")
    raise HeaderError(path, "this is no NIfTI header", "export the scan again")


def _shape(header: Any, path: Path) -> tuple[int, int, int]:
    """(index, row, col) voxels."""
    dims = [int(n) for n in header["dim"]]
    count = dims[0]
    if count < 3 or count > 7 or any(n != 1 for n in dims[4 : count + 1]):
        sizes = " x ".join(str(n) for n in dims[1 : min(max(count, 1), 7) + 1])
        raise ScanGeometryError(path, f"{sizes} voxels in {count} dimensions, a CT has 3", "export it as one 3D volume")
    cols, rows, slices = dims[1:4]
    if min(dims[1:4]) < 1 or max(dims[1:4]) > MAX_AXIS_VOXELS or math.prod(dims[1:4]) > MAX_VOXELS:
        raise ScanGeometryError(
            path,
            f"{cols} x {rows} x {slices} voxels: not 1..{MAX_AXIS_VOXELS} an axis and {MAX_VOXELS} at most",
            "export the scan again",
        )
    return slices, rows, cols


def _data_type(header: Any, path: Path) -> np.dtype[Any]:
    code = int(header["datatype"])
    if code in EIGHT_BIT_OR_COLOUR:
        raise ElementTypeError(
            path, "8-bit or colour voxels hold no HU", "this is a mask or a picture; give the CT itself"
        )
    if code not in DATA_TYPES:
        raise ElementTypeError(path, f"data type {code} is not one that holds HU", "store it as int16")
    kind = np.dtype(DATA_TYPES[code]).newbyteorder(header.endianness)
    if int(header["bitpix"]) != 8 * kind.itemsize:
        raise HeaderError(path, f"bitpix {int(header['bitpix'])} does not go with {kind.name}", "export it again")
    return kind


def _offset(header: Any, size: int, path: Path) -> int:
    offset = float(header["vox_offset"])
    if not (math.isfinite(offset) and offset == int(offset) and size + 4 <= offset <= LONGEST_HEADER):
        raise HeaderError(path, f"its voxels cannot begin at byte {offset:g}", "export it again")
    return int(offset)


def _grid(header: Any, shape: tuple[int, int, int], path: Path) -> Grid:
    unit = int(header["xyzt_units"]) & 7
    if unit not in (0, 2):
        raise ScanGeometryError(path, f"lengths in {UNITS.get(unit, 'an unknown unit')}, not mm", "store them in mm")
    affines = []
    for name in ("sform", "qform"):
        if int(header[f"{name}_code"]) > 0:
            try:
                with np.errstate(all="ignore"):  # what comes of it is looked at below
                    affine = np.asarray(getattr(header, f"get_{name}")(), dtype=np.float64)
            except Exception as error:  # nibabel promises no kind of error for damaged bytes
                raise ScanGeometryError(path, f"its {name} is none ({_words(error)})", "export it again") from error
            if not np.isfinite(affine).all():
                raise ScanGeometryError(path, f"its {name} holds a value that is not finite", "export it again")
            affines.append(affine)
    if not affines:
        raise ScanGeometryError(
            path, "neither sform nor qform says where the voxels lie", "export it again with its orientation"
        )
    spacing = np.linalg.norm(affines[0][:3, :3], axis=0)
    if not all(MIN_SPACING_MM <= mm <= MAX_SPACING_MM for mm in spacing):
        said = " ".join(f"{mm:g}" for mm in spacing)
        raise ScanGeometryError(
            path, f"spacing {said} mm is not in {MIN_SPACING_MM}..{MAX_SPACING_MM}", "check its unit: mm"
        )
    pixdim = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    if not (np.abs(pixdim - spacing) <= MAX_DISAGREEMENT * spacing).all():
        raise ScanGeometryError(path, "pixdim and the matrix disagree about the spacing", "export it again")
    if len(affines) == 2:
        # They differ by a linear map, so they are farthest apart at one of the eight corners.
        corners = np.array([(*corner, 1) for corner in np.ndindex(2, 2, 2)]) * (*shape[::-1], 1)
        apart = float(np.linalg.norm((corners @ (affines[0] - affines[1]).T)[:, :3], axis=1).max())
        if apart > MAX_APART * spacing.min():
            raise ScanGeometryError(
                path,
                f"sform and qform put voxels {apart:.3g} mm apart",
                "keep the right one, set the other's code to 0",
            )
    columns = TO_LPS @ affines[0][:3, :3] / spacing
    x, y, z = (TO_LPS @ affines[0][:3, 3]).tolist()
    try:
        return Grid(
            shape_irc=shape,
            spacing_xyz=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
            origin_xyz=(x, y, z),
            direction=tuple((float(a), float(b), float(c)) for a, b, c in columns),
        )
    except GridError as error:
        raise ScanGeometryError(path, str(error), "export the scan again without shear") from error


def _scaled(stored: npt.NDArray[Any], header: Any, path: Path) -> npt.NDArray[Any]:
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if math.isnan(slope) or slope == 0 or (slope == 1 and inter == 0):
        return stored  # NIfTI: a slope of 0 means that there is none; nibabel writes NaN for that
    if math.isinf(slope):
        raise HeaderError(path, f"scl_slope is {slope}", "export the scan again")
    if not math.isfinite(inter):
        raise HeaderError(path, f"scl_inter is {inter}", "export the scan again")
    whole = slope == int(slope) and inter == int(inter) and abs(slope) < 2**14 and abs(inter) < 2**30
    if whole and stored.dtype.kind in "iu" and stored.dtype.itemsize == 2:
        return stored.astype(np.int32) * int(slope) + int(inter)
    return stored * slope + inter


def _words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]
