"""What does the header of one DICOM file say, and is it a CT slice?

pydicom parses it; what it would guess, print or look away from is refused here. No value that could name a patient is
ever quoted, nor asked for but by `lungml.dicom.read_headers` and `read_series_and_headers`.
"""

from __future__ import annotations

import io
import re
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    LegacyConvertedEnhancedCTImageStorage,
    RTDoseStorage,
    SegmentationStorage,
)

from lungml.metaimage import MAX_AXIS_VOXELS
from lungml.scan_errors import (
    ByteCountError,
    ElementTypeError,
    FormatError,
    HeaderError,
    ScanError,
    ScanGeometryError,
)
from lungml.series_files import DAMAGED_MEMBER, MAX_FILE_BYTES

MAGIC, MAGIC_AT = b"DICM", 128
SUFFIXES = (".dcm", ".dicom", ".ima")
# Groups 2 and 8 come first in a DICOM file that lacks its preamble: little endian, element below 0x100.
BARE_STARTS = (b"\x02\x00", b"\x08\x00")
HEADER_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "Modality", "SeriesInstanceUID", "ImageType", "Rows", "Columns", "NumberOfFrames",
    "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "RescaleSlope", "RescaleIntercept", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "LossyImageCompression",
]  # fmt: skip
CT_CLASSES = {CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage}
# Objects made from a series, with rows and columns of their own, that may lie beside its slices.
DERIVED_CLASSES = {SegmentationStorage, RTDoseStorage}
FIRST_PIXELS = 0x7FE00008  # float and double pixels come before those that we read
ENDS_MARKED = {*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes}
LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit)  # whatever their fields say; of other syntaxes these say it
END_OF_PICTURE, PADDING = b"\xff\xd9", 16  # bytes that may come after it: one makes a fragment's length even
ITEM, END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One image's header, checked, and where its file lies.

    Attributes:
        name: of its file in the series.
        rows, cols: pixels.
        kind: dtype of the stored pixels, byte order included.
        bits: of a pixel's 16, those that count.
        slope, intercept: HU = stored * slope + intercept.
        position_xyz: mm, LPS, centre of the first pixel.
        axes: (2, 3) unit steps of the column and of the row index.
        spacing: mm between rows, between columns.
        syntax: how the pixels are stored.
        lossy: whether they were ever compressed with loss, as far as syntax and header say.
        header: as it was parsed.
    """

    name: str
    rows: int
    cols: int
    kind: np.dtype[Any]
    bits: int
    slope: float
    intercept: float
    position_xyz: npt.NDArray[np.float64]
    axes: npt.NDArray[np.float64]
    spacing: tuple[float, float]
    syntax: UID
    lossy: bool
    header: ImageHeader = field(repr=False)  # it may name a patient


@dataclass(frozen=True, eq=False)
class ImageHeader:
    """The fields of one image that were asked for, unchecked."""

    fields: Dataset
    syntax: UID

    @property
    def series_uid(self) -> str:
        """SeriesInstanceUID, empty when there is none; what is no UID may be a name, and is not to be repeated."""
        return str(self.fields.get("SeriesInstanceUID") or "")

    @property
    def modality(self) -> str:
        """A code such as CT or MR, else 'unknown'."""
        text = str(self.fields.get("Modality") or "")
        return text if re.fullmatch(r"[A-Z0-9_ ]{1,16}", text) else "unknown"

    @property
    def is_localizer(self) -> bool:
        """Whether it is a projection that a scan is planned on."""
        return "LOCALIZER" in (self.fields.get("ImageType") or ())


def is_dicom(handle: BinaryIO) -> bool:
    """Whether an open file carries DICOM's mark; it is left at its beginning."""
    marked = handle.read(MAGIC_AT + len(MAGIC))[MAGIC_AT:] == MAGIC
    handle.seek(0)
    return marked


def refuse_damaged(handle: BinaryIO, name: str, path: Path, suffixes: set[str]) -> None:
    """Refuse a file without DICOM's mark that was a slice once: passed over, it would be missed by nobody.

    A gap between two slices is seen, a lost first or last slice is not.

    Args:
        handle: at the file's beginning.
        name: of the file.
        path: the series.
        suffixes: those of the series' images; what is called like them and is no text was one of them.

    Raises:
        HeaderError: the file was a slice, or is one without preamble.
    """
    head = handle.read(MAGIC_AT + len(MAGIC))
    if head[:2] in BARE_STARTS and head[3:4] == b"\0":
        raise HeaderError(path, f"{name} is DICOM without its preamble", "store it again, such as with gdcmconv")
    suffix = PurePosixPath(name).suffix.lower()
    is_text = bool(head) and b"\0" not in head
    if suffix in SUFFIXES or (suffix in suffixes and not is_text):
        state = "no DICOM file, though it is called like one" if head else "empty"
        raise HeaderError(path, f"{name} is {state}", "download the series again, or take it out")


def parse(handle: BinaryIO, name: str, path: Path, tags: list[str], *, pixels: bool = False) -> tuple[Dataset, Dataset]:
    """Some of a DICOM file's fields, and its meta group.

    Without `pixels` the file is left where its pixels begin, unless it is deflated as a whole.

    Raises:
        ScanError: whatever the bytes are, this and no other error.
    """
    _keep_values_to_ourselves()

    def beyond_meta(tag: int, _vr: str | None, _length: int) -> bool:
        return tag >> 16 != 2

    def at_pixels(tag: int, _vr: str | None, _length: int) -> bool:
        return not pixels and tag >= FIRST_PIXELS

    try:
        handle.seek(MAGIC_AT + len(MAGIC))
        meta = read_dataset(handle, False, True, stop_when=beyond_meta)
        syntax = meta.get("TransferSyntaxUID")
        if not isinstance(syntax, UID):
            raise HeaderError(path, f"{name} names no transfer syntax", "export the series again")
        body = _inflated(handle, name, path) if syntax == DeflatedExplicitVRLittleEndian else handle
        implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
        wanted: list[BaseTag | int] = [Tag(tag) for tag in tags]
        about = read_dataset(body, implicit, little, stop_when=at_pixels, specific_tags=wanted)
        for tag in tags:  # values are parsed when they are asked for
            about.get(tag)
    except ScanError:
        raise
    except DAMAGED_MEMBER:  # said better by the one who opened it
        raise
    except Exception as error:  # pydicom promises no kind of error for damaged bytes, and its text may quote them
        kind = type(error).__name__
        raise HeaderError(path, f"{name} cannot be parsed ({kind})", "download the series again") from None
    return about, meta


def _inflated(handle: BinaryIO, name: str, path: Path) -> BinaryIO:
    """What follows the meta group of a deflated file, with a limit: a bomb is a thousand times its file."""
    stream = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
    plain = stream.decompress(handle.read(), MAX_FILE_BYTES)
    if not stream.eof:
        raise ByteCountError(path, f"{name} breaks off, or inflates to more than a slice", "download the series again")
    return io.BytesIO(plain)


@cache
def _keep_values_to_ourselves() -> None:
    """pydicom would print what stood in a damaged field: what matters is checked here, and said without it."""
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    pydicom.config.logger.setLevel("CRITICAL")
    warnings.filterwarnings("ignore", module=r"pydicom\.")


def read_image_header(handle: BinaryIO, name: str, path: Path, more: Sequence[str] = ()) -> ImageHeader | None:
    """The header of one DICOM file, None when it is no image: a report, a structure set, a segmentation, a DICOMDIR.

    Args:
        handle: at the file's beginning.
        name: of the file.
        path: the series.
        more: keywords of fields that are parsed beside `HEADER_TAGS`.

    Raises:
        ScanError: it cannot be parsed, or does not say what it is.
    """
    about, meta = parse(handle, name, path, [*HEADER_TAGS, *more])
    sop_class = str(about.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or "")
    if not sop_class:
        raise HeaderError(path, f"{name} does not say what it is (no SOPClassUID)", "download the series again")
    if "Rows" not in about:
        if sop_class in CT_CLASSES:  # it must not pass for a report
            raise HeaderError(path, f"{name} is a CT whose header breaks off", "download the series again")
        return None
    return None if sop_class in DERIVED_CLASSES else ImageHeader(fields=about, syntax=meta["TransferSyntaxUID"].value)


def is_uid(text: str) -> bool:
    """Digits and dots, 64 at most (DICOM PS3.5, 9.1)."""
    return bool(re.fullmatch(r"[0-9.]{1,64}", text)) and set(text) != {"."}


def check_slice(name: str, header: ImageHeader, path: Path) -> Slice:
    """One image's header, checked.

    Raises:
        ScanError: it is not a plain CT slice of 16 bits, or lacks what says where it lies and what its values mean.
    """
    about, syntax = header.fields, header.syntax
    if header.modality != "CT":
        raise FormatError(path, f"{name} is of modality {header.modality}, not CT", "give a CT series")
    if _number(about, "NumberOfFrames", 1.0, name, path) != 1:
        raise FormatError(path, f"{name} holds many frames (enhanced CT)", "store the series as single slices")
    bits, stored = _bits(about, name, path)
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
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    return Slice(
        name=name,
        rows=rows,
        cols=cols,
        kind=np.dtype(f"{order}{'i' if signed else 'u'}{bits // 8}"),
        bits=stored,
        slope=slope,
        intercept=_number(about, "RescaleIntercept", None, name, path),
        position_xyz=position,
        axes=axes,
        spacing=(float(spacing[0]), float(spacing[1])),
        syntax=syntax,
        lossy=syntax in LOSSY or about.get("LossyImageCompression") == "01",
        header=header,
    )


def _bits(about: Dataset, name: str, path: Path) -> tuple[int, int]:
    """A pixel's bits, and how many of them count."""
    bits = int(_number(about, "BitsAllocated", None, name, path))
    colour = _number(about, "SamplesPerPixel", 1.0, name, path) != 1
    if bits == 8 or colour:
        raise ElementTypeError(path, f"{name} holds 8-bit or colour pixels, not HU", "give the CT series itself")
    shown = str(about.get("PhotometricInterpretation") or "")
    if bits != 16 or shown != "MONOCHROME2":
        shown = shown if re.fullmatch(r"[A-Z0-9_ ]{1,16}", shown) else "of no known kind"
        raise ElementTypeError(path, f"{name} has {bits}-bit pixels, {shown}", "give 16-bit MONOCHROME2 slices")
    stored = int(_number(about, "BitsStored", 16.0, name, path))
    if not 8 < stored <= 16 or int(_number(about, "HighBit", stored - 1.0, name, path)) != stored - 1:
        raise ElementTypeError(path, f"{name} keeps its pixels in unusual bits", "export the series again")
    return bits, stored


def whole_fragments(content: bytes, begins: int, syntax: UID) -> bool:
    """Whether the compressed pixels that begin at a byte end as they must (DICOM PS3.5, A.4).

    A decoder fills what is missing with zeros and says nothing.

    Args:
        content: of the file.
        begins: where the element PixelData does.
        syntax: the file's; a picture of the JPEG family ends with a mark of its own.
    """
    place = begins + 12  # tag, "OB", two bytes of nothing, an undefined length
    fragment = b""
    while content[place : place + 4] == ITEM:
        length = int.from_bytes(content[place + 4 : place + 8], "little")
        fragment = content[place + 8 : place + 8 + length]
        place += 8 + length
    ended = syntax not in ENDS_MARKED or END_OF_PICTURE in fragment[-PADDING:]
    return ended and content[place : place + 8] == END + bytes(4)


def _number(about: Dataset, tag: str, default: float | None, name: str, path: Path) -> float:
    value = about.get(tag)
    if value is None or value == "":
        if default is None:
            raise HeaderError(path, f"{name} has no {tag}", "export the series again")
        return default
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not np.isfinite(number) or abs(number) > 2**31:
        raise HeaderError(path, f"{name}: its {tag} is no number", "export the series again")
    return number


def _numbers(about: Dataset, tag: str, count: int, name: str, path: Path) -> npt.NDArray[np.float64]:
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
