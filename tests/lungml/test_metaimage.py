"""Hostile headers and data files; what a well-meant header says is tested in test_ct."""

import gzip
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lungml.ct import read_scan, scan_fingerprint
from lungml.metaimage import MAX_HEADER_BYTES, read_header, read_voxels
from lungml.scan_errors import ByteCountError, HeaderError, ScanError, UnsafePathError

VOXELS = np.linspace(-1000, 400, 2 * 3 * 4).astype("<i2").tobytes()


def header_text(data_file: str = "scan.raw", **change: str) -> str:
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "CompressedData": "False",
        "TransformMatrix": "1 0 0 0 0.8 0.6 0 -0.6 0.8",
        "Offset": "-10 20.5 -340.045",
        "ElementSpacing": "0.7 0.8 2.5",
        "DimSize": "4 3 2",
        "ElementType": "MET_SHORT",
        **change,
        "ElementDataFile": data_file,
    }
    return "".join(f"{name} = {value}\n" for name, value in fields.items())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan's folder beside a foreign file of exactly the right bytes, and links that lead there."""
    root = tmp_path_factory.mktemp("metaimage")
    inside = root / "scans"
    (inside / "sub").mkdir(parents=True)
    for place in (root, inside, inside / "sub"):
        (place / "scan.raw").write_bytes(VOXELS)
    (inside / "link.raw").symlink_to(root / "scan.raw")
    (inside / "up").symlink_to(root)
    (inside / "round").symlink_to(inside / "round")
    return inside


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file that is opened, links resolved."""
    return record_opened(monkeypatch)


def record_opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    seen: list[Path] = []
    plain_open = Path.open

    def spy(self: Path, *args: Any, **kwargs: Any) -> Any:
        seen.append(self.resolve())
        return plain_open(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", spy)
    return seen


def scan_with(folder: Path, data_file: str) -> Path:
    path = folder / "scan.mhd"
    path.write_text(header_text(data_file))
    return path


@pytest.mark.parametrize("name", ["scan.raw", "./scan.raw", "sub/scan.raw", "sub/../scan.raw"])
def test_a_data_file_in_the_scans_folder_is_read(folder: Path, opened: list[Path], name: str) -> None:
    path = scan_with(folder, name)
    assert read_scan(path).hu.tobytes() == VOXELS
    assert set(opened) == {path, (folder / name).resolve()}


@pytest.mark.parametrize(
    "name",
    ["../scan.raw", "sub/../../scan.raw", "link.raw", "up/scan.raw", "up/scans/../scan.raw", "/etc/passwd",
     "../../etc/passwd", "..", "/", "..\\scan.raw", "{root}/scan.raw"],
)  # fmt: skip
def test_a_foreign_file_is_never_opened(folder: Path, opened: list[Path], name: str) -> None:
    path = scan_with(folder, name.format(root=folder.parent))
    for read in (read_header, read_scan, scan_fingerprint):
        with pytest.raises(UnsafePathError, match="outside the scan's folder"):
            read(path)
    assert set(opened) == {path}


def test_links_in_a_circle_are_refused(folder: Path) -> None:
    with pytest.raises(ScanError):
        read_scan(scan_with(folder, "round"))


def whole_files() -> Iterator[tuple[str, bytes]]:
    packed = zlib.compress(VOXELS)
    yield ".mhd", header_text().encode()
    yield ".mhd", header_text(CompressedData="True", CompressedDataSize=str(len(packed))).encode()
    yield ".mha", header_text("LOCAL").encode() + VOXELS
    yield ".mha", header_text("LOCAL", CompressedData="True").encode() + packed
    yield ".mha", header_text("LOCAL", CompressedData="True").encode() + gzip.compress(VOXELS, mtime=0)


WHOLE = list(whole_files())
NAMES = st.lists(
    st.sampled_from(["..", ".", "/", "\\", "up", "sub", "scan.raw", "link.raw", "round", "etc", "passwd", "~", " "]),
    max_size=7,
).map("".join)
SPLICES = st.lists(
    st.tuples(st.integers(0, 400), st.integers(0, 12), st.one_of(st.binary(max_size=12), NAMES.map(str.encode))),
    max_size=3,
)


def spliced(content: bytes, splices: list[tuple[int, int, bytes]]) -> bytes:
    for start, gone, new in splices:
        content = content[:start] + new + content[start + gone :]
    return content


FUZZED = st.one_of(
    st.tuples(st.sampled_from(WHOLE), SPLICES).map(lambda drawn: (drawn[0][0], spliced(drawn[0][1], drawn[1]))),
    NAMES.map(lambda name: (".mhd", header_text(name).encode())),
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(fuzzed=FUZZED)
def test_whatever_the_bytes_only_a_scan_error_and_no_foreign_file(folder: Path, fuzzed: tuple[str, bytes]) -> None:
    suffix, content = fuzzed
    path = folder / f"fuzz{suffix}"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        opened = record_opened(patch)
        for read in (read_scan, scan_fingerprint):
            try:
                read(path)
            except ScanError as error:
                assert str(error).startswith(str(path))
                assert len(str(error).splitlines()) == 1
    assert opened
    assert all(file.is_relative_to(folder) for file in opened)


@pytest.mark.parametrize(("suffix", "content"), WHOLE)
def test_what_is_fuzzed_reads_well_when_whole(folder: Path, suffix: str, content: bytes) -> None:
    path = folder / f"whole{suffix}"
    packed = b"CompressedDataSize" in content
    path.write_bytes(content.replace(b"scan.raw", b"packed.zraw") if packed else content)
    (folder / "packed.zraw").write_bytes(zlib.compress(VOXELS))
    header = read_header(path)
    assert read_voxels(header).tobytes() == VOXELS
    assert header.compressed == (b"CompressedData = True" in content)


def test_an_empty_file_is_called_that(folder: Path) -> None:
    (folder / "empty.mhd").touch()
    with pytest.raises(HeaderError, match="the file is empty"):
        read_header(folder / "empty.mhd")


def test_a_header_beyond_its_limit_is_not_searched_for_its_last_line(folder: Path) -> None:
    path = folder / "long.mhd"
    path.write_text(f"Comment = {'x' * MAX_HEADER_BYTES}\n{header_text()}")
    with pytest.raises(HeaderError, match="has no NDims, DimSize, ElementType, ElementDataFile"):
        read_header(path)


def test_a_header_that_promises_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    # Ten bytes of zlib cannot hold 2^30 voxels: a machine with less memory than that would die of one bad header.
    path = tmp_path / "scan.mha"
    text = header_text("LOCAL", CompressedData="True", DimSize="1024 1024 1024", ElementType="MET_DOUBLE")
    path.write_bytes(text.encode() + zlib.compress(b"")[:10])
    tracemalloc.start()
    try:
        with pytest.raises(ByteCountError):
            read_scan(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
