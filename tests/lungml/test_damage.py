"""The damage matrix: whatever is wrong with a scan, `read_scan` says it in one line, with what to do.

One line a case. The second test shows which of them SimpleITK reads without an error.
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import MPEG2MPML, DeflatedExplicitVRLittleEndian, RLELossless, SecondaryCaptureImageStorage
from scipy.spatial.transform import Rotation

from lungml import ct
from lungml.ct import read_scan
from tests.lungml.test_ct import PACKED, RAW, chest
from tests.lungml.test_ct import write as write_mhd
from tests.lungml.test_dicom import UID, save, series, slice_of, zipped
from tests.lungml.test_nifti import write as write_nifti

Make = Callable[[Path], Path]


def touched(path: Path, content: bytes = b"") -> Path:
    path.write_bytes(content)
    return path


def mhd(data: bytes | None, **change: str | None) -> Make:
    return lambda folder: write_mhd(folder, data, **change)


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.raw")
    return write_mhd(folder, ElementDataFile="pipe.raw")


NOISE = np.random.default_rng(0).normal(-300, 400, (8, 16, 16)).astype("<i2")
NOTHING = np.random.default_rng(0).normal(-1000, 20, (8, 16, 16)).astype("<i2")
NOTHING[4, 8, 8] = 1000
NO_AIR = np.random.default_rng(0).normal(1064, 20, (8, 16, 16)).astype("<i2")
NO_AIR[:, :4] = -2000
HALVES = (chest() / 2).astype("<f4").tobytes()


def gap(folder: Path) -> Path:
    (series(folder) / "1.dcm").unlink()  # index 2
    return folder


def one_changed(**change: Any) -> Make:
    def make(folder: Path) -> Path:
        series(folder)
        save(slice_of(2, **change), folder / "1.dcm")
        return folder

    return make


def all_changed(**change: Any) -> Make:
    return lambda folder: series(folder, **change)


def extra(index: int = 2, name: str = "extra.dcm", **change: Any) -> Make:
    def make(folder: Path) -> Path:
        save(slice_of(index, **change), series(folder) / name)
        return folder

    return make


def cut_short(folder: Path) -> Path:
    path = series(folder) / "1.dcm"
    path.write_bytes(path.read_bytes()[:-20])
    return folder


def link_out(folder: Path) -> Path:
    (series(folder) / "1.dcm").rename(folder.parent / "away.dcm")
    (folder / "1.dcm").symlink_to(folder.parent / "away.dcm")
    return folder


def zip_with(name: str, content: bytes = b"x") -> Make:
    def make(folder: Path) -> Path:
        path = zipped(series(folder))
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, content)
        return path

    return make


def lying_zip(folder: Path) -> Path:
    """Its last member says that 2^29 bytes are in it."""
    path = zip_with("big", bytes(1000))(folder)
    content = bytearray(path.read_bytes())
    entry = content.rfind(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = (2**29).to_bytes(4, "little")
    return touched(path, bytes(content))


def encrypted(folder: Path) -> Path:
    path = zipped(series(folder))
    content = bytearray(path.read_bytes())
    content[content.find(b"PK\x01\x02") + 8] |= 1
    return touched(path, bytes(content))


def twice_zipped(folder: Path) -> Path:
    path = zip_with("patient/1.dcx")(folder)
    return touched(path, path.read_bytes().replace(b"1.dcx", b"1.dcm"))


def damaged_lzma(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.write(series(folder) / "0.dcm", "0.dcm")
    content = bytearray(path.read_bytes())
    content[60:90] = b"U" * 30
    return touched(path, bytes(content))


def zip_in_zip(folder: Path) -> Path:
    path = folder.with_name("outer.zip")
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(zipped(series(folder)), "inner.zip")
    return path


def damaged_zip(folder: Path) -> Path:
    path = zipped(series(folder))
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(content)
    return path


def no_zip(folder: Path) -> Path:
    folder.with_suffix(".zip").write_bytes(b"PK nothing")
    return folder.with_suffix(".zip")


def pipe_called_zip(folder: Path) -> Path:
    os.mkfifo(folder.with_suffix(".zip"))
    return folder.with_suffix(".zip")


def without(*indices: int) -> Make:
    def make(folder: Path) -> Path:
        series(folder)
        for index in indices:
            (folder / f"{index * 3 % 5}.dcm").unlink()
        return folder

    return make


def last_becomes(change: Callable[[bytes], bytes]) -> Make:
    """Slice 4, in 2.dcm: without it the four others are an even series."""

    def make(folder: Path) -> Path:
        path = series(folder) / "2.dcm"
        path.write_bytes(change(path.read_bytes()))
        return folder

    return make


def dead_link(folder: Path) -> Path:
    path = series(folder) / "2.dcm"
    path.unlink()
    path.symlink_to(folder / "none")
    return folder


def drifting(folder: Path) -> Path:
    """Steps of 2.45 and then 2.55 mm: each is nearly 2.5, the middle slice lies 0.5 mm from where it should."""
    for index, z in enumerate(np.cumsum([2.45] * 10 + [2.55] * 10)):
        save(slice_of(index % 5, ImagePositionPatient=[0, 0, float(f"{z:.9g}")]), folder / f"{index}.dcm")
    return folder


def sixty_series(folder: Path) -> Path:
    for index in range(60):
        save(slice_of(index % 5, SeriesInstanceUID=f"{UID}.{index}"), folder / f"{index}.dcm")
    return folder


def packed(change: Callable[[bytes], bytes]) -> Make:
    """One slice in RLE, then changed."""

    def make(folder: Path) -> Path:
        made = slice_of(2, BitsStored=16, HighBit=15)
        made.compress(RLELossless)
        save(made, series(folder) / "1.dcm")
        content = (folder / "1.dcm").read_bytes()
        (folder / "1.dcm").write_bytes(change(content))
        return folder

    return make


def garbled(content: bytes) -> bytes:
    return content[:-90] + b"U" * 82 + content[-8:]


def one_named(syntax: str) -> Make:
    """One slice in RLE that says to be of another transfer syntax."""

    def make(folder: Path) -> Path:
        packed(lambda content: content)(folder)
        made = pydicom.dcmread(folder / "1.dcm")
        made.file_meta.TransferSyntaxUID = syntax
        save(made, folder / "1.dcm")
        return folder

    return make


def deflated_bomb(folder: Path) -> Path:
    content = io.BytesIO()
    pydicom.dcmwrite(content, slice_of(2, syntax=DeflatedExplicitVRLittleEndian), enforce_file_format=True)
    plain = content.getvalue()
    begins = 144 + int.from_bytes(plain[140:144], "little")
    stream = zlib.compressobj(1, wbits=-15)
    bomb = b"".join(stream.compress(bytes(2**22)) for _ in range(65))  # 260 MiB
    (series(folder) / "1.dcm").write_bytes(plain[:begins] + bomb + stream.flush())
    return folder


TURNED = Rotation.from_euler("x", 5, degrees=True).as_matrix()
RGB = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}
ASIDE = {"ImagePositionPatient": [29.5, 30.0, -335.25]}
SCREENSHOT = {"SOPClassUID": SecondaryCaptureImageStorage, "SeriesInstanceUID": UID + ".9"}
SIZES = {"Rows": 4, "PixelData": bytes(4 * 8 * 2)}


def cut(folder: Path, by: int) -> Path:
    path = write_nifti(folder)
    content = path.read_bytes()
    path.write_bytes(content[:by] if by < 0 else content + bytes(by))
    return path


def changed(**change: Any) -> Callable[[Path], Path]:
    return lambda folder: write_nifti(folder, **change)


def packed_wrongly(folder: Path) -> Path:
    path = write_nifti(folder, ".nii.gz")
    path.write_bytes(path.read_bytes()[:-9])
    return path


def packed_twice(folder: Path) -> Path:
    path = write_nifti(folder, ".nii.gz")
    path.write_bytes(path.read_bytes() + path.read_bytes())
    return path


def misnamed(folder: Path) -> Path:
    return write_nifti(folder).rename(folder / "1.2.3.nii.gz")


def renamed(name: str) -> Callable[[Path], Path]:
    return lambda folder: write_nifti(folder).rename(folder / name)


def sparse(folder: Path) -> Path:
    path = write_nifti(folder)
    os.truncate(path, 2**40)
    return path


def gz_bomb(folder: Path) -> Path:
    return touched(folder / "a.nii.gz", gzip.compress(write_nifti(folder).read_bytes() + bytes(2**24), 1))


# At the farthest corner, 5 columns and 4 rows away, the two differences cancel out, at other corners they do not.
TURNED_SFORM = {"srow_z": [0.016, -0.02, 2.5, -340]}


# fmt: off
DAMAGE: dict[str, tuple[Make, type[ct.ScanError], str]] = {
    "mhd: short raw": (mhd(RAW[:-2]), ct.ByteCountError, "too short: 118 bytes, the header says 120"),
    "mhd: long raw": (mhd(RAW + b"\0"), ct.ByteCountError, "too long"),
    "mhd: empty raw": (mhd(b""), ct.ByteCountError, "too short: 0 bytes"),
    "mhd: broken zraw": (mhd(zlib.compress(RAW)[:-6], **PACKED), ct.ByteCountError, "breaks off"),
    "mhd: empty zraw": (mhd(b"", **PACKED), ct.ByteCountError, "breaks off after 0 of 120"),
    "mhd: short zraw": (mhd(zlib.compress(RAW[:-2]), **PACKED), ct.ByteCountError, "too short: 118 decompressed"),
    "mhd: long zraw": (mhd(zlib.compress(RAW + b"\0"), **PACKED), ct.ByteCountError, "more than the 120 bytes"),
    "mhd: zraw with more behind": (mhd(zlib.compress(RAW) + b"x", **PACKED), ct.ByteCountError, "goes on"),
    "mhd: zraw of noise": (mhd(b"no zlib at all", **PACKED), ct.ByteCountError, "not whole zlib data"),
    "mhd: zraw bomb": (mhd(zlib.compress(bytes(2**26)), **PACKED), ct.ByteCountError, "more than the 120 bytes"),
    "mhd: 8 bit": (mhd(RAW[:60], ElementType="MET_UCHAR"), ct.ElementTypeError, "8-bit"),
    "mhd: unsigned": (mhd(RAW, ElementType="MET_USHORT"), ct.ElementTypeError, "MET_USHORT"),
    "mhd: colour": (mhd(RAW * 3, ElementNumberOfChannels="3"), ct.HeaderError, "ElementNumberOfChannels"),
    "mhd: 2D": (mhd(RAW, NDims="2", DimSize="5 12"), ct.ScanGeometryError, "a CT has 3"),
    "mhd: 4D": (mhd(RAW, NDims="4"), ct.ScanGeometryError, "a CT has 3"),
    "mhd: no slices": (mhd(RAW, DimSize="5 4 0"), ct.ScanGeometryError, "voxels"),
    "mhd: too wide": (mhd(RAW, DimSize="5000 4 3"), ct.ScanGeometryError, "voxels"),
    "mhd: terabytes": (mhd(RAW, DimSize="4096 4096 4096"), ct.ScanGeometryError, "voxels"),
    "mhd: absurd number": (mhd(RAW, DimSize="9" * 5000 + " 4 3"), ct.HeaderError, "whole number"),
    "mhd: two sizes": (mhd(RAW, DimSize="5 4"), ct.HeaderError, "3 whole"),
    "mhd: no spacing": (mhd(RAW, ElementSpacing=None), ct.ScanGeometryError, "no ElementSpacing"),
    "mhd: zero spacing": (mhd(RAW, ElementSpacing="0.7 0 2.5"), ct.ScanGeometryError, "spacing"),
    "mhd: nan spacing": (mhd(RAW, ElementSpacing="0.7 nan 2.5"), ct.ScanGeometryError, "finite"),
    "mhd: spacing in m": (mhd(RAW, ElementSpacing="0.0007 0.0007 0.0025"), ct.ScanGeometryError, "unit"),
    "mhd: spacing in um": (mhd(RAW, ElementSpacing="700 700 2500"), ct.ScanGeometryError, "unit"),
    "mhd: units": (mhd(RAW, DistanceUnits="um"), ct.HeaderError, "DistanceUnits"),
    "mhd: infinite origin": (mhd(RAW, Offset="0 0 1e999"), ct.ScanGeometryError, "finite"),
    "mhd: no origin": (mhd(RAW, Offset=None), ct.ScanGeometryError, "no Offset"),
    "mhd: no matrix": (mhd(RAW, TransformMatrix=None), ct.ScanGeometryError, "no TransformMatrix"),
    "mhd: shear": (mhd(RAW, TransformMatrix="1 0.1 0 0 1 0 0 0 1"), ct.ScanGeometryError, "orthonormal"),
    "mhd: singular": (mhd(RAW, TransformMatrix="1 0 0 1 0 0 0 0 1"), ct.ScanGeometryError, "orthonormal"),
    "mhd: two origins": (mhd(RAW, Position="0 0 0"), ct.HeaderError, "second time"),
    "mhd: ascii voxels": (mhd(RAW, BinaryData="False"), ct.HeaderError, "BinaryData"),
    "mhd: skipped bytes": (mhd(RAW, HeaderSize="-1"), ct.HeaderError, "HeaderSize"),
    "mhd: intercept": (mhd(RAW, ElementToIntensityFunctionOffset="-1024"), ct.HeaderError, "Intensity"),
    "mhd: no bool": (mhd(RAW, CompressedData="maybe"), ct.HeaderError, "neither True nor False"),
    "mhd: no data file": (mhd(RAW, ElementDataFile=None), ct.HeaderError, "no ElementDataFile"),
    "mhd: empty data file": (mhd(RAW, ElementDataFile=""), ct.HeaderError, "names no file"),
    "mhd: data missing": (mhd(RAW, ElementDataFile="other.raw"), ct.MissingDataError, "other.raw is missing"),
    "mhd: data in a folder's place": (mhd(RAW, ElementDataFile="."), ct.MissingDataError, "folder"),
    "mhd: name too long": (mhd(RAW, ElementDataFile="a" * 5000), ct.ScanError, "aaaa"),
    "mhd: list": (mhd(RAW, ElementDataFile="LIST"), ct.HeaderError, "list or pattern"),
    "mhd: list with dimension": (mhd(RAW, ElementDataFile="LIST 2"), ct.HeaderError, "list or pattern"),
    "mhd: pattern": (mhd(RAW, ElementDataFile="s%03d.raw 1 3 1"), ct.HeaderError, "list or pattern"),
    "mhd: local mhd": (mhd(RAW, ElementDataFile="LOCAL"), ct.HeaderError, "mha"),
    "mhd: foreign file": (mhd(RAW, ElementDataFile="../../etc/passwd"), ct.UnsafePathError, "outside"),
    "mhd: absolute path": (mhd(RAW, ElementDataFile="/etc/passwd"), ct.UnsafePathError, "outside"),
    "mhd: windows path": (mhd(RAW, ElementDataFile="..\\scan.raw"), ct.UnsafePathError, "outside"),
    "mhd: all equal": (mhd(bytes(120)), ct.EmptyScanError, "every voxel is 0 HU"),
    "mhd: no air": (mhd(np.arange(60, dtype="<i2").tobytes()), ct.ImplausibleScanError, "no air: the lowest value is"),
    "mhd: no tissue": (mhd((np.arange(60, dtype="<i2") - 2000).tobytes()), ct.EmptyScanError, "no tissue: the highest"),
    "mhd: bytes swapped": (mhd(NOISE.byteswap().tobytes(), DimSize="16 16 8"), ct.ByteOrderError, "bytes swapped"),
    "mhd: nothing but air": (mhd(NOTHING.tobytes(), DimSize="16 16 8"), ct.EmptyScanError, "0.05% of the voxels are t"),
    "mhd: padding for air": (mhd(NO_AIR.tobytes(), DimSize="16 16 8"), ct.ImplausibleScanError, "0.00% of the voxels"),
    "mhd: one slice": (mhd(RAW[:40], DimSize="5 4 1"), ct.ScanGeometryError, "1 slice is no volume"),
    "mhd: half HU": (mhd(HALVES, ElementType="MET_FLOAT"), ct.ElementTypeError, "whole HU"),
    "mhd: a pipe": (pipe, ct.MissingDataError, "not a plain file"),
    "mhd: long name": (lambda f: mhd(RAW)(f).rename(f / f"{'a' * 200}.mhd"), ct.SeriesUidError, "200 bytes, not 128"),
    "dicom: a slice is missing": (gap, ct.MissingSliceError, "1 slice is missing between 3.dcm at z = -337.75 mm and"),
    "dicom: a slice is there twice": (extra(), ct.DuplicateSliceError, "1.dcm and extra.dcm lie at one place, z = -33"),
    "dicom: uneven slices": (one_changed(step=(0, 0, 2.7)), ct.UnevenSlicesError, "slices are 2.5 mm apart, but 2.9 m"),
    "dicom: two series": (extra(SeriesInstanceUID=UID + ".9"), ct.SeveralSeriesError, f"{UID} (5 CT images), {UID}.9"),
    "dicom: gantry tilt": (all_changed(step=(0, 0.3, 2.5)), ct.TiltError, "1.2 mm sideways (gantry tilt)"),
    "dicom: one slice turned": (one_changed(turn=TURNED), ct.ScanGeometryError, "lie in different directions"),
    "dicom: one slice smaller": (one_changed(**SIZES), ct.ScanGeometryError, "differ in size"),
    "dicom: one slice coarser": (one_changed(PixelSpacing=[0.9, 0.9]), ct.ScanGeometryError, "differ in pixel spacing"),
    "dicom: spacing in m": (all_changed(PixelSpacing=[7e-4, 7e-4]), ct.ScanGeometryError, "check its unit"),
    "dicom: no spacing": (all_changed(PixelSpacing=None), ct.ScanGeometryError, "PixelSpacing is not 2 finite numbers"),
    "dicom: no position": (one_changed(ImagePositionPatient=None), ct.ScanGeometryError, "ImagePositionPatient is not"),
    "dicom: no orientation": (one_changed(ImageOrientationPatient=None), ct.ScanGeometryError, "is not 6 finite"),
    "dicom: shear": (all_changed(ImageOrientationPatient=[1, 0, 0, 0.3, 1, 0]), ct.ScanGeometryError, "orthonormal"),
    "dicom: singular": (all_changed(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), ct.ScanError, ""),
    "dicom: short pixels": (one_changed(PixelData=bytes(90)), ct.ByteCountError, "1.dcm is too short: 90 bytes of pix"),
    "dicom: long pixels": (one_changed(PixelData=bytes(100)), ct.ByteCountError, "1.dcm is too long: 100 bytes"),
    "dicom: cut file": (cut_short, ct.ScanError, "1.dcm"),
    "dicom: no pixels": (one_changed(PixelData=None), ct.ByteCountError, "too short: 0 bytes"),
    "dicom: 8 bit": (all_changed(BitsAllocated=8, BitsStored=8, HighBit=7), ct.ElementTypeError, "8-bit or colour"),
    "dicom: colour": (all_changed(**RGB), ct.ElementTypeError, "8-bit or colour"),
    "dicom: inverted": (all_changed(PhotometricInterpretation="MONOCHROME1"), ct.ElementTypeError, "MONOCHROME1"),
    "dicom: unusual bits": (all_changed(HighBit=13), ct.ElementTypeError, "unusual bits"),
    "dicom: MR": (all_changed(Modality="MR"), ct.FormatError, "of modality MR, not CT"),
    "dicom: enhanced": (all_changed(NumberOfFrames=7), ct.FormatError, "many frames"),
    "dicom: no rescale": (all_changed(RescaleIntercept=None), ct.HeaderError, "no RescaleIntercept"),
    "dicom: half HU": (all_changed(RescaleSlope="0.3"), ct.ElementTypeError, "not whole HU"),
    "dicom: no slope": (all_changed(RescaleSlope="0"), ct.HeaderError, "RescaleSlope of 0"),
    "dicom: HU not rescaled": (all_changed(RescaleIntercept="0"), ct.ImplausibleScanError, "no air"),
    "dicom: no series uid": (all_changed(SeriesInstanceUID=None), ct.HeaderError, "no SeriesInstanceUID"),
    "dicom: one slice": (without(1, 2, 3, 4), ct.ScanGeometryError, "one slice is no vol"),
    "dicom: empty folder": (lambda f: (f.mkdir(), f)[1], ct.FormatError, "no DICOM image"),
    "dicom: link out": (link_out, ct.UnsafePathError, "1.dcm is a link out of the folder"),
    "dicom: zip leads out": (zip_with("../../etc/passwd"), ct.UnsafePathError, "leads outside"),
    "dicom: zip absolute": (zip_with("/etc/passwd"), ct.UnsafePathError, "leads outside"),
    "dicom: zip bomb": (lying_zip, ct.FormatError, "big' says it has 536870912 bytes"),
    "dicom: zip damaged": (damaged_zip, ct.ScanError, ""),
    "dicom: no zip": (no_zip, ct.FormatError, "not a whole zip file"),
    "dicom: zip missing": (lambda f: f.with_suffix(".zip"), ct.MissingDataError, "no such file"),
    "dicom: two of three steps doubled": (without(2, 4), ct.MissingSliceError, "1 slice is missing between 3.dcm at z"),
    "dicom: last slice empty": (last_becomes(lambda b: b""), ct.HeaderError, "2.dcm is empty"),
    "dicom: last header cut": (last_becomes(lambda b: b[:500]), ct.HeaderError, "2.dcm is a CT whose header breaks"),
    "dicom: last slice unmarked": (last_becomes(lambda b: b[:128] + b"XXXX" + b[132:]), ct.HeaderError, "2.dcm is no"),
    "dicom: last slice bare": (last_becomes(lambda b: b[132:]), ct.HeaderError, "2.dcm is DICOM without its preamble"),
    "dicom: last slice behind a dead link": (dead_link, ct.MissingDataError, "2.dcm is a link to nowhere"),
    "dicom: one slice aside": (one_changed(**ASIDE), ct.ScanGeometryError, "1.dcm lies 50 mm beside"),
    "dicom: spacing that drifts": (drifting, ct.UnevenSlicesError, "mm from its place among even slices"),
    "dicom: sixty series": (sixty_series, ct.SeveralSeriesError, "and 55 more"),
    "dicom: a name for a uid": (all_changed(SeriesInstanceUID="Secret Name"), ct.SeriesUidError, "not digits and dots"),
    "dicom: a name for one uid": (extra(SeriesInstanceUID="Secret"), ct.SeveralSeriesError, "one without a uid (1 CT"),
    "dicom: localizers only": (all_changed(ImageType=["LOCALIZER"]), ct.FormatError, "nothing but localizers"),
    "dicom: a screenshot beside": (extra(**SCREENSHOT), ct.SeveralSeriesError, "2 series"),
    "dicom: overflowing slope": (all_changed(RescaleSlope="2147483648"), ct.ElementTypeError, "0.dcm: int64 values th"),
    "dicom: compressed and cut": (packed(lambda b: b[:-9]), ct.ByteCountError, "1.dcm breaks off in its pixels"),
    "dicom: compressed and garbled": (packed(garbled), ct.FormatError, "1.dcm cannot be decoded (RLE Lossless)"),
    "dicom: a film": (one_named(MPEG2MPML), ct.FormatError, "1.dcm cannot be decoded (MPEG2 Main Profile"),
    "dicom: deflated bomb": (deflated_bomb, ct.ByteCountError, "inflates to more than a slice"),
    "dicom: zip encrypted": (encrypted, ct.FormatError, "it is encrypted"),
    "dicom: zip with one name twice": (twice_zipped, ct.FormatError, "twice"),
    "dicom: zip of lzma, damaged": (damaged_lzma, ct.ByteCountError, "cannot be read (LZMAError)"),
    "dicom: zip that is a pipe": (pipe_called_zip, ct.MissingDataError, "not a plain file"),
    "dicom: zip in a zip": (zip_in_zip, ct.FormatError, "no DICOM image in it"),
    "nifti: short": (lambda f: cut(f, -2), ct.ByteCountError, "too short: 470 bytes, the header says 472"),
    "nifti: long": (lambda f: cut(f, 1), ct.ByteCountError, "too long: 473 bytes"),
    "nifti: gz cut": (packed_wrongly, ct.ByteCountError, "breaks off"),
    "nifti: gz with more behind": (packed_twice, ct.ByteCountError, "goes on after its voxels"),
    "nifti: gz that is none": (misnamed, ct.FormatError, "is not compressed"),
    "nifti: 8 bit": (changed(datatype=2, bitpix=8), ct.ElementTypeError, "8-bit or colour"),
    "nifti: colour": (changed(datatype=128, bitpix=24), ct.ElementTypeError, "8-bit or colour"),
    "nifti: complex": (changed(datatype=32, bitpix=64), ct.ElementTypeError, "data type 32"),
    "nifti: bits that do not match": (changed(bitpix=32), ct.HeaderError, "bitpix 32 does not go with int16"),
    "nifti: 2D": (changed(dim=[2, 5, 12, 1, 1, 1, 1, 1]), ct.ScanGeometryError, "5 x 12 voxels in 2 dimensions"),
    "nifti: 4D": (changed(dim=[4, 5, 4, 1, 3, 1, 1, 1]), ct.ScanGeometryError, "5 x 4 x 1 x 3 voxels in 4 dimensions"),
    "nifti: no slices": (changed(dim=[3, 5, 4, 0, 1, 1, 1, 1]), ct.ScanGeometryError, "not 1..4096"),
    "nifti: terabytes": (changed(dim=[3, 4096, 4096, 4096, 1, 1, 1, 1]), ct.ScanGeometryError, "at most"),
    "nifti: one slice": (changed(dim=[3, 5, 12, 1, 1, 1, 1, 1]), ct.ScanGeometryError, "1 slice is no volume"),
    "nifti: metres": (changed(xyzt_units=1), ct.ScanGeometryError, "lengths in metre, not mm"),
    "nifti: no place": (changed(sform_code=0, qform_code=0), ct.ScanGeometryError, "neither sform nor qform"),
    "nifti: two places": (changed(srow_x=[-0.75, 0, 0, 15]), ct.ScanGeometryError, "sform and qform put voxels"),
    "nifti: shear": (changed(srow_x=[-0.75, 0.1, 0, 10], qform_code=0), ct.ScanGeometryError, "pixdim"),
    "nifti: singular": (changed(srow_x=[0, 0, 0, 0], qform_code=0), ct.ScanGeometryError, "spacing"),
    "nifti: nan in the matrix": (changed(srow_x=[np.nan, 0, 0, 0]), ct.ScanGeometryError, "not finite"),
    "nifti: spacing that disagrees": (changed(pixdim=[1, 0.8, 0.5, 2.5, 0, 0, 0, 0]), ct.ScanGeometryError, ""),
    "nifti: spacing in m": (changed(srow_x=[-7e-4, 0, 0, 0], qform_code=0), ct.ScanGeometryError, "check its unit"),
    "nifti: half HU": (changed(scl_slope=0.3), ct.ElementTypeError, "not whole HU"),
    "nifti: no intercept": (changed(scl_slope=1, scl_inter=np.nan), ct.HeaderError, "scl_inter is nan"),
    "nifti: voxels in the header": (changed(vox_offset=100), ct.HeaderError, "cannot begin at byte 100"),
    "nifti: no magic": (changed(magic=b"xyz"), ct.HeaderError, "no NIfTI header"),
    "nifti: pair": (changed(magic=b"ni1"), ct.FormatError, ".hdr/.img pair"),
    "nifti: no air": (changed(scl_slope=1, scl_inter=1024), ct.ImplausibleScanError, "no air"),
    "nifti: empty file": (lambda f: touched(f / "a.nii"), ct.HeaderError, "no NIfTI header"),
    "nifti: missing": (lambda f: f / "none.nii", ct.MissingDataError, "no such file"),
    "nifti: long name": (renamed("a" * 200 + ".nii"), ct.SeriesUidError, "200 bytes, not 128 at most"),
    "nifti: no name": (renamed("a b$c.nii"), ct.SeriesUidError, "is no series_uid"),
    "nifti: larger than the memory": (sparse, ct.ByteCountError, "too long: 1099511627776 bytes"),
    "nifti: gz bomb": (gz_bomb, ct.ByteCountError, "more than the 472 bytes"),
    "nifti: gz of noise": (lambda f: touched(f / "a.nii.gz", b"\x1f\x8b no gzip"), ct.ByteCountError, "not whole gzip"),
    "nifti: colour with alpha": (changed(datatype=2304, bitpix=32), ct.ElementTypeError, "8-bit or colour"),
    "nifti: int64": (changed(datatype=1024, bitpix=64), ct.ElementTypeError, "data type 1024"),
    "nifti: microns": (changed(xyzt_units=3), ct.ScanGeometryError, "lengths in micron, not mm"),
    "nifti: turned against each other": (changed(**TURNED_SFORM), ct.ScanGeometryError, "sform and qform put voxels"),
    "nifti: endless slope": (changed(scl_slope=np.inf), ct.HeaderError, "scl_slope is inf"),
}
# fmt: on


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_scan_is_one_clear_line(case: str, tmp_path: Path) -> None:
    make, kind, message = DAMAGE[case]
    path = make(tmp_path / "ct" if case.startswith("dicom") else tmp_path)
    with pytest.raises(kind) as caught:
        read_scan(path)
    line = str(caught.value)
    assert message in line
    assert line.startswith(f"{path}: ")
    assert len(line.splitlines()) == 1
    assert len(line.rpartition("; ")[2]) > 5  # what to do
    assert len(line) < 500 + len(str(path))
    # Nothing of the patient, wherever the error goes: workers hand it back pickled, logs show what caused it.
    told = f"{line}{caught.value.__cause__}".lower()
    assert "secret" not in told
    assert "20010203" not in told
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (type(caught.value), line)


# fmt: off
SILENT = [
    # MetaImage: missing bytes become rubbish, what is too much is cut.
    "mhd: long raw", "mhd: broken zraw", "mhd: empty zraw", "mhd: short zraw", "mhd: long zraw",
    "mhd: zraw with more behind", "mhd: zraw of noise", "mhd: 8 bit", "mhd: colour", "mhd: no spacing",
    "mhd: spacing in m", "mhd: units", "mhd: no origin", "mhd: no matrix", "mhd: shear", "mhd: two origins",
    "mhd: skipped bytes", "mhd: intercept", "mhd: no bool", "mhd: list", "mhd: all equal", "mhd: no air",
    "mhd: no tissue", "mhd: bytes swapped", "mhd: nothing but air", "mhd: padding for air", "mhd: one slice",
    "mhd: half HU",
    # DICOM: slices are stacked as they come.
    "dicom: a slice is missing", "dicom: a slice is there twice", "dicom: uneven slices", "dicom: two series",
    "dicom: gantry tilt", "dicom: one slice turned", "dicom: one slice coarser", "dicom: one slice aside",
    "dicom: spacing that drifts", "dicom: no spacing", "dicom: no position", "dicom: no orientation", "dicom: shear",
    "dicom: singular", "dicom: short pixels", "dicom: 8 bit", "dicom: colour", "dicom: inverted",
    "dicom: unusual bits", "dicom: MR", "dicom: no rescale", "dicom: half HU", "dicom: HU not rescaled",
    "dicom: no series uid", "dicom: one slice", "dicom: link out", "dicom: localizers only",
    "dicom: a screenshot beside", "dicom: sixty series",
    # NIfTI: what is missing or contradicts itself is guessed.
    "nifti: short", "nifti: long", "nifti: gz cut", "nifti: gz with more behind", "nifti: 8 bit", "nifti: colour",
    "nifti: 4D", "nifti: no slices", "nifti: metres", "nifti: microns", "nifti: no place", "nifti: two places",
    "nifti: turned against each other", "nifti: nan in the matrix", "nifti: spacing that disagrees", "nifti: half HU",
    "nifti: no intercept", "nifti: endless slope", "nifti: voxels in the header", "nifti: no air",
]
# fmt: on


@pytest.mark.parametrize("case", SILENT)
def test_simpleitk_reads_it_all_the_same(case: str, tmp_path: Path) -> None:
    path = DAMAGE[case][0](tmp_path / "ct" if case.startswith("dicom") else tmp_path)
    if path.is_dir():
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames([str(file) for file in sorted(path.iterdir())])
        image = reader.Execute()
    else:
        image = sitk.ReadImage(str(path))
    assert image.GetNumberOfPixels() > 0
