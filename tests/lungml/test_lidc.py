import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from lungml.lidc import OLDER_READING, SAME_READING, Skipped, read_lidc
from lungml.lidc_xml import LidcError
from tests.lungml.fixtures.lidc import lidc_xml, nodule, roi, square

ONE = nodule(roi(1, square(1, 1, 4)))
TWO = ONE + nodule(roi(9, square(30, 30, 4)))


def folder(path: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def packed(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


FILES = {
    "185/002.xml": lidc_xml(ONE, series_uid="1.2"),
    "185/deep/001.XML": lidc_xml(TWO, series_uid="1.1"),
    "186/xray.xml": lidc_xml(root="IdriReadMessage"),
    "186/broken.xml": b"<LidcReadMessage",
    "186/readme.txt": b"<LidcReadMessage",
    "186/._002.xml": b"resource fork",
}


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_bad_file_costs_only_itself(tmp_path: Path, kind: str) -> None:
    source = folder(tmp_path, FILES) if kind == "folder" else packed(tmp_path / "lidc.zip", FILES)
    read = read_lidc(source)
    assert list(read.scans) == ["1.1", "1.2"]
    assert read.files == 4
    assert read.skipped == (Skipped(f"{source}/186/xray.xml", "a reading of a chest X-ray (IdriReadMessage)"),)
    assert read.skipped_reasons == {"a reading of a chest X-ray (IdriReadMessage)": 1}
    (line,) = read.damaged
    assert line.startswith(f"{source}/186/broken.xml: not well-formed XML")


def test_one_file(tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_bytes(lidc_xml(ONE))
    assert list(read_lidc(tmp_path / "x.xml").scans) == ["1.2.3"]


@pytest.mark.parametrize(
    ("first", "second", "kept", "reason"),
    [
        (lidc_xml(ONE, date="2007-01-01"), lidc_xml(TWO, date="2006-12-31"), "a.xml", OLDER_READING),
        (lidc_xml(TWO, date="2006-12-31"), lidc_xml(ONE, date="2007-01-01"), "b.xml", OLDER_READING),
        (lidc_xml(ONE), lidc_xml(TWO), "b.xml", OLDER_READING),
        (lidc_xml(ONE), lidc_xml(ONE), "a.xml", SAME_READING),
        (lidc_xml(ONE), lidc_xml(ONE.replace("<xCoord>1<", "<xCoord>0<")), "a.xml", OLDER_READING),
    ],
)
def test_of_two_files_for_a_series_one_counts(
    tmp_path: Path, first: bytes, second: bytes, kept: str, reason: str
) -> None:
    read = read_lidc(folder(tmp_path, {"b.xml": second, "a.xml": first}))
    assert read.scans["1.2.3"].source == str(tmp_path / kept)
    (skipped,) = read.skipped
    assert skipped.reason == reason
    assert skipped.source != read.scans["1.2.3"].source


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, "no XML file in it"),
        ({"a.xml": b"<a"}, "none of its 1 XML files reads a CT"),
        ({"a.xml": b"<a/>"}, "none of its 1 XML files reads a CT"),
    ],
)
def test_nothing_to_read(tmp_path: Path, files: dict[str, bytes], problem: str) -> None:
    with pytest.raises(LidcError, match=problem):
        read_lidc(folder(tmp_path, files))


def test_no_such_source(tmp_path: Path) -> None:
    with pytest.raises(LidcError, match="no such folder or file"):
        read_lidc(tmp_path / "nowhere")
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(LidcError, match="neither a folder nor a zip"):
        read_lidc(tmp_path / "text.zip")


def test_a_damaged_member_of_a_zip_costs_only_itself(tmp_path: Path) -> None:
    source = packed(tmp_path / "x.zip", {"bad.xml": lidc_xml(TWO, series_uid="1.1"), "good.xml": lidc_xml(ONE)})
    content = bytearray(source.read_bytes())
    content[content.index(b"bad.xml") + 60] ^= 0xFF  # within its packed bytes
    source.write_bytes(content)
    read = read_lidc(source)
    assert list(read.scans) == ["1.2.3"]
    (line,) = read.damaged
    assert line.startswith(f"{source}/bad.xml: its bytes cannot be unpacked")


def test_a_zip_bomb_is_read_up_to_the_limit_only(tmp_path: Path) -> None:
    source = packed(tmp_path / "x.zip", {"bomb.xml": b" " * (64 << 20), "good.xml": lidc_xml(ONE)})
    (line,) = read_lidc(source).damaged
    assert "larger than" in line


def test_pipes_and_link_loops_do_not_hang(tmp_path: Path) -> None:
    folder(tmp_path, {"a/good.xml": lidc_xml(ONE)})
    os.mkfifo(tmp_path / "a/pipe.xml")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    assert read_lidc(tmp_path).files == 1
