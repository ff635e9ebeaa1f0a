"""What does a DICOM series hold, in a folder or a zip, and is every slice of it there?

File names, extensions and order mean nothing: slices are put in order by their positions in the patient. Nothing of a
patient but the series_uid leaves this module, but for what `read_headers` and `read_series_and_headers` are asked for.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
)

from lungml.dicom_slice import (
    SUFFIXES,
    ImageHeader,
    Slice,
    check_slice,
    is_dicom,
    is_uid,
    parse,
    read_image_header,
    refuse_damaged,
    whole_fragments,
)
from lungml.files import walk
from lungml.geometry import Grid, GridError
from lungml.metaimage import MAX_SPACING_MM, MAX_VOXELS, MIN_SPACING_MM
from lungml.patients import patient_mark
from lungml.plausibility import as_int16
from lungml.scan_errors import (
    ByteCountError,
    DuplicateScanError,
    DuplicateSliceError,
    FormatError,
    HeaderError,
    MissingDataError,
    MissingSliceError,
    ScanError,
    ScanGeometryError,
    SeriesUidError,
    SeveralSeriesError,
    TiltError,
    UnevenSlicesError,
)
from lungml.series_files import SeriesFiles, opened

UNCOMPRESSED = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)
STDERR, WRONG_DECODER = 2, b"Unsupported JPEG data precision 12\n"
_STDERR = threading.Lock()  # there is one for all threads
SERIES_LISTED = 5  # of several series in one folder
SAME_MM = 1e-3  # positions closer than this are one position
# How far a slice may lie from its place in an even grid: positions are rounded, by some scanners to 0.1 mm.
UNEVEN_MM, UNEVEN = 0.11, 0.05  # mm, or a part of the spacing when that is more
MISSING_FROM = 1.5  # times the spacing: a slice is missing from here on
MAX_SIDEWAYS = 0.25  # pixels off the line through the first slice: no voxel is placed worse than that
MAX_TURN = 1e-4  # between the direction cosines of two slices
# What an object made from a series takes over from it, DICOM PS3.3: what the standard demands of a patient and a study
# (and who issued the patient's id, by which archives file), and which slice is where. All else stays with the source.
PATIENT_FIELDS = (
    "SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
    "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence", "StudyInstanceUID",
    "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber", "StudyDescription",
)  # fmt: skip
SLICE_FIELDS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "ImageType", "FrameOfReferenceUID",
    "PositionReferenceIndicator", "Rows", "Columns", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "SliceThickness", "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
    "ContrastBolusAgent",  # taken over by none: what a person is warned of
)  # fmt: skip
OBJECT_FIELDS = (*PATIENT_FIELDS, *SLICE_FIELDS)


def read_series(path: Path) -> tuple[str, npt.NDArray[np.int16], Grid]:
    """Read the one CT series of a folder (and its folders) or of a zip.

    What is no DICOM image (XML, DICOMDIR, structured reports, segmentations) is passed over, and so are localizers
    beside slices. What was a slice and is damaged is refused, not passed over.

    Returns:
        the series_uid (SeriesInstanceUID), the values after rescaling, (index, row, col) int16, slices in the order
        of their positions along the slices' normal, and the grid.

    Raises:
        ScanError: whatever the bytes are, this and no other error.
    """
    with opened(path) as files:
        series_uid, slices, grid = _ordered(files)
        return series_uid, _volume(files, slices, grid), grid


def read_series_and_headers(path: Path) -> tuple[str, npt.NDArray[np.int16], Grid, list[Dataset]]:
    """Read a series as `read_series` does, and what `read_headers` gives of the very files that its voxels came from.

    Returns:
        the series_uid, the values in HU, (index, row, col) int16, the grid, and one dataset a slice, in their order.

    Raises:
        ScanError: whatever the bytes are, this and no other error.
    """
    with opened(path) as files:
        series_uid, slices, grid = _ordered(files, OBJECT_FIELDS)
        return series_uid, _volume(files, slices, grid), grid, [_header(one) for one in slices]


def read_grid(path: Path) -> Grid:
    """Where the voxels of a series lie, by its headers alone.

    Raises:
        ScanError: as `read_series`, but for the pixels.
    """
    with opened(path) as files:
        return _ordered(files)[2]


def read_headers(path: Path) -> list[Dataset]:
    """What objects made from a series, such as a segmentation of it, need of its headers.

    These, and nothing else that we read, name a patient: they are for `lungml.reading.dicom_objects`, whose files must
    carry the patient and study of their source, and go nowhere else, neither into a log nor onto a page.

    Returns:
        one dataset a slice, without pixels, in the order of `read_series`, with those of `PATIENT_FIELDS` and
        `SLICE_FIELDS` that it has, unchecked but for what `read_series` checks. Whose pixels cannot but have been
        compressed with loss says so in LossyImageCompression.

    Raises:
        ScanError: as `read_series`, but for the pixels.
    """
    with opened(path) as files:
        return [_header(one) for one in _ordered(files, OBJECT_FIELDS)[1]]


def _ordered(files: SeriesFiles, more: Sequence[str] = ()) -> tuple[str, list[Slice], Grid]:
    """The series_uid, the slices in the order of their positions, `more` fields of them parsed too, and their grid."""
    series_uid, slices = _slices(files, more)
    slices, grid = _order(slices, files.path)
    return series_uid, slices, grid


def _volume(files: SeriesFiles, slices: Sequence[Slice], grid: Grid) -> npt.NDArray[np.int16]:
    hu = np.empty(grid.shape_irc, dtype=np.int16)
    for index, one in enumerate(slices):
        values = _values(files, one)
        if one.lossy and values.dtype.kind == "f":  # to the nearest HU: what was compressed knows no tenths of one
            np.rint(values, out=values)
        hu[index] = as_int16(values, files.path, f"{one.name}: ")
    return hu


def _header(one: Slice) -> Dataset:
    """What of a slice's header an object takes over; all else goes."""
    about = one.header.fields
    for element in list(about):
        if element.keyword not in OBJECT_FIELDS:
            del about[element.tag]
    if one.lossy:
        about.LossyImageCompression = "01"
    return about


def find_dicom_series(folder: Path) -> dict[str, Path]:
    """Find the CT series of a tree in LIDC-IDRI's layout: each in a folder of its own, or in a zip.

    One header of each folder is read; what else lies in it is seen by `read_series`. Other modalities are passed over,
    and so is a zip that cannot be read. Links to folders are followed, each real folder once.

    Returns:
        series_uid -> its folder or zip, sorted by series_uid.

    Raises:
        MissingDataError: `folder` is none.
        DuplicateScanError: two places hold one series.
    """
    if not folder.is_dir():
        raise MissingDataError(folder, "no such folder", "name the folder that holds the DICOM series")
    found: dict[str, Path] = {}
    for here, _, names in walk(folder):
        for path in [here, *(here / name for name in names if name.lower().endswith(".zip"))]:
            series_uid = _first_ct(path)
            if series_uid is None:
                continue
            if series_uid in found:
                raise DuplicateScanError(found[series_uid], f"{path} holds the same series", "keep one of the two")
            found[series_uid] = path
    return dict(sorted(found.items()))


def patient_digest(path: Path) -> str:
    """An anonymous mark of the patient whose series lies at `path`: equal for equal PatientIDs, empty without one."""
    with opened(path, deep=False) as files:
        for name in files.names:
            with files.open(name) as handle:
                if not is_dicom(handle):
                    continue
                about, _ = parse(handle, name, path, ["PatientID"])
            if mark := patient_mark(str(about.get("PatientID") or "")):
                return mark
    return ""


def dicom_files(path: Path) -> tuple[Path, ...]:
    """The files whose bytes make a series: the zip, or the folder's DICOM files, sorted; damaged ones too.

    Raises:
        ScanError: the folder cannot be listed, or a link leads out of it.
    """
    if not path.is_dir():
        return (path,)
    with opened(path) as files:
        found = []
        for name in files.names:
            with files.open(name) as handle:
                if is_dicom(handle) or name.lower().endswith(SUFFIXES):
                    found.append(path / name)
    return tuple(sorted(found))


def _first_ct(path: Path) -> str | None:
    """The series_uid of the first image at `path`, if that is a CT's; a file that cannot be read does not hide it."""
    try:
        with opened(path, deep=False) as files:
            for name in files.names:
                try:
                    with files.open(name) as handle:
                        header = read_image_header(handle, name, path) if is_dicom(handle) else None
                except ScanError:
                    continue
                if header is not None and is_uid(header.series_uid):
                    return header.series_uid if header.modality == "CT" else None
    except ScanError:
        return None
    return None


def _slices(files: SeriesFiles, more: Sequence[str]) -> tuple[str, list[Slice]]:
    """The one series' images; `more` of their fields are parsed than we look at."""
    path = files.path
    images: list[tuple[str, ImageHeader]] = []
    others = []
    for name in files.names:
        with files.open(name) as handle:
            if not is_dicom(handle):
                others.append(name)
            elif (header := read_image_header(handle, name, path, more)) is not None:
                images.append((name, header))
    suffixes = {PurePosixPath(name).suffix.lower() for name, _ in images}
    for name in others:
        with files.open(name) as handle:
            refuse_damaged(handle, name, path, suffixes)
    if not images:
        raise FormatError(path, "no DICOM image in it", "name the folder or zip that holds the series")
    images = [(name, header) for name, header in images if not header.is_localizer]
    if not images:
        raise FormatError(path, "nothing but localizers in it", "name the folder or zip that holds the slices")
    series_uid = _one_series([header for _, header in images], path)
    return series_uid, [check_slice(name, header, path) for name, header in images]


def _one_series(headers: Sequence[ImageHeader], path: Path) -> str:
    counts = Counter((header.series_uid, header.modality) for header in headers)
    if len({uid for uid, _ in counts}) > 1:
        listed = [
            f"{uid if is_uid(uid) else 'one without a uid'} ({count} {modality} images)"
            for (uid, modality), count in sorted(counts.items())
        ]
        more = f" and {len(listed) - SERIES_LISTED} more" if len(listed) > SERIES_LISTED else ""
        raise SeveralSeriesError(
            path,
            f"{len(listed)} series: {', '.join(listed[:SERIES_LISTED])}{more}",
            "name the folder of one of them, or keep one here",
        )
    series_uid = headers[0].series_uid
    if not series_uid:
        raise HeaderError(path, "its images have no SeriesInstanceUID", "export the series again")
    if not is_uid(series_uid):
        raise SeriesUidError(path, "its SeriesInstanceUID is not digits and dots, 64 at most", "export it again")
    return series_uid


def _order(slices: Sequence[Slice], path: Path) -> tuple[list[Slice], Grid]:
    """The slices in the order of their positions, and the grid that they make."""
    _check_alike(slices, path)
    first = slices[0]
    if len(slices) < 2:
        raise ScanGeometryError(path, "one slice is no volume", "give the whole series")
    if len(slices) * first.rows * first.cols > MAX_VOXELS:
        raise ScanGeometryError(path, f"more than {MAX_VOXELS} voxels", "give slices of one acquisition")
    normal = np.cross(first.axes[0], first.axes[1])
    slices = sorted(slices, key=lambda one: (float(one.position_xyz @ normal), one.name))
    places = np.array([one.position_xyz @ normal for one in slices])
    between_slices = float(places[-1] - places[0]) / (len(slices) - 1)
    spacing = (first.spacing[1], first.spacing[0], between_slices)
    _check_steps(slices, places, path)
    _check_line(slices, places, normal, path)
    if not all(MIN_SPACING_MM <= mm <= MAX_SPACING_MM for mm in spacing):
        said = " ".join(f"{mm:g}" for mm in spacing)
        raise ScanGeometryError(
            path, f"spacing {said} mm is not in {MIN_SPACING_MM}..{MAX_SPACING_MM}", "check its unit: mm"
        )
    x, y, z = slices[0].position_xyz.tolist()
    try:
        grid = Grid(
            shape_irc=(len(slices), first.rows, first.cols),
            spacing_xyz=spacing,
            origin_xyz=(x, y, z),
            direction=tuple(
                (float(a), float(b), float(c)) for a, b, c in np.stack([first.axes[0], first.axes[1], normal], axis=1)
            ),
        )
    except GridError as error:
        raise ScanGeometryError(path, str(error), "export the series again") from error
    return slices, grid


def _check_alike(slices: Sequence[Slice], path: Path) -> None:
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


def _check_steps(slices: Sequence[Slice], places: npt.NDArray[np.float64], path: Path) -> None:
    """Every slice once, none missing, all at even distances: step by step and over the whole way."""
    steps = np.diff(places)
    for before, after, step in zip(slices, slices[1:], steps):
        if step < SAME_MM:
            raise DuplicateSliceError(
                path, f"{before.name} and {after.name} lie at one place, {_at(before)}", "keep one of the two"
            )
    usual = float(np.sort(steps)[(len(steps) - 1) // 2])  # of two middle ones the smaller: it has no gap
    allowed = max(UNEVEN_MM, UNEVEN * usual)
    for before, after, step in zip(slices, slices[1:], steps):
        between = f"between {before.name} at {_at(before)} and {after.name} at {_at(after)}"
        if step > MISSING_FROM * usual:
            count = max(1, round(step / usual) - 1)
            raise MissingSliceError(
                path, f"{count} slice{'s are' if count > 1 else ' is'} missing {between}", "download the series again"
            )
        if abs(step - usual) > allowed:
            raise UnevenSlicesError(
                path, f"slices are {usual:.4g} mm apart, but {step:.4g} mm {between}", "give evenly spaced slices"
            )
    # Small differences add up: a grid with one spacing would put the middle slices somewhere else.
    off = np.abs(places - np.linspace(places[0], places[-1], len(places)))
    worst = int(off.argmax())
    if off[worst] > allowed:
        raise UnevenSlicesError(
            path,
            f"{slices[worst].name} at {_at(slices[worst])} lies {off[worst]:.3g} mm from its place among even slices",
            "give evenly spaced slices",
        )


def _check_line(
    slices: Sequence[Slice], places: npt.NDArray[np.float64], normal: npt.NDArray[np.float64], path: Path
) -> None:
    """Every slice straight above the first one."""
    offsets = np.array([one.position_xyz for one in slices]) - slices[0].position_xyz
    beside = np.linalg.norm(offsets - np.outer(places - places[0], normal), axis=1)
    worst = int(beside.argmax())
    if beside[worst] <= MAX_SIDEWAYS * min(slices[0].spacing):
        return
    if worst == len(slices) - 1:
        raise TiltError(
            path,
            f"the slices move {beside[worst]:.4g} mm sideways (gantry tilt)",
            "resample the series to a right-angled grid",
        )
    raise ScanGeometryError(
        path, f"{slices[worst].name} lies {beside[worst]:.4g} mm beside the others", "give slices of one acquisition"
    )


def _values(files: SeriesFiles, one: Slice) -> npt.NDArray[Any]:
    """One slice's values after rescaling, (row, col); whole numbers stay exact."""
    if one.syntax not in UNCOMPRESSED:
        return _decoded(files, one)
    with files.open(one.name) as handle:
        about, _ = parse(handle, one.name, files.path, ["SOPInstanceUID", "PixelData"], pixels=True)
    _refuse_another(about, files, one)
    pixels = about.get("PixelData")
    expected = one.rows * one.cols * 2
    if not isinstance(pixels, bytes) or len(pixels) != expected:
        there = len(pixels) if isinstance(pixels, bytes) else 0
        word = "short" if there < expected else "long"
        raise ByteCountError(
            files.path,
            f"{one.name} is too {word}: {there} bytes of pixels, the header says {expected}",
            "download the series again",
        )
    stored = np.frombuffer(pixels, dtype=one.kind).reshape(one.rows, one.cols)
    if one.bits < 16:
        # Bits above those stored may hold overlays: out with them, and the sign comes from the highest bit stored.
        left = 16 - one.bits
        stored = (stored.astype(one.kind.newbyteorder("=")) << left) >> left
    if one.slope != int(one.slope) or one.intercept != int(one.intercept):
        return stored * one.slope + one.intercept
    if one.slope == 1 and abs(one.intercept) < 2**30:
        return stored.astype(np.int32) + int(one.intercept)
    return stored.astype(np.int64) * int(one.slope) + int(one.intercept)


def _decoded(files: SeriesFiles, one: Slice) -> npt.NDArray[Any]:
    """A compressed slice, decoded and rescaled by SimpleITK (GDCM)."""
    with files.open(one.name) as handle:
        about, _ = parse(handle, one.name, files.path, ["SOPInstanceUID"])  # stops where the pixels begin
        begins = handle.tell()
        handle.seek(0)
        content = handle.read()
    _refuse_another(about, files, one)
    if not whole_fragments(content, begins, one.syntax):
        raise ByteCountError(files.path, f"{one.name} breaks off in its pixels", "download the series again")
    try:
        with _file_of(content) as name, _quiet() if one.syntax == JPEGExtended12Bit else nullcontext():
            reader = sitk.ImageFileReader()
            reader.SetImageIO("GDCMImageIO")
            reader.SetFileName(name)
            values = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError:
        raise FormatError(
            files.path,
            f"{one.name} cannot be decoded ({one.syntax.name})",
            "decompress the series first, such as with gdcmconv --raw",
        ) from None
    if values.size != one.rows * one.cols:
        raise ByteCountError(files.path, f"{one.name} decodes to another size", "download the series again")
    return values.reshape(one.rows, one.cols)


def _refuse_another(about: Dataset, files: SeriesFiles, one: Slice) -> None:
    """Refuse the pixels of another slice than the header's: what is made of both would refer to neither."""
    if about.get("SOPInstanceUID") != one.header.fields.get("SOPInstanceUID"):
        raise FormatError(
            files.path, f"{one.name} was replaced while it was read", "wait until nothing changes there, then try again"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep off the terminal what GDCM says of each slice of 12 bits before it takes the decoder that can read it.

    It writes to the process's own descriptor, past Python. What else is written there meanwhile comes after.
    """
    if not hasattr(os, "memfd_create") or sys.__stderr__ is None:
        yield
        return
    with _STDERR, os.fdopen(os.memfd_create("stderr"), "w+b") as said:
        usual = os.dup(STDERR)
        os.dup2(said.fileno(), STDERR)
        try:
            yield
        finally:
            os.dup2(usual, STDERR)
            os.close(usual)
            said.seek(0)
            if rest := b"".join(line for line in said if line != WRONG_DECODER):
                os.write(STDERR, rest)


@contextmanager
def _file_of(content: bytes) -> Iterator[str]:
    """A name under which GDCM, which reads files only, finds these bytes: in memory where the system can do that."""
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("slice"), "wb") as memory:
            memory.write(content)
            memory.flush()
            yield f"/proc/self/fd/{memory.fileno()}"
        return
    with tempfile.NamedTemporaryFile(suffix=".dcm") as copy:
        copy.write(content)
        copy.flush()
        yield copy.name


def _at(one: Slice) -> str:
    return f"z = {one.position_xyz[2]:g} mm"
