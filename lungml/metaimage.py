"""What does a MetaImage header (`.mhd`, `.mha`) say, and are its voxels all there?

The parser is our own and strict: what it does not understand it refuses, where MetaIO guesses or looks away.
"""

from __future__ import annotations

import math
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from lungml.geometry import Grid, GridError
from lungml.scan_errors import (
    ByteCountError,
    ElementTypeError,
    FormatError,
    HeaderError,
    MissingDataError,
    ScanError,
    ScanGeometryError,
    UnsafePathError,
)

MAX_HEADER_BYTES = 64 * 1024  # a MetaImage header has some 20 lines; ITK writes under 1 KiB
MAX_AXIS_VOXELS = 4096
MAX_VOXELS = 2**30  # 2 GiB of int16, five times the largest LUNA16 scan
MIN_SPACING_MM, MAX_SPACING_MM = 0.1, 10.0  # LUNA16 has 0.46..0.98 in plane and 0.45..2.5 between slices
READ_BYTES = 1024 * 1024
MAX_DEFLATE_RATIO = 1032  # deflate cannot do better: a header that promises more is wrong, and takes no memory

# Unsigned types are missing on purpose: air is -1000 HU. Wider types pass only when every value is an int16.
ELEMENT_TYPES = {"MET_SHORT": "i2", "MET_INT": "i4", "MET_FLOAT": "f4", "MET_DOUBLE": "f8"}
# One meaning, several spellings, as MetaIO reads them.
SYNONYMS = {
    "Position": "Offset",
    "Origin": "Offset",
    "Orientation": "TransformMatrix",
    "Rotation": "TransformMatrix",
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}
# Fields that change what the voxels mean, and the only value that this reader takes for them.
FIXED_FIELDS = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "HeaderSize": "0",
    "ElementNumberOfChannels": "1",
    "ElementToIntensityFunctionSlope": "1",
    "ElementToIntensityFunctionOffset": "0",
    "DistanceUnits": "mm",
}
REQUIRED_FIELDS = ("NDims", "DimSize", "ElementType", "ElementDataFile")


@dataclass(frozen=True, kw_only=True)
class MhdHeader:
    """What a MetaImage header says, checked.

    Attributes:
        path: the `.mhd` or `.mha` file.
        grid: shape, spacing, origin and direction; a negative spacing is folded into the direction.
        element_type: dtype of the stored voxels, byte order included.
        compressed: whether the data is one zlib (or gzip) stream.
        compressed_bytes: its stated length, None when not stated.
        data_file: where the voxels lie; `path` itself when they follow the header. Not checked to exist.
        data_offset: bytes before the voxels in `data_file`.
    """

    path: Path
    grid: Grid
    element_type: np.dtype[Any]
    compressed: bool
    compressed_bytes: int | None
    data_file: Path
    data_offset: int


def read_header(path: Path) -> MhdHeader:
    """Parse the header of a `.mhd` or `.mha` file; the voxels are not looked at.

    Never reads more than `MAX_HEADER_BYTES`. Stricter than MetaIO: spacing, origin and direction must be
    there, every field at most once, and `ElementDataFile` names one file in the scan's folder (no list, no
    pattern).
    `AnatomicalOrientation` and `CenterOfRotation` are ignored, as ITK ignores them.

    Raises:
        ScanError: whatever the bytes are, this and no other error.
    """
    head, size = _read_head(path)
    fields, data_offset = _parse_fields(head, path)
    _check_fixed_fields(fields, path)
    element_type = _element_type(fields, path)
    grid = _grid(fields, path)
    compressed = _flag(fields, "CompressedData", path)
    compressed_bytes = None
    if "CompressedDataSize" in fields and compressed:
        compressed_bytes = _integers(fields, "CompressedDataSize", 1, path)[0]
    name = fields["ElementDataFile"]
    local = name.upper() == "LOCAL"
    if local and path.suffix.lower() == ".mhd":
        raise HeaderError(path, "a .mhd that holds its own voxels (LOCAL)", "rename it to .mha")
    if not local and path.suffix.lower() == ".mha":
        raise HeaderError(path, f"a .mha whose voxels lie in {_quote(name)}", "rename it to .mhd")
    if not local and head[data_offset:].strip():
        raise HeaderError(path, "text after ElementDataFile", "keep one data file per scan")
    if not local and size > MAX_HEADER_BYTES:
        raise HeaderError(path, f"{size} bytes are no header", "copy the scan's .mhd again")
    return MhdHeader(
        path=path,
        grid=grid,
        element_type=element_type,
        compressed=compressed,
        compressed_bytes=compressed_bytes,
        data_file=path if local else _data_file(name, path),
        data_offset=data_offset if local else 0,
    )


def _quote(text: str) -> str:
    """At most 80 characters of something that stood in a file."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


def open_plain(path: Path, scan: Path) -> BinaryIO:
    """Open a plain file for reading; a pipe or device would hang and is refused."""
    try:
        if path.is_dir():
            raise MissingDataError(scan, "a folder, not a scan file", "name the .mhd or .mha file itself")
        if path.exists() and not path.is_file():
            raise MissingDataError(scan, f"{path.name} is not a plain file", "copy the scan again")
        return path.open("rb")
    except FileNotFoundError as error:
        if path.is_symlink():
            raise MissingDataError(scan, f"{path.name} is a link to nowhere", "fetch its file") from error
        if path == scan:
            raise MissingDataError(scan, "no such file", "check the path") from error
        raise MissingDataError(
            scan,
            f"its data file {path.name} is missing",
            "copy it beside the header, or download the scan again",
        ) from error
    except (OSError, ValueError) as error:
        if isinstance(error, ScanError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise MissingDataError(scan, f"{_quote(path.name)} cannot be read: {reason}", "check the file") from error


def _read_head(path: Path) -> tuple[bytes, int]:
    """The file's first `MAX_HEADER_BYTES` and its whole size."""
    if path.suffix.lower() not in (".mhd", ".mha") and not path.is_dir():
        raise FormatError(path, f"{path.suffix or 'no suffix'} is not a kind of scan we read", "name a .mhd or .mha")
    with open_plain(path, path) as handle:
        return handle.read(MAX_HEADER_BYTES), os.fstat(handle.fileno()).st_size


def _parse_fields(head: bytes, path: Path) -> tuple[dict[str, str], int]:
    """Split `Key = value` lines up to and with ElementDataFile; return them and where the next byte lies."""
    if not head:
        raise HeaderError(path, "the file is empty", "copy the scan's header again")
    fields: dict[str, str] = {}
    position = 0
    for number, raw in enumerate(_lines(head), start=1):
        position += len(raw)
        try:
            line = raw.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise HeaderError(path, f"line {number} is not text", "this is no MetaImage header") from error
        if not line:
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not key:
            raise HeaderError(
                path, f"line {number} is not 'Key = value' but {_quote(line)}", "this is no MetaImage header"
            )
        name = SYNONYMS.get(key, key)
        if name in fields:
            raise HeaderError(path, f"{key} on line {number} says {name} a second time", "keep one of the two lines")
        fields[name] = value
        if name == "ElementDataFile":
            break
    missing = [name for name in REQUIRED_FIELDS if name not in fields]
    if missing:
        raise HeaderError(path, f"the header has no {', '.join(missing)}", "copy the scan's header again")
    return fields, position


def _lines(head: bytes) -> list[bytes]:
    """Lines that end in a newline and nothing else: the voxels of a .mha follow at once."""
    return [line + b"\n" for line in head.split(b"\n")[:-1]] + [head.split(b"\n")[-1]]


def _check_fixed_fields(fields: Mapping[str, str], path: Path) -> None:
    for name, wanted in FIXED_FIELDS.items():
        value = fields.get(name, wanted)
        if value.lower() == wanted.lower() or (name == "DistanceUnits" and value == "?"):
            continue
        if wanted.isdigit() and _as_float(value) == float(wanted):
            continue
        if name == "NDims":
            raise ScanGeometryError(path, f"{_quote(value)} dimensions, a CT has 3", "export it as one 3D volume")
        raise HeaderError(path, f"{name} = {_quote(value)}, only {wanted} is read", "export the scan as plain HU")


def _element_type(fields: Mapping[str, str], path: Path) -> np.dtype[Any]:
    value = fields["ElementType"]
    if value in ("MET_CHAR", "MET_UCHAR"):
        raise ElementTypeError(
            path,
            f"8-bit voxels ({value}) hold 256 values, not HU",
            "this is a mask or a picture; give the CT itself",
        )
    if value not in ELEMENT_TYPES:
        raise ElementTypeError(
            path,
            f"element type {_quote(value)} is not one that holds HU",
            f"store it as {', '.join(ELEMENT_TYPES)}",
        )
    order = ">" if _flag(fields, "BinaryDataByteOrderMSB", path) else "<"
    return np.dtype(order + ELEMENT_TYPES[value])


def _grid(fields: Mapping[str, str], path: Path) -> Grid:
    """Shape, spacing, origin and direction, checked.

    Each three numbers of TransformMatrix are the direction of one axis (col, row, index): our matrix's
    columns. xyz = R (s * cri) + o does not change when a spacing and its axis both change sign, so that is
    how a negative spacing is read, exactly.
    """
    cols, rows, slices = _integers(fields, "DimSize", 3, path)
    sizes = (slices, rows, cols)
    if min(sizes) < 1 or max(sizes) > MAX_AXIS_VOXELS or math.prod(sizes) > MAX_VOXELS:
        raise ScanGeometryError(
            path,
            f"{cols} x {rows} x {slices} voxels: not 1..{MAX_AXIS_VOXELS} an axis and {MAX_VOXELS} at most",
            "copy the header again",
        )
    spacing = np.array(_floats(fields, "ElementSpacing", 3, path))
    if not all(MIN_SPACING_MM <= abs(s) <= MAX_SPACING_MM for s in spacing):
        raise ScanGeometryError(
            path,
            f"spacing {fields['ElementSpacing']} mm is not in {MIN_SPACING_MM}..{MAX_SPACING_MM}",
            "check its unit: mm",
        )
    axes = np.array(_floats(fields, "TransformMatrix", 9, path)).reshape(3, 3)
    origin = _floats(fields, "Offset", 3, path)
    direction = np.where(spacing < 0, -1.0, 1.0) * axes.T
    try:
        return Grid(
            shape_irc=sizes,
            spacing_xyz=(abs(float(spacing[0])), abs(float(spacing[1])), abs(float(spacing[2]))),
            origin_xyz=(origin[0], origin[1], origin[2]),
            direction=tuple((float(x), float(y), float(z)) for x, y, z in direction),
        )
    except GridError as error:
        raise ScanGeometryError(path, str(error), "export the scan again without shear") from error


def _flag(fields: Mapping[str, str], name: str, path: Path) -> bool:
    value = fields.get(name, "False").lower()
    if value not in ("true", "false", "1", "0"):
        raise HeaderError(path, f"{name} = {_quote(value)} is neither True nor False", "correct the header")
    return value in ("true", "1")


def _as_float(token: str) -> float | None:
    """An ASCII number, None for anything else: `float` alone takes '1_000' and other scripts' digits."""
    if not token.isascii() or "_" in token:
        return None
    try:
        return float(token)
    except ValueError:
        return None


def _floats(fields: Mapping[str, str], name: str, count: int, path: Path) -> list[float]:
    if name not in fields:
        raise ScanGeometryError(path, f"the header has no {name}", "without it no voxel has a place; export it again")
    numbers = [_as_float(token) for token in fields[name].split()]
    if len(numbers) != count or not all(n is not None and math.isfinite(n) for n in numbers):
        raise ScanGeometryError(
            path, f"{name} = {_quote(fields[name])} is not {count} finite numbers", "correct the header"
        )
    return [n for n in numbers if n is not None]


def _integers(fields: Mapping[str, str], name: str, count: int, path: Path) -> list[int]:
    tokens = fields[name].split()
    if len(tokens) != count or not all(re.fullmatch(r"[0-9]{1,18}", token) for token in tokens):
        raise HeaderError(path, f"{name} = {_quote(fields[name])} is not {count} whole number(s)", "correct the header")
    return [int(token) for token in tokens]


def _data_file(name: str, path: Path) -> Path:
    """Where the header's data file lies, refused when that is outside the scan's folder.

    A link out of the folder is refused too, unless the header itself is a link to that same place.
    """
    if not name or not name.isprintable():
        raise HeaderError(path, f"ElementDataFile = {_quote(name)} names no file", "correct the header")
    if name.split()[0].upper() == "LIST" or "%" in name:
        raise HeaderError(
            path,
            f"ElementDataFile = {_quote(name)} is a list or pattern of files",
            "store the scan as one data file",
        )
    inside = path.parent / name
    try:
        folders = (path.parent.resolve(), path.resolve().parent)
        real = inside.resolve()
        escapes = "\\" in name or not any(real.is_relative_to(folder) for folder in folders)
    except (OSError, RuntimeError) as error:  # a name too long, or links that go round in a circle
        raise HeaderError(path, f"ElementDataFile = {_quote(name)} cannot be looked up", "correct it") from error
    if escapes:
        raise UnsafePathError(
            path, f"its data file {_quote(name)} lies outside the scan's folder", "put it beside the header"
        )
    return inside


def read_voxels(header: MhdHeader) -> npt.NDArray[Any]:
    """All voxels in the stored type, (index * row * col,); the byte count must be exact."""
    expected = math.prod(header.grid.shape_irc) * header.element_type.itemsize
    with open_plain(header.data_file, header.path) as handle:
        there = os.fstat(handle.fileno()).st_size - header.data_offset
        if header.compressed and expected > MAX_DEFLATE_RATIO * there + READ_BYTES:
            raise _wrong_count(header, there, expected, "compressed ")
        handle.seek(header.data_offset)
        if header.compressed:
            if header.compressed_bytes is not None and there != header.compressed_bytes:
                raise _wrong_count(header, there, header.compressed_bytes, "compressed ")
            return inflate(handle, expected, header.path, header.data_file.name).view(header.element_type)
        if there != expected:
            raise _wrong_count(header, there, expected, "")
        voxels = np.fromfile(handle, dtype=header.element_type)
    if voxels.nbytes != expected:
        raise _wrong_count(header, voxels.nbytes, expected, "")
    return voxels


def inflate(handle: BinaryIO, expected: int, path: Path, name: str) -> npt.NDArray[np.uint8]:
    """Decompress one zlib or gzip stream of exactly `expected` bytes; a bomb is stopped one byte beyond.

    Raises:
        ByteCountError: too few or too many bytes, or broken compression; it names `path`, the scan, and `name`.
    """
    again = "copy or download the scan again"
    out = np.empty(expected, dtype=np.uint8)
    stream = zlib.decompressobj(wbits=47)
    filled = 0
    while not stream.eof:
        data = stream.unconsumed_tail or handle.read(READ_BYTES)
        try:
            piece = stream.decompress(data, min(READ_BYTES * 4, expected - filled + 1))
        except zlib.error as error:
            raise ByteCountError(path, f"{name} is not whole zlib data ({error})", again) from error
        if filled + len(piece) > expected:
            raise ByteCountError(path, f"{name} holds more than the {expected} bytes that its size says", again)
        out[filled : filled + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
        filled += len(piece)
        if not data and not piece and not stream.eof:
            raise ByteCountError(path, f"{name} breaks off after {filled} of {expected} bytes", again)
    if filled != expected:
        raise ByteCountError(
            path, f"{name} is too short: {filled} decompressed bytes, the header says {expected}", again
        )
    if stream.unused_data or handle.read(1):
        raise ByteCountError(path, f"{name} goes on after its voxels", again)
    return out


def _wrong_count(header: MhdHeader, there: int, expected: int, kind: str) -> ByteCountError:
    word = "short" if there < expected else "long"
    return ByteCountError(
        header.path,
        f"{header.data_file.name} is too {word}: {there} {kind}bytes, the header says {expected}",
        "copy or download the scan again",
    )
