import gzip
import os
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from lungml import ct
from lungml.ct import ScanError, find_scans, read_header, read_scan, scan_fingerprint, scan_name
from lungml.geometry import irc_to_xyz

SHAPE = (3, 4, 5)  # index, row, col


def chest(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Values that differ from voxel to voxel: padding, air, tissue, metal."""
    hu = np.arange(np.prod(shape), dtype=np.int16).reshape(shape) - 900
    hu.flat[:4] = [-3024, -2048, 60, 5892]
    return hu


def header_text(**change: str | None) -> str:
    fields: dict[str, str | None] = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "-10 20.5 -340.045",
        "CenterOfRotation": "0 0 0",
        "AnatomicalOrientation": "RAI",
        "ElementSpacing": "0.7 0.8 2.5000001",
        "DimSize": "5 4 3",
        "ElementType": "MET_SHORT",
    }
    last = {"ElementDataFile": change.pop("ElementDataFile", "scan.raw")}
    return "".join(f"{k} = {v}\n" for k, v in {**fields, **change, **last}.items() if v is not None)


def write(folder: Path, data: bytes | None = None, **change: str | None) -> Path:
    (folder / "scan.mhd").write_text(header_text(**change))
    (folder / "scan.raw").write_bytes(chest().tobytes() if data is None else data)
    return folder / "scan.mhd"


def by_sitk(path: Path) -> sitk.Image:
    return sitk.ReadImage(str(path))


def assert_as_simpleitk(path: Path) -> None:
    scan, image = read_scan(path), by_sitk(path)
    np.testing.assert_array_equal(scan.hu, sitk.GetArrayFromImage(image))
    assert scan.hu.dtype == np.int16
    np.testing.assert_allclose(scan.grid.spacing_xyz, image.GetSpacing(), rtol=1e-12)
    np.testing.assert_allclose(scan.grid.origin_xyz, image.GetOrigin(), rtol=1e-12)
    np.testing.assert_allclose(np.ravel(scan.grid.direction), image.GetDirection(), atol=1e-9)
    for irc in [(0, 0, 0), (2, 1, 4), (1, 3, 0)]:
        place = image.TransformIndexToPhysicalPoint(irc[::-1])
        np.testing.assert_allclose(irc_to_xyz(irc, scan.grid), place, atol=1e-6)


TILT = Rotation.from_euler("xyz", [12, -7, 30], degrees=True).as_matrix()


@pytest.mark.parametrize("suffix", [".mhd", ".mha"])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("direction", [np.eye(3), np.diag([1, -1, -1]), TILT, TILT @ np.diag([-1, 1, 1])], ids=str)
def test_what_simpleitk_writes_is_read_as_simpleitk_reads_it(
    tmp_path: Path, suffix: str, compress: bool, direction: np.ndarray
) -> None:
    image = sitk.GetImageFromArray(chest())
    image.SetSpacing((0.703125, 0.8, 2.5000001))
    image.SetOrigin((-166.0, 171.7, -340.045))
    image.SetDirection(direction.ravel().tolist())
    path = tmp_path / f"1.2.3{suffix}"
    sitk.WriteImage(image, str(path), useCompression=compress)
    assert_as_simpleitk(path)
    scan = read_scan(path)
    assert scan.series_uid == "1.2.3"
    np.testing.assert_array_equal(scan.hu, chest())
    np.testing.assert_allclose(scan.grid.direction, direction, atol=1e-9)


def test_the_transform_matrix_is_stored_axis_by_axis(tmp_path: Path) -> None:
    # Reading it row by row is right for the identity and for flips, and inverts every tilt.
    text = " ".join(f"{v:.12f}" for v in TILT.T.ravel())
    grid = read_header(write(tmp_path, TransformMatrix=text)).grid
    np.testing.assert_allclose(grid.direction, TILT, atol=1e-9)
    # One step along the columns, with the first three numbers of the text as its direction.
    step = irc_to_xyz((0, 0, 1), grid) - irc_to_xyz((0, 0, 0), grid)
    np.testing.assert_allclose(step, 0.7 * TILT[:, 0], atol=1e-9)


def test_a_negative_spacing_turns_its_axis_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path, ElementSpacing="0.7 0.8 -2.5", TransformMatrix="1 0 0 0 0.8 0.6 0 -0.6 0.8")
    grid = read_header(path).grid
    assert grid.spacing_xyz == (0.7, 0.8, 2.5)
    np.testing.assert_allclose(irc_to_xyz((1, 0, 0), grid), [-10, 20.5 + 0.6 * 2.5, -340.045 - 0.8 * 2.5])
    assert_as_simpleitk(path)


@pytest.mark.parametrize(("element_type", "dtype"), [("MET_INT", "<i4"), ("MET_FLOAT", "<f4"), ("MET_DOUBLE", "<f8")])
def test_wider_types_pass_only_without_loss(tmp_path: Path, element_type: str, dtype: str) -> None:
    hu = chest().astype(dtype)
    scan = read_scan(write(tmp_path, hu.tobytes(), ElementType=element_type))
    np.testing.assert_array_equal(scan.hu, chest())
    assert scan.hu.dtype == np.int16
    for bad in [40_000, *([0.5, np.nan, np.inf] if dtype[1] == "f" else [])]:
        hu[1, 1, 1] = bad
        with pytest.raises(ct.ElementTypeError, match="not whole HU"):
            read_scan(write(tmp_path, hu.tobytes(), ElementType=element_type))


def test_big_endian_is_swapped(tmp_path: Path) -> None:
    path = write(tmp_path, chest().astype(">i2").tobytes(), BinaryDataByteOrderMSB="True")
    np.testing.assert_array_equal(read_scan(path).hu, chest())
    assert read_scan(path).hu.dtype.isnative


def test_a_wrong_byte_order_is_seen_in_the_values(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(-300, 400, (8, 16, 16)).astype(np.int16)
    swapped = {"DimSize": "16 16 8", "BinaryDataByteOrderMSB": "True"}
    assert read_scan(write(tmp_path, noise.tobytes(), DimSize="16 16 8")).hu.shape == (8, 16, 16)
    with pytest.raises(ct.ImplausibleScanError, match="byte order"):
        read_scan(write(tmp_path, noise.tobytes(), **swapped))


def test_a_gzip_stream_and_its_size(tmp_path: Path) -> None:
    data = gzip.compress(chest().tobytes())
    size = {"CompressedData": "True", "CompressedDataSize": str(len(data))}
    np.testing.assert_array_equal(read_scan(write(tmp_path, data, **size)).hu, chest())
    with pytest.raises(ct.ByteCountError, match=r"too short: \d+ compressed bytes"):
        read_scan(write(tmp_path, data[:-1], **size))


RAW = chest().tobytes()
PACKED = {"CompressedData": "True"}


def test_a_zip_bomb_is_stopped_one_byte_beyond(tmp_path: Path) -> None:
    path = write(tmp_path, zlib.compress(RAW + bytes(2**26)), **PACKED)
    tracemalloc.start()
    with pytest.raises(ct.ByteCountError, match="more than the 120 bytes"):
        read_scan(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_a_link_out_of_the_folder_is_refused_and_a_linked_scan_is_not(tmp_path: Path) -> None:
    for name in ("real", "farm", "trap"):
        (tmp_path / name).mkdir()
    real = write(tmp_path / "real")
    (tmp_path / "farm/scan.mhd").symlink_to(real)
    (tmp_path / "farm/scan.raw").symlink_to(real.with_suffix(".raw"))
    assert read_scan(tmp_path / "farm/scan.mhd").hu.shape == SHAPE
    (tmp_path / "trap/scan.mhd").write_text(header_text())
    (tmp_path / "trap/scan.raw").symlink_to(real.with_suffix(".raw"))
    with pytest.raises(ct.UnsafePathError, match="outside"):
        read_scan(tmp_path / "trap/scan.mhd")


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.raw")
    with pytest.raises(ct.MissingDataError, match="not a plain file"):
        read_scan(write(tmp_path, ElementDataFile="pipe.raw"))


@pytest.mark.parametrize("name", ["none.mhd", "none.mha"])
def test_a_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ct.MissingDataError, match="no such file"):
        read_scan(tmp_path / name)


def test_not_a_metaimage(tmp_path: Path) -> None:
    (tmp_path / "photo.mhd").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(ct.HeaderError, match="line 1 is not text"):
        read_scan(tmp_path / "photo.mhd")
    (tmp_path / "scan.nrrd").touch()
    with pytest.raises(ct.FormatError, match="nrrd"):
        read_scan(tmp_path / "scan.nrrd")
    with pytest.raises(ct.FormatError, match="no DICOM image in it"):
        read_scan(tmp_path)


def test_an_endless_header_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "scan.mhd").write_text("Comment = x\n" + "a = b\n" * 20_000)
    with pytest.raises(ct.HeaderError):
        read_header(tmp_path / "scan.mhd")


def test_the_line_stays_one_line_whatever_the_name(tmp_path: Path) -> None:
    path = tmp_path / "two\nlines.mhd"
    path.write_text("no header")
    with pytest.raises(ct.HeaderError) as caught:
        read_scan(path)
    assert "two\\nlines.mhd" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


KEYS = [line.split(" = ")[0] for line in header_text().splitlines()] + ["Position", "CompressedDataSize"]
LINES = st.one_of(
    st.tuples(st.sampled_from(KEYS), st.text(max_size=30)).map(" = ".join),
    st.sampled_from(header_text().splitlines()),
    st.sampled_from(header_text(ElementDataFile="LOCAL", ElementSpacing="-1 2 1e400").splitlines()),
    st.text(max_size=40),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    content=st.one_of(
        st.lists(LINES, max_size=20).map(lambda lines: "\n".join(lines).encode("utf-8", "replace")),
        st.tuples(st.integers(0, 400), st.binary(max_size=8)).map(
            lambda cut: header_text().encode()[: cut[0]] + cut[1] + header_text().encode()[cut[0] + 3 :]
        ),
        st.binary(max_size=200),
    ),
    suffix=st.sampled_from([".mhd", ".mha"]),
)
def test_any_header_either_parses_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    path = folder / f"scan{suffix}"
    path.write_bytes(content)
    try:
        header = read_header(path)
    except ScanError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert header.data_file.resolve().is_relative_to(folder.resolve())
        try:
            read_scan(path)
        except ScanError as error:
            assert len(str(error).splitlines()) == 1


def test_scans_are_found_by_uid_once(tmp_path: Path) -> None:
    for folder, name in [
        ("subset1", "b.mhd"),
        ("subset0", "c.mhd"),
        (".", "a.mhd"),
        ("subset0", "._c.mhd"),  # what macOS leaves beside a copied file
        ("subset0", "c.raw"),
        ("seg-lungs-LUNA16", "c.mhd"),  # a lung mask under its scan's name
        (".partial", "b.mhd"),
    ]:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).touch()
    assert list(find_scans(tmp_path)) == ["a", "b", "c"]
    assert find_scans(tmp_path)["b"] == tmp_path / "subset1" / "b.mhd"
    (tmp_path / "subset9").symlink_to(tmp_path / "subset0")
    (tmp_path / "subset0" / "loop").symlink_to(tmp_path)
    assert list(find_scans(tmp_path)) == ["a", "b", "c"]
    (tmp_path / "subset1" / "c.mhd").touch()
    with pytest.raises(ct.DuplicateScanError) as caught:
        find_scans(tmp_path)
    assert "subset0" in str(caught.value) or "subset9" in str(caught.value)
    assert str(tmp_path / "subset1" / "c.mhd") in str(caught.value)


def test_no_folder_to_search(tmp_path: Path) -> None:
    with pytest.raises(ct.MissingDataError, match="no such folder"):
        find_scans(tmp_path / "none")
    assert find_scans(tmp_path) == {}


def test_the_fingerprint_follows_header_name_size_and_time(tmp_path: Path) -> None:
    path = write(tmp_path)
    first = scan_fingerprint(path)
    assert scan_fingerprint(path) == first
    raw = tmp_path / "scan.raw"
    stat = raw.stat()
    os.utime(raw, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    later = scan_fingerprint(path)
    path.write_text(header_text(Offset="-10 20.5 -340.046"))
    moved = scan_fingerprint(path)
    raw.rename(tmp_path / "other.raw")
    with pytest.raises(ct.MissingDataError, match=r"scan\.raw is missing"):
        scan_fingerprint(path)
    assert len({first, later, moved}) == 3


def test_reading_changes_no_file_and_values_are_not_clipped(tmp_path: Path) -> None:
    path = write(tmp_path)
    scan = read_scan(path)
    assert (scan.hu.min(), scan.hu.max()) == (-3024, 5892)
    scan.hu[:] = 0
    np.testing.assert_array_equal(read_scan(path).hu, chest())


def real_data() -> Path:
    where = os.environ.get("LUNGML_REAL_DATA")
    if not where:
        pytest.skip("LUNGML_REAL_DATA does not point at the real scans")
    return Path(where)


@pytest.mark.real
def test_the_real_scans_are_read_as_simpleitk_reads_them() -> None:
    scans = find_scans(real_data() / "luna16")
    assert len(scans) == 2
    for path in scans.values():
        assert_as_simpleitk(path)
        assert read_scan(path).hu.shape == (133, 512, 512)


@pytest.mark.real
def test_the_real_8_bit_file_is_refused_with_its_reason() -> None:
    with pytest.raises(ct.ElementTypeError, match=r"8-bit voxels \(MET_UCHAR\)"):
        read_scan(real_data() / "odd" / "uint8_flipped.mha")


def test_a_scan_is_called_by_its_file_or_by_its_whole_folder(tmp_path: Path) -> None:
    (tmp_path / "1.2.840").mkdir()
    names = {"a/1.2.mhd": "1.2", "1.2.nii.gz": "1.2", "1.2.NII": "1.2", "1.2.zip": "1.2", "1.2.840": "1.2.840"}
    assert {name: scan_name(tmp_path / name) for name in names} == names
