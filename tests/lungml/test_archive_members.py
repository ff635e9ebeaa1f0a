from __future__ import annotations

import io
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lungml.archive_members import MAX_RATIO, ArchiveError, read_members
from tests.lungml.fixtures.loopback import zipped


def entry(name: str, *, mode: int = 0, flags: int = 0, system: int = 3) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.filename = info.orig_filename = name  # zipfile would mend it
    info.external_attr = mode << 16
    info.create_system = system
    info.flag_bits |= flags
    return info


def packed(*entries: zipfile.ZipInfo, content: bytes = b"x" * 50) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for info in entries:
            info.compress_type = zipfile.ZIP_DEFLATED
            opened.writestr(info, content)
    return archive.getvalue()


def encrypted() -> bytes:
    content = bytearray(packed(entry("a")))
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    return bytes(content)


def renamed_inside() -> bytes:
    content = packed(entry("good"))
    return content.replace(b"good", b"evil", 1)


def declares(size_bytes: int) -> Callable[[], bytes]:
    """An archive whose only member, 50 bytes long, says it is `size_bytes` long."""

    def make() -> bytes:
        content = bytearray(packed(entry("a")))
        for place in (22, content.index(b"PK\1\2") + 24):
            struct.pack_into("<I", content, place, size_bytes)
        return bytes(content)

    return make


def sharing_bytes() -> bytes:
    """Two directory entries that point at one member."""
    content = bytearray(packed(entry("a"), entry("b")))
    second = content.rindex(b"PK\1\2")
    struct.pack_into("<I", content, second + 42, 0)
    content[second + 46] = ord("a")  # as its local header says
    content[content.index(b"PK\1\2") + 46] = ord("a")
    return bytes(content)


def reaching_into_directory() -> bytes:
    content = bytearray(packed(entry("a")))
    for place in (18, content.index(b"PK\1\2") + 20):
        struct.pack_into("<I", content, place, 60)
    return bytes(content)


def placed_at(offset: int) -> Callable[[], bytes]:
    """An archive whose directory says by Zip64 that its only member begins at `offset`."""

    def make() -> bytes:
        content = packed(entry("a"))
        start = content.index(b"PK\1\2")
        directory = bytearray(content[start : start + 47]) + struct.pack("<HHQ", 1, 8, offset)
        struct.pack_into("<H", directory, 30, 12)
        struct.pack_into("<I", directory, 42, 0xFFFFFFFF)
        end = bytearray(content[start + 47 :])
        struct.pack_into("<I", end, 12, len(directory))
        return content[:start] + bytes(directory) + bytes(end)

    return make


def nameless() -> bytes:
    """An archive whose only member has a name of no letters, in the directory and before its bytes."""
    content = packed(entry("a"))
    start = content.index(b"PK\1\2")
    local, directory, end = bytearray(content[:start]), bytearray(content[start : start + 47]), content[start + 47 :]
    del local[30], directory[46]
    struct.pack_into("<H", local, 26, 0)
    struct.pack_into("<H", directory, 28, 0)
    return bytes(local + directory) + end[:12] + struct.pack("<II", len(directory), len(local)) + end[20:]


def twice() -> bytes:
    with pytest.warns(UserWarning, match="Duplicate"):
        return packed(entry("a"), entry("a"))


HOSTILE = {
    "absolute": (lambda: packed(entry("/etc/passwd")), "is absolute"),
    "climbs": (lambda: packed(entry("a/../../b")), "climbs out"),
    "climbs at the end": (lambda: packed(entry("a/..")), "climbs out"),
    "backslash": (lambda: packed(entry("..\\b")), "holds a backslash"),
    "drive": (lambda: packed(entry("C:b")), "names a drive"),
    "NUL": (lambda: packed(entry("a.raw\0.mhd")), "control character"),
    "line break": (lambda: packed(entry("a\nb")), "control character"),
    "no name": (nameless, "is empty"),
    "too long": (lambda: packed(entry("a" * 300)), "too long"),
    "link": (lambda: packed(entry("a", mode=stat.S_IFLNK | 0o777)), "is a link"),
    "pipe": (lambda: packed(entry("a", mode=stat.S_IFIFO | 0o600)), "neither a file nor a folder"),
    "device": (lambda: packed(entry("a", mode=stat.S_IFCHR | 0o600)), "neither a file nor a folder"),
    "encrypted": (encrypted, "is encrypted"),
    "two names": (renamed_inside, "two names"),
    "twice": (twice, "is in it twice"),
    "twice but for case": (lambda: packed(entry("a.mhd"), entry("A.MHD")), "is in it twice"),
    "twice but for dots": (lambda: packed(entry("a"), entry("./a")), "is in it twice"),
    "file and folder": (lambda: packed(entry("a"), entry("a/b")), "in what is a file itself"),
    "shared bytes": (sharing_bytes, "share bytes"),
    "behind the end": (placed_at(1 << 40), "places member a outside"),
    "where no file reaches": (placed_at(1 << 63), "places member a outside"),
    "where no number reaches": (placed_at((1 << 64) - 1), "places member a outside"),
    "into the directory": (reaching_into_directory, "reaches into the directory"),
    "bomb by ratio": (declares(200_000), "cannot become"),
    "no zip": (lambda: b"<html>503</html>", "not a zip file"),
    "empty": (lambda: b"", "not a zip file"),
    "cut off": (lambda: packed(entry("a"))[:-30], "not a zip file"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    make, problem = HOSTILE[case]
    archive = tmp_path / "a.zip"
    archive.write_bytes(make())
    with pytest.raises(ArchiveError, match=problem) as caught:
        read_members(archive)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{archive}: ")


def test_more_declared_than_allowed(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped({"a": bytes(600), "b": bytes(600)}))
    with pytest.raises(ArchiveError, match="declares 1200 bytes, more than the 1000 allowed"):
        read_members(archive, max_bytes=1000)


def test_ratios_are_those_of_the_formats() -> None:
    assert MAX_RATIO[8] == 1032
    assert MAX_RATIO[9] == 29_128
