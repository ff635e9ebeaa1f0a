"""What does a DICOM series hold, in a folder or a zip, and is every slice of it there?

pydicom reads the headers and says where the pixels lie. File names, extensions and order mean nothing: slices are put
in order by their positions in the patient. Nothing of a patient but the series_uid leaves this module.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK as sitk
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from lungml.geometry import Grid, GridError
from lungml.metaimage import MAX_AXIS_VOXELS, MAX_DEFLATE_RATIO, MAX_SPACING_MM, MAX_VOXELS, MIN_SPACING_MM
from lungml.plausibility import as_int16
from lungml.scan_errors import (
    ByteCountError,
    DuplicateScanError,
    DuplicateSliceError,
    ElementTypeError,
    FormatError,
    HeaderError,
    MissingDataError,
    MissingSliceError,
    ScanError,
    ScanGeometryError,
    SeveralSeriesError,
    UnsafePathError,
)

MAX_FILES = 20_000  # the longest LIDC series has 764 slices
MAX_FILE_BYTES = 256 * 1024 * 1024  # one slice of 4096 x 4096 x 2 bytes has 32 MiB
MAGIC, MAGIC_AT = b"DICM", 128
HEADER_TAGS = [
    "SOPClassUID",
    "Modality",
    "SeriesInstanceUID",
    "ImageType",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RescaleSlope",
    "RescaleIntercept",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
]
UNCOMPRESSED = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)
SAME_MM = 1e-3  # positions closer than this are one position
MAX_UNEVEN = 0.05  # of the spacing: LIDC's positions are rounded to 0.01 mm and more
MISSING_FROM = 1.5  # times the spacing: a slice is missing from here on
MAX_TILT = 0.01  # mm sideways for each mm between slices: half a degree of gantry tilt
MAX_TURN = 1e-4  # between the direction cosines of two slices


@dataclass(frozen=True, kw_only=True)
class _Slice:
    """One image's header, checked, and where its file lies."""

    name: str
    rows: int
    cols: int
    kind: np.dtype[Any]
    bits: int
    slope: float
    intercept: float
    position_xyz: npt.NDArray[np.float64]
    axes: npt.NDArray[np.float64]  # (2, 3): unit steps of the column and of the row index
    spacing: tuple[float, float]  # mm between rows, between columns
    syntax: UID


class _Files:
    """The plain files of a folder or a zip, by name."""

    def __init__(self, path: Path, names: Sequence[str], archive: zipfile.ZipFile | None) -> None:
        self.path, self.names, self._archive = path, names, archive

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Open one for reading.

        Raises:
            ScanError: it is damaged or cannot be read.
        """
        try:
            if self._archive is None:
                with (self.path / name).open("rb") as handle:
                    yield handle
            else:
                with self._archive.open(name) as member:
                    yield io.BufferedReader(member)  # type: ignore[type-var]
        except (OSError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
            raise ByteCountError(
                self.path, f"{name} cannot be read ({_words(error)})", "download the series again"
            ) from error


def read_series(path: Path) -> tuple[str, npt.NDArray[np.int16], Grid]:
    """Read the one CT series of a folder (and its folders) or of a zip.

    What is no DICOM image (XML, DICOMDIR, structured reports) is passed over, and so are localizers beside slices.

    Returns:
        the series_uid (SeriesInstanceUID), the values after rescaling, (index, row, col) int16, slices in the order
        of their positions along the slices' normal, and the grid.

    Raises:
        ScanError: whatever the bytes are, this and no other error.
    """
    with _opened(path) as files:
        series_uid, slices = _slices(files)
        grid = _ordered_grid(slices, path)
        whole = all(s.slope == int(s.slope) and s.intercept == int(s.intercept) for s in slices)
        hu = np.empty(grid.shape_irc, dtype=np.int16)
        for index, one in enumerate(slices):
            hu[index] = as_int16(_values(files, one, whole), path)
    return series_uid, hu, grid


def find_dicom_series(folder: Path) -> dict[str, Path]:
    """Find the CT series of a tree in LIDC-IDRI's layout: each in a folder of its own, or in a zip.

    One header of each folder is read; what else lies in it is seen by `read_series`. Other modalities are passed over.

    Returns:
        series_uid -> its folder or zip, sorted by series_uid.

    Raises:
        MissingDataError: `folder` is none.
        DuplicateScanError: two places hold one series.
    """
    if not folder.is_dir():
        raise MissingDataError(folder, "no such folder", "name the folder that holds the DICOM series")
    found: dict[str, Path] = {}
    for place, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
        here = Path(place)
        plain = [name for name in sorted(names) if not name.startswith(".")]
        for path in [here, *(here / name for name in plain if name.lower().endswith(".zip"))]:
            series_uid = _first_ct(path)
            if series_uid is None:
                continue
            if series_uid in found:
                raise DuplicateScanError(found[series_uid], f"{path} holds the same series", "keep one of the two")
            found[series_uid] = path
    return dict(sorted(found.items()))


def patient_digest(path: Path) -> str:
    """An anonymous mark of the patient whose series lies at `path`: equal for equal PatientIDs, empty without one."""
    with _opened(path, deep=False) as files:
        for name in files.names:
            with files.open(name) as handle:
                if _is_dicom(handle):
                    patient = str(_parse(handle, name, path, ["PatientID"]).get("PatientID") or "")
                    return hashlib.sha256(patient.encode()).hexdigest()[:16] if patient else ""
    return ""


def dicom_files(path: Path) -> tuple[Path, ...]:
    """The files whose bytes make a series: the zip, or the folder's DICOM files, sorted."""
    if not path.is_dir():
        return (path,)
    with _opened(path) as files:
        found = []
        for name in files.names:
            with files.open(name) as handle:
                if _is_dicom(handle):
                    found.append(path / name)
    return tuple(sorted(found))


@contextmanager
def _opened(path: Path, *, deep: bool = True) -> Iterator[_Files]:
    """The plain files at `path`; nothing is unpacked.

    Raises:
        ScanError: a link or a member that leads outside, or more than a series could have.
    """
    if path.is_dir():
        yield _Files(path, _plain_files(path, deep), None)
        return
    try:
        archive = zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise MissingDataError(path, "no such file", "check the path") from error
    except Exception as error:  # a damaged directory raises struct.error, IndexError and what not
        raise FormatError(path, f"not a whole zip file ({_words(error)})", "download it again") from error
    with archive:
        names = _members(archive, path)
        yield _Files(path, names, archive)


def _plain_files(folder: Path, deep: bool) -> list[str]:
    real = folder.resolve()
    found = []
    for place, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(s for s in subfolders if not s.startswith(".")) if deep else []
        for name in sorted(names):
            file = Path(place) / name
            if name.startswith(".") or not file.is_file():
                continue
            if file.is_symlink() and not file.resolve().is_relative_to(real):
                raise UnsafePathError(
                    folder, f"{file.relative_to(folder)} is a link out of the folder", "copy the file itself there"
                )
            found.append(str(file.relative_to(folder)))
            if len(found) > MAX_FILES:
                raise FormatError(folder, f"more than {MAX_FILES} files are no series", "name the series' own folder")
    return found


def _members(archive: zipfile.ZipFile, path: Path) -> list[str]:
    infos = [info for info in archive.infolist() if not info.is_dir()]
    if len(infos) > MAX_FILES:
        raise FormatError(path, f"more than {MAX_FILES} files are no series", "pack the series alone")
    seen: set[str] = set()
    total = 0
    for info in infos:
        parts = PurePosixPath(info.filename).parts
        if info.filename.startswith(("/", "\\")) or ".." in parts or "\\" in info.filename or ":" in info.filename:
            raise UnsafePathError(path, f"its member {info.filename[:80]!r} leads outside", "pack the series again")
        if info.flag_bits & 1:
            raise FormatError(path, "it is encrypted", "unpack it and give the folder")
        if info.filename in seen:
            raise FormatError(path, f"it holds {info.filename[:80]!r} twice", "pack the series again")
        seen.add(info.filename)
        total += info.file_size
        if info.file_size > MAX_FILE_BYTES or info.file_size > MAX_DEFLATE_RATIO * (info.compress_size + 1024):
            raise FormatError(
                path, f"its member {info.filename[:80]!r} says it has {info.file_size} bytes", "pack the series again"
            )
    if total > 4 * MAX_VOXELS:
        raise FormatError(path, f"{total} bytes are more than a series has", "pack the series alone")
    return sorted(seen)


def _first_ct(path: Path) -> str | None:
    """The series_uid of the first image at `path`, if that is a CT's; what cannot be read is no series."""
    try:
        with _opened(path, deep=False) as files:
            for name in files.names:
                with files.open(name) as handle:
                    if not _is_dicom(handle):
                        continue
                    about = _parse(handle, name, path, ["Modality", "SeriesInstanceUID", "Rows"])
                if "Rows" in about:
                    return str(about.get("SeriesInstanceUID", "")) or None if about.get("Modality") == "CT" else None
    except ScanError:
        return None
    return None


def _slices(files: _Files) -> tuple[str, list[_Slice]]:
    """The one series' images."""
    path = files.path
    images: list[tuple[str, Any]] = []
    for name in files.names:
        with files.open(name) as handle:
            if _is_dicom(handle):
                about = _parse(handle, name, path, HEADER_TAGS)
                if "Rows" in about:
                    images.append((name, about))
    if not images:
        raise FormatError(path, "no DICOM image in it", "name the folder or zip that holds the series")
    slices = [(name, about) for name, about in images if "LOCALIZER" not in (about.get("ImageType") or ())]
    images = slices or images
    counts = Counter(str(about.get("SeriesInstanceUID", "")) for _, about in images)
    if len(counts) > 1:
        listed = ", ".join(f"{uid or 'none'} ({count} images)" for uid, count in sorted(counts.items()))
        raise SeveralSeriesError(path, f"{len(counts)} series: {listed}", "name the folder of one of them")
    (series_uid,) = counts
    if not series_uid:
        raise HeaderError(path, "its images have no SeriesInstanceUID", "export the series again")
    return series_uid, [_slice(name, about, path) for name, about in images]


def _is_dicom(handle: BinaryIO) -> bool:
    is_dicom = handle.read(MAGIC_AT + len(MAGIC))[MAGIC_AT:] == MAGIC
    handle.seek(0)
    return is_dicom


def _parse(handle: BinaryIO, name: str, path: Path, tags: list[str], *, pixels: bool = False) -> Any:
    _keep_values_to_ourselves()
    try:
        about = pydicom.dcmread(handle, stop_before_pixels=not pixels, specific_tags=tags)
        for tag in tags:  # values are parsed when they are asked for
            about.get(tag)
    except ScanError:
        raise
    except Exception as error:  # pydicom promises no kind of error for damaged bytes
        raise HeaderError(path, f"{name} cannot be parsed ({_words(error)})", "download the series again") from error
    return about


@cache
def _keep_values_to_ourselves() -> None:
    """pydicom would print what stood in a damaged field: what matters is checked here, and said without it."""
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


def _slice(name: str, about: Any, path: Path) -> _Slice:
    """One image's header, checked."""
    modality = str(about.get("Modality", ""))
    if modality != "CT":
        raise FormatError(path, f"{name} is of modality {modality[:16] or 'none'}, not CT", "give a CT series")
    if _number(about, "NumberOfFrames", 1.0, name, path) != 1:
        raise FormatError(path, f"{name} holds many frames (enhanced CT)", "store the series as single slices")
    bits = int(_number(about, "BitsAllocated", None, name, path))
    colour = _number(about, "SamplesPerPixel", 1.0, name, path) != 1
    if bits == 8 or colour:
        raise ElementTypeError(path, f"{name} holds 8-bit or colour pixels, not HU", "give the CT series itself")
    shown = str(about.get("PhotometricInterpretation", ""))
    if bits != 16 or shown != "MONOCHROME2":
        raise ElementTypeError(
            path, f"{name} has {bits}-bit pixels, {shown[:24] or 'of no kind'}", "give 16-bit MONOCHROME2 slices"
        )
    stored = int(_number(about, "BitsStored", 16.0, name, path))
    if not 8 < stored <= 16 or int(_number(about, "HighBit", stored - 1.0, name, path)) != stored - 1:
        raise ElementTypeError(path, f"{name} keeps its pixels in unusual bits", "export the series again")
    rows, cols = (int(_number(about, tag, None, name, path)) for tag in ("Rows", "Columns"))
    if not (0 < rows <= MAX_AXIS_VOXELS and 0 < cols <= MAX_AXIS_VOXELS):
        raise ScanGeometryError(path, f"{name} has {rows} x {cols} pixels", "export the series again")
    signed = int(_number(about, "PixelRepresentation", None, name, path)) == 1
    position = _numbers(about, "ImagePositionPatient", 3, name, path)
    axes = _numbers(about, "ImageOrientationPatient", 6, name, path).reshape(2, 3)
    spacing = _numbers(about, "PixelSpacing", 2, name, path)
    slope = _number(about, "RescaleSlope", None, name, path)
    if slope == 0:
        raise HeaderError(path, f"{name} has a RescaleSlope of 0", "export the series again")
    syntax = about.file_meta.get("TransferSyntaxUID")
    if not isinstance(syntax, UID):
        raise HeaderError(path, f"{name} names no transfer syntax", "export the series again")
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    return _Slice(
        name=name,
        rows=rows,
        cols=cols,
        kind=np.dtype(f"{order}{'i' if signed else 'u'}2"),
        bits=stored,
        slope=slope,
        intercept=_number(about, "RescaleIntercept", None, name, path),
        position_xyz=position,
        axes=axes,
        spacing=(float(spacing[0]), float(spacing[1])),
        syntax=syntax,
    )


def _number(about: Any, tag: str, default: float | None, name: str, path: Path) -> float:
    value = about.get(tag)
    if value is None or value == "":
        if default is None:
            kind = ScanGeometryError if tag == "PixelSpacing" else HeaderError
            raise kind(path, f"{name} has no {tag}", "export the series again")
        return default
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not np.isfinite(number) or abs(number) > 2**31:
        raise HeaderError(path, f"{name}: its {tag} is no number", "export the series again")
    return number


def _numbers(about: Any, tag: str, count: int, name: str, path: Path) -> npt.NDArray[np.float64]:
    value = about.get(tag)
    try:
        numbers = np.array([float(v) for v in value or ()], dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = np.empty(0)
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ScanGeometryError(
            path, f"{name}: its {tag} is not {count} finite numbers", "without it no voxel has a place; export it again"
        )
    return numbers


def _ordered_grid(slices: list[_Slice], path: Path) -> Grid:
    """Put the slices in order, in place, and say where they lie."""
    first = slices[0]
    for one in slices:
        for what, theirs, ours in (
            ("size", (one.rows, one.cols), (first.rows, first.cols)),
            ("pixel spacing", one.spacing, first.spacing),
        ):
            if theirs != ours:
                raise ScanGeometryError(
                    path, f"{first.name} and {one.name} differ in {what}", "give slices of one acquisition"
                )
        if np.abs(one.axes - first.axes).max() > MAX_TURN:
            raise ScanGeometryError(
                path, f"{first.name} and {one.name} lie in different directions", "give slices of one acquisition"
            )
    if len(slices) < 2:
        raise ScanGeometryError(path, "one slice is no volume", "give the whole series")
    if len(slices) * first.rows * first.cols > MAX_VOXELS:
        raise ScanGeometryError(path, f"more than {MAX_VOXELS} voxels", "give slices of one acquisition")
    normal = np.cross(first.axes[0], first.axes[1])
    slices.sort(key=lambda one: (float(one.position_xyz @ normal), one.name))
    places = np.array([one.position_xyz @ normal for one in slices])
    steps = np.diff(places)
    for before, after, step in zip(slices, slices[1:], steps):
        if step < SAME_MM:
            raise DuplicateSliceError(
                path, f"{before.name} and {after.name} lie at one place, {_at(before)}", "keep one of the two"
            )
    usual = float(np.median(steps))
    for before, after, step in zip(slices, slices[1:], steps):
        between = f"between {before.name} at {_at(before)} and {after.name} at {_at(after)}"
        if step > MISSING_FROM * usual:
            count = max(1, round(step / usual) - 1)
            raise MissingSliceError(
                path, f"{count} slice{'s are' if count > 1 else ' is'} missing {between}", "download the series again"
            )
        if abs(step - usual) > MAX_UNEVEN * usual:
            raise ScanGeometryError(
                path, f"slices are {usual:.4g} mm apart, but {step:.4g} mm {between}", "give evenly spaced slices"
            )
    way = slices[-1].position_xyz - slices[0].position_xyz
    sideways = np.linalg.norm(way - (way @ normal) * normal)
    if sideways > MAX_TILT * (places[-1] - places[0]):
        raise ScanGeometryError(
            path,
            f"the slices move {sideways:.4g} mm sideways (gantry tilt)",
            "resample the series to a right-angled grid",
        )
    between_slices = float(places[-1] - places[0]) / (len(slices) - 1)
    spacing = (first.spacing[1], first.spacing[0], between_slices)
    if not all(MIN_SPACING_MM <= mm <= MAX_SPACING_MM for mm in spacing):
        said = " ".join(f"{mm:g}" for mm in spacing)
        raise ScanGeometryError(
            path, f"spacing {said} mm is not in {MIN_SPACING_MM}..{MAX_SPACING_MM}", "check its unit: mm"
        )
    x, y, z = slices[0].position_xyz.tolist()
    try:
        return Grid(
            shape_irc=(len(slices), first.rows, first.cols),
            spacing_xyz=spacing,
            origin_xyz=(x, y, z),
            direction=tuple(
                (float(a), float(b), float(c)) for a, b, c in np.stack([first.axes[0], first.axes[1], normal], axis=1)
            ),
        )
    except GridError as error:
        raise ScanGeometryError(path, str(error), "export the series again") from error


def _values(files: _Files, one: _Slice, whole: bool) -> npt.NDArray[Any]:
    """One slice's values after rescaling, (row, col)."""
    if one.syntax not in UNCOMPRESSED:
        return _decoded(files, one)
    with files.open(one.name) as handle:
        about = _parse(handle, one.name, files.path, ["PixelData"], pixels=True)
    pixels = about.get("PixelData")
    expected = one.rows * one.cols * 2
    if not isinstance(pixels, bytes) or len(pixels) not in (expected, expected + expected % 2):
        there = len(pixels) if isinstance(pixels, bytes) else 0
        word = "short" if there < expected else "long"
        raise ByteCountError(
            files.path,
            f"{one.name} is too {word}: {there} bytes of pixels, the header says {expected}",
            "download the series again",
        )
    stored = np.frombuffer(pixels, dtype=one.kind, count=one.rows * one.cols).reshape(one.rows, one.cols)
    if one.bits < 16:
        # Bits above those stored may hold overlays: out with them, and the sign comes from the highest bit stored.
        left = 16 - one.bits
        stored = (stored.astype(one.kind.newbyteorder("=")) << left) >> left
    if whole:
        return stored.astype(np.int32) * int(one.slope) + int(one.intercept)
    return stored * one.slope + one.intercept


def _decoded(files: _Files, one: _Slice) -> npt.NDArray[Any]:
    """A compressed slice, decoded and rescaled by SimpleITK (GDCM), which reads files only."""
    with files.open(one.name) as handle:
        content = handle.read(MAX_FILE_BYTES)
    with tempfile.NamedTemporaryFile(suffix=".dcm") as copy:
        copy.write(content)
        copy.flush()
        try:
            reader = sitk.ImageFileReader()
            reader.SetImageIO("GDCMImageIO")
            reader.SetFileName(copy.name)
            values = sitk.GetArrayFromImage(reader.Execute())
        except RuntimeError as error:
            raise FormatError(
                files.path,
                f"{one.name} cannot be decoded ({one.syntax.name})",
                "decompress the series first, such as with gdcmconv --raw",
            ) from error
    if values.size != one.rows * one.cols:
        raise ByteCountError(files.path, f"{one.name} decodes to another size", "download the series again")
    return values.reshape(one.rows, one.cols)


def _at(one: _Slice) -> str:
    return f"z = {one.position_xyz[2]:g} mm"


def _words(error: Exception) -> str:
    # The kind of error only: a message may quote what stood in the file.
    return type(error).__name__
