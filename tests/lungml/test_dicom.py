"""A DICOM series of 5 slices of 6 x 8 pixels; what can be wrong with one is in test_damage."""

from __future__ import annotations

import io
import locale
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    BasicTextSRStorage,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    RLELossless,
    SegmentationStorage,
)
from scipy.spatial.transform import Rotation

from lungml import ct, dicom, dicom_slice
from lungml.ct import find_dicom_series, read_scan, read_scan_and_headers, scan_fingerprint, source_files
from lungml.dicom import patient_digest, read_headers, read_series, read_series_and_headers
from lungml.dicom_slice import parse
from lungml.geometry import irc_to_xyz

SHAPE = (5, 6, 8)
UID = "1.2.826.0.1.3680043.8.498.7"
SPACING = (0.75, 0.7, 2.5)  # between columns, rows, slices
ORIGIN = (-20.5, 30.0, -340.25)
REAL_DATA = os.environ.get("LUNGML_REAL_DATA")
HU = (np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) * 8 - 1000).astype(np.int16)


def slice_of(index: int, **change: Any) -> FileDataset:
    """One slice: stored = HU + 1024, unsigned; patient data in it, as scanners write them."""
    turn = np.asarray(change.pop("turn", np.eye(3)))
    step = change.pop("step", SPACING[2] * turn[:, 2])
    syntax = change.pop("syntax", ExplicitVRLittleEndian)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = f"{UID}.{index}"
    meta.TransferSyntaxUID = syntax
    made = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    made.SOPClassUID, made.SOPInstanceUID = CTImageStorage, f"{UID}.{index}"
    made.PatientName, made.PatientID, made.StudyDate = "Secret^Name", "SECRET-ID", "20010203"
    made.Modality, made.SeriesInstanceUID, made.StudyInstanceUID = "CT", UID, "1.2.3"
    made.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    made.Rows, made.Columns = SHAPE[1:]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 12, 11, 0
    made.RescaleSlope, made.RescaleIntercept = "1", "-1024"
    made.PixelSpacing = [SPACING[1], SPACING[0]]  # rows first
    made.ImageOrientationPatient = [float(f"{v:.9g}") for v in (*turn[:, 0], *turn[:, 1])]
    made.ImagePositionPatient = [float(f"{v:.9g}") for v in np.add(ORIGIN, index * np.asarray(step))]
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    made.PixelData = (HU[index].astype(np.int32) + 1024).astype(f"{order}u2").tobytes()
    made["PixelData"].VR = "OW"
    for name, value in change.items():
        if value is None:
            delattr(made, name)
        else:
            setattr(made, name, value)
    return made


def save(made: FileDataset, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)


def series(folder: Path, **change: Any) -> Path:
    """Write all slices, their names in no order."""
    for index in range(SHAPE[0]):
        save(slice_of(index, **change), folder / f"{(index * 3) % 5}.dcm")
    return folder


def zipped(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, f"patient/{file.relative_to(folder)}")
    return path


def test_slices_are_ordered_by_position_in_a_folder_and_in_a_zip(tmp_path: Path) -> None:
    folder = series(tmp_path / "ct")
    (folder / "069.xml").write_text("<xml/>")
    (folder / "README").write_text("no DICOM")
    for path in (folder, zipped(folder)):
        scan = read_scan(path)
        assert scan.series_uid == UID
        assert scan.hu.dtype == np.int16
        np.testing.assert_array_equal(scan.hu, HU)
        np.testing.assert_allclose(scan.grid.spacing_xyz, SPACING)
        np.testing.assert_allclose(scan.grid.origin_xyz, ORIGIN)


@pytest.mark.parametrize(
    "turn",
    [
        np.eye(3),
        np.diag([-1, -1, 1]),
        np.diag([1, -1, -1]),
        Rotation.from_euler("xyz", [12, -7, 30], degrees=True).as_matrix(),
    ],
    ids=["plain", "flipped", "feet first", "tilted"],
)
def test_every_voxel_lies_where_simpleitk_puts_it(turn: np.ndarray, tmp_path: Path) -> None:
    folder = series(tmp_path / "ct", turn=turn)
    scan = read_scan(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    np.testing.assert_array_equal(scan.hu, sitk.GetArrayFromImage(image))
    for irc in [(0, 0, 0), (4, 1, 7), (2, 5, 0)]:
        place = image.TransformIndexToPhysicalPoint(irc[::-1])
        np.testing.assert_allclose(irc_to_xyz(irc, scan.grid), place, atol=1e-4)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian], ids=lambda s: s.name
)
def test_every_uncompressed_syntax(syntax: Any, tmp_path: Path) -> None:
    for index in range(SHAPE[0]):
        made = slice_of(index, syntax=syntax)
        path = tmp_path / "ct" / f"{index}"
        path.parent.mkdir(exist_ok=True)
        pydicom.dcmwrite(path, made, enforce_file_format=True)
    np.testing.assert_array_equal(read_scan(tmp_path / "ct").hu, HU)


@pytest.fixture
def same_locale() -> Iterator[None]:
    """GDCM's writer leaves the process in the locale C, in which later tests' texts are ASCII; its reader does not."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.mark.usefixtures("same_locale")
def test_compressed_slices_are_decoded(tmp_path: Path) -> None:
    for index in range(SHAPE[0]):
        made = slice_of(index, BitsStored=16, HighBit=15)
        made.compress(RLELossless)
        save(made, tmp_path / "ct" / f"{index}.dcm")
    np.testing.assert_array_equal(read_scan(tmp_path / "ct").hu, HU)
    # JPEG 2000, as SimpleITK writes it.
    packed = tmp_path / "jpeg"
    packed.mkdir()
    for index in range(SHAPE[0]):
        save(slice_of(index), tmp_path / "plain" / f"{index}.dcm")
        sitk.WriteImage(
            sitk.ReadImage(str(tmp_path / "plain" / f"{index}.dcm")), str(packed / f"{index}.dcm"), useCompression=True
        )
        about = pydicom.dcmread(packed / f"{index}.dcm")
        about.SeriesInstanceUID = UID
        about.save_as(packed / f"{index}.dcm")
    assert about.file_meta.TransferSyntaxUID.is_compressed
    np.testing.assert_array_equal(read_scan(packed).hu, HU)


def test_rescale_sign_and_bits_are_exact(tmp_path: Path) -> None:
    # Signed 12 bits: -1000 is stored as its low 12 bits, with rubbish above them.
    for index in range(SHAPE[0]):
        low = np.where(HU[index] // 8 < 0, HU[index] // 8 + 4096, HU[index] // 8).astype("<u2") | 0xA000
        save(
            slice_of(index, PixelRepresentation=1, RescaleSlope="8", RescaleIntercept="0", PixelData=low.tobytes()),
            tmp_path / "ct" / f"{index}.dcm",
        )
    np.testing.assert_array_equal(read_scan(tmp_path / "ct").hu, HU)


def test_what_is_no_slice_is_passed_over(tmp_path: Path) -> None:
    folder = series(tmp_path / "ct")
    scout = slice_of(0, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesInstanceUID=UID, Rows=6)
    save(scout, folder / "scout.dcm")
    report = slice_of(0, SOPClassUID=BasicTextSRStorage, Modality="SR", PixelData=None, Rows=None)
    save(report, folder / "report.dcm")
    drawn = slice_of(0, SOPClassUID=SegmentationStorage, Modality="SEG", SeriesInstanceUID=UID + ".1", BitsAllocated=8)
    save(drawn, folder / "drawn.dcm")
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "notes.pdf").write_bytes(b"%PDF\0\1")
    np.testing.assert_array_equal(read_scan(folder).hu, HU)
    np.testing.assert_array_equal(read_scan(zipped(folder)).hu, HU)


def test_names_say_nothing(tmp_path: Path) -> None:
    folder = series(tmp_path / "ct")
    for file in list(folder.iterdir()):
        file.rename(file.with_suffix(".xml"))
    np.testing.assert_array_equal(read_scan(folder).hu, HU)
    (folder / "empty.xml").touch()  # called like the slices, and no text
    with pytest.raises(ct.HeaderError, match=r"empty\.xml is empty"):
        read_scan(folder)


def test_every_slice_has_its_own_rescaling(tmp_path: Path) -> None:
    folder = series(tmp_path / "ct")
    stored = (HU[2].astype(np.int32) + 2048).astype("<u2")
    save(slice_of(2, RescaleIntercept="-2048", PixelData=stored.tobytes(), BitsStored=16, HighBit=15), folder / "1.dcm")
    np.testing.assert_array_equal(read_scan(folder).hu, HU)


def test_padding_is_kept(tmp_path: Path) -> None:
    for index in range(SHAPE[0]):
        stored = HU[index].astype(np.int16) + 1024
        stored[0, 0] = -2000
        change = {"PixelRepresentation": 1, "BitsStored": 16, "HighBit": 15, "PixelPaddingValue": -2000}
        save(slice_of(index, PixelData=stored.tobytes(), **change), tmp_path / "ct" / f"{index}.dcm")
    assert (read_scan(tmp_path / "ct").hu[:, 0, 0] == -3024).all()


def test_positions_rounded_to_a_tenth_are_even_slices(tmp_path: Path) -> None:
    for index in range(40):
        place = [0, 0, round(0.625 * index, 1)]
        save(slice_of(index % 5, ImagePositionPatient=place), tmp_path / "ct" / f"{index}.dcm")
    assert read_scan(tmp_path / "ct").grid.spacing_xyz[2] == pytest.approx(0.625, abs=2e-3)


def test_more_files_than_a_series_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lungml.series_files.MAX_FILES", 4)
    folder = series(tmp_path / "ct")
    for path in (folder, zipped(folder)):
        with pytest.raises(ct.FormatError, match="more than 4 files are no series"):
            read_scan(path)
    monkeypatch.setattr("lungml.series_files.MAX_FILES", 5)
    monkeypatch.setattr("lungml.series_files.MAX_VOXELS", 100)
    with pytest.raises(ct.FormatError, match="bytes are more than a series has"):
        read_scan(folder.with_suffix(".zip"))


def test_nothing_of_a_compressed_slice_is_left_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(SHAPE[0]):
        made = slice_of(index)
        made.compress(RLELossless)
        save(made, tmp_path / "ct" / f"{index}.dcm")
    for in_memory in (True, False):
        if not in_memory:
            monkeypatch.delattr(os, "memfd_create", raising=False)
        before = set(Path(tempfile.gettempdir()).glob("*.dcm"))
        np.testing.assert_array_equal(read_scan(zipped(tmp_path / "ct")).hu, HU)
        assert set(Path(tempfile.gettempdir()).glob("*.dcm")) <= before


def test_one_reading_gives_the_voxels_and_the_headers_they_came_with_and_parses_a_header_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = series(tmp_path / "ct", turn=Rotation.from_euler("xyz", [12, -7, 30], degrees=True).as_matrix())
    plain, headers = read_series(folder), read_headers(folder)
    parsed: list[str] = []

    def counting(handle: Any, name: str, *given: Any, **how: Any) -> Any:
        parsed.append(name)
        return parse(handle, name, *given, **how)

    monkeypatch.setattr(dicom_slice, "parse", counting)
    for path in (folder, zipped(folder)):
        series_uid, hu, grid, with_it = read_series_and_headers(path)
        assert (series_uid, grid) == (plain[0], plain[2])
        np.testing.assert_array_equal(hu, plain[1])
        assert with_it == headers
        scan, again = read_scan_and_headers(path)
        np.testing.assert_array_equal(scan.hu, hu)
        assert again == headers
        assert len(parsed) == 2 * SHAPE[0]
        parsed.clear()
    assert headers[2].PatientName == "Secret^Name"
    assert "RescaleSlope" not in headers[2]


def test_a_scan_that_needs_no_headers_asks_for_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: set[str] = set()

    def asking(handle: Any, name: str, path: Path, tags: list[str], **how: Any) -> Any:
        asked.update(tags)
        return parse(handle, name, path, tags, **how)

    monkeypatch.setattr(dicom_slice, "parse", asking)
    monkeypatch.setattr(dicom, "parse", asking)
    read_series(series(tmp_path / "ct"))
    assert {"SOPInstanceUID", "PixelData"} < asked
    assert not asked & set(dicom.PATIENT_FIELDS)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_slice_that_is_replaced_between_its_header_and_its_pixels_is_refused(
    compressed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, order = tmp_path / "ct", dicom._order
    for index in (0, 1, 2):
        made = slice_of(index)
        if compressed:
            made.compress(RLELossless, generate_instance_uid=False)
        save(made, folder / f"{index}.dcm")

    def ordering(*given: Any) -> Any:
        shutil.copy(folder / "0.dcm", folder / "1.dcm")
        return order(*given)

    monkeypatch.setattr(dicom, "_order", ordering)
    with pytest.raises(ct.FormatError, match=r"1\.dcm was replaced while it was read; wait until nothing changes"):
        read_series(folder)


def test_values_between_whole_hu_are_rounded_where_compression_lost_more_than_that(tmp_path: Path) -> None:
    scaled = {"RescaleSlope": "1.01"}
    with pytest.raises(ct.ElementTypeError, match="not whole HU"):
        read_scan(series(tmp_path / "plain", **scaled))
    scan = read_scan(series(tmp_path / "lossy", LossyImageCompression="01", **scaled))
    np.testing.assert_array_equal(scan.hu, np.rint((HU + 1024.0) * 1.01 - 1024))


def test_jpeg_of_12_bits_is_read_and_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stored = np.kron(np.random.default_rng(0).integers(0, 4096, (4, 2, 3)), np.ones((8, 8), int))
    for index, plane in enumerate(stored):
        made = slice_of(index, Rows=16, Columns=24, LossyImageCompression="01")
        made.PixelData = encapsulate([jpeg_of_12_bits(plane)])
        made["PixelData"].is_undefined_length = True
        made["PixelData"].VR = "OB"
        made.file_meta.TransferSyntaxUID = JPEGExtended12Bit
        save(made, tmp_path / "ct" / f"{index}.dcm")
    np.testing.assert_array_equal(read_scan(tmp_path / "ct").hu, stored - 1024)
    assert capfd.readouterr() == ("", "")


def test_what_others_print_while_a_slice_is_unpacked_is_not_lost(capfd: pytest.CaptureFixture[str]) -> None:
    with dicom._quiet():
        os.write(2, b"of another thread\n" + dicom.WRONG_DECODER)
        assert capfd.readouterr().err == ""
    os.write(2, b"later\n")
    assert capfd.readouterr().err == "of another thread\nlater\n"


def jpeg_of_12_bits(plane: np.ndarray) -> bytes:
    """A picture of 8 x 8 blocks of one value each, exactly (ITU T.81): of a block only its mean is kept, in steps of 1.

    Args:
        plane: (rows, cols) of 0..4095; both are multiples of 8.
    """

    def segment(marker: int, *content: int) -> bytes:
        return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + bytes(content)

    bits, before = "", 2048  # a mean is told by its distance from the one before
    for mean in plane[::8, ::8].ravel().tolist():
        distance, before = mean - before, mean
        length = abs(distance).bit_length()
        coded = distance if distance > 0 else distance + 2**length - 1
        bits += f"{length:05b}" + (f"{coded:0{length}b}" if length else "") + "0"  # the last: nothing but the mean
    bits += "1" * (-len(bits) % 8)
    packed = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")
    rows, cols = plane.shape
    return b"".join(
        (
            b"\xff\xd8",
            segment(0xDB, 0, *[8] * 64),
            segment(0xC1, 12, *rows.to_bytes(2, "big"), *cols.to_bytes(2, "big"), 1, 1, 0x11, 0),
            segment(0xC4, 0x00, *[0, 0, 0, 0, 16, *[0] * 11], *range(16)),
            segment(0xC4, 0x10, *[1, *[0] * 15], 0),
            segment(0xDA, 1, 1, 0x00, 0, 63, 0),
            packed,
            b"\xff\xd9",
        )
    )


def test_series_are_found_in_lidcs_layout(tmp_path: Path) -> None:
    series(tmp_path / "LIDC-IDRI-0001/study/ct")
    series(tmp_path / "LIDC-IDRI-0002/study/ct", SeriesInstanceUID=UID + ".2")
    series(tmp_path / "LIDC-IDRI-0003/study/xray", Modality="DX", SeriesInstanceUID=UID + ".3")
    packed = zipped(series(tmp_path / "LIDC-IDRI-0004/ct", SeriesInstanceUID=UID + ".4"))
    for file in (tmp_path / "LIDC-IDRI-0004/ct").iterdir():
        file.unlink()
    (tmp_path / "notes.zip").write_bytes(b"no zip")
    first = tmp_path / "LIDC-IDRI-0001/study/ct/0.dcm"
    first.write_bytes(first.read_bytes()[:300])  # one damaged slice does not hide its series
    (tmp_path / "loop").symlink_to(tmp_path)
    found = find_dicom_series(tmp_path)
    assert found == {
        UID: tmp_path / "LIDC-IDRI-0001/study/ct",
        UID + ".2": tmp_path / "LIDC-IDRI-0002/study/ct",
        UID + ".4": packed,
    }
    marks = [patient_digest(path) for path in found.values()]
    assert len(set(marks)) == 1
    assert "SECRET" not in marks[0]
    series(tmp_path / "LIDC-IDRI-0005/ct")
    with pytest.raises(ct.DuplicateScanError, match="holds the same series"):
        find_dicom_series(tmp_path)
    with pytest.raises(ct.MissingDataError, match="no such folder"):
        find_dicom_series(tmp_path / "none")


def test_the_fingerprint_follows_every_slice(tmp_path: Path) -> None:
    folder = series(tmp_path / "ct")
    first = scan_fingerprint(folder)
    (folder / "notes.xml").write_text("beside")
    assert scan_fingerprint(folder) == first
    assert source_files(folder) == tuple(sorted(folder.glob("*.dcm")))
    stat = (folder / "3.dcm").stat()
    os.utime(folder / "3.dcm", ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    assert scan_fingerprint(folder) != first
    packed = zipped(folder)
    assert source_files(packed) == (packed,)
    whole = scan_fingerprint(packed)
    content, stat = bytearray(packed.read_bytes()), packed.stat()
    content[300] ^= 1
    packed.write_bytes(content)
    os.utime(packed, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert scan_fingerprint(packed) != whole
    (folder / "3.dcm").write_bytes(b"")  # damaged files count too
    assert folder / "3.dcm" in source_files(folder)


OPENED: list[str] | None = None


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if OPENED is not None and event == "open" and isinstance(arguments[0], (str, os.PathLike)):
        OPENED.append(os.fspath(arguments[0]))


sys.addaudithook(watch)


def read_or_refuse(path: Path) -> None:
    """Read a scan: it is good or refused in one line, and no file but its own is opened."""
    global OPENED
    OPENED = []
    try:
        assert read_scan(path).hu.dtype == np.int16
    except ct.ScanError as error:
        line = str(error)
        assert len(line.splitlines()) == 1
        assert "secret" not in line.lower()
    finally:
        opened, OPENED = OPENED, None
    own = (str(path), sys.prefix, sys.base_prefix, "/proc/self/fd/")
    assert [name for name in opened if not name.startswith(own) and not name.endswith((".py", ".pyc"))] == []
    assert any(name.startswith(str(path)) for name in opened)


def packed_slice(syntax: Any) -> bytes:
    made = slice_of(2, syntax=ExplicitVRLittleEndian if syntax == RLELossless else syntax)
    if syntax == RLELossless:
        made.compress(RLELossless)
    content = io.BytesIO()
    pydicom.dcmwrite(content, made, enforce_file_format=True)
    return content.getvalue()


SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless]
SLICES = [packed_slice(syntax) for syntax in SYNTAXES]
SPLICES = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 4), st.binary(max_size=6)), min_size=1, max_size=4)


def spliced(content: bytes, splices: list[tuple[int, int, bytes]]) -> bytes:
    for place, gone, piece in splices:
        place %= len(content) or 1
        content = content[:place] + piece + content[place + gone :]
    return content


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zipped(series(tmp_path_factory.mktemp("fuzz") / "ct")).with_suffix("")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(kind=st.integers(0, len(SYNTAXES) - 1), splices=SPLICES)
def test_any_slice_either_reads_or_is_refused(fuzzed: Path, kind: int, splices: list[tuple[int, int, bytes]]) -> None:
    (fuzzed / "1.dcm").write_bytes(spliced(SLICES[kind], splices))
    read_or_refuse(fuzzed)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(splices=SPLICES)
def test_any_zip_either_reads_or_is_refused(fuzzed: Path, splices: list[tuple[int, int, bytes]]) -> None:
    path = fuzzed.with_name("any.zip")
    path.write_bytes(spliced(fuzzed.with_suffix(".zip").read_bytes(), splices))
    read_or_refuse(path)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: s.name)
def test_what_is_fuzzed_reads_well_when_whole(tmp_path: Path, syntax: Any) -> None:
    (series(tmp_path / "ct") / "1.dcm").write_bytes(packed_slice(syntax))
    read_or_refuse(zipped(tmp_path / "ct"))
    np.testing.assert_array_equal(read_scan(tmp_path / "ct").hu, HU)


@pytest.mark.real
@pytest.mark.skipif(not REAL_DATA, reason="LUNGML_REAL_DATA is not set")
def test_the_real_series_is_its_metaimage_to_the_last_voxel() -> None:
    data = Path(REAL_DATA or "")
    scan = read_scan(data / "lidc" / "LIDC-IDRI-0001-dicom.zip")
    same = read_scan(data / "luna16" / "scans" / f"{scan.series_uid}.mhd")
    np.testing.assert_array_equal(scan.hu, same.hu)
    assert scan.grid == same.grid
    assert scan.warnings == same.warnings == ()
