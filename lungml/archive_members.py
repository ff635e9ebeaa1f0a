"""What does an archive say that it holds, and can that be believed?

`zipfile` reads the directory, Zip64 included. It sees neither members that share bytes nor output beyond what was
declared: that is checked here, before anything is unpacked.
"""

from __future__ import annotations

import re
import stat
import struct
import unicodedata
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lungml.errors import FileError

STORED, DEFLATE, DEFLATE64 = 0, 8, 9  # APPNOTE.TXT 4.4.5
METHOD_NAMES = {1: "shrink", 6: "implode", 12: "bzip2", 14: "lzma", 93: "zstandard", 95: "xz", 98: "ppmd"}
# The most that one packed byte can become: the longest match over the shortest code for it. Deflate repeats 258 bytes
# with 2 bits, Deflate64 65538 bytes with 18 (1 + 16 extra for the length, 1 for the distance).
MAX_RATIO = {STORED: 1.0, DEFLATE: 258 * 8 / 2, DEFLATE64: 65538 * 8 / 18}
RATIO_SLACK_BYTES = 65538  # tiny members: the first match may end in the last bit of the last byte

MAX_UNPACKED_BYTES = 64 << 30  # a LUNA16 subset is 7 GB packed and under 14 GB unpacked
MAX_MEMBERS = 100_000  # a LUNA16 subset has about 180

LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # APPNOTE.TXT 4.3.7
ENCRYPTED_FLAGS = 0x1 | 0x40 | 0x2000  # APPNOTE.TXT 4.4.4: encrypted, strongly encrypted, hidden headers


class ArchiveError(FileError):
    """An archive that cannot be unpacked; its text is one line: file, what is wrong, what to do."""

    def __init__(self, path: Path | str, problem: str, advice: str = "fetch it again, or from another source") -> None:
        super().__init__(path, problem, advice)


@dataclass(frozen=True, kw_only=True)
class Member:
    """One file in an archive.

    Attributes:
        name: with "/" between folders, relative, without "." and "..".
        crc32: of the unpacked bytes.
        data_start: where its packed bytes begin in the archive.
    """

    name: str
    size_bytes: int
    packed_bytes: int
    crc32: int
    method: int
    data_start: int


def read_members(archive: Path, *, max_bytes: int = MAX_UNPACKED_BYTES) -> tuple[Member, ...]:
    """List an archive's files, in the order their bytes lie; folders are left out.

    Nothing is unpacked, and nothing of a hostile archive is used: the whole archive is refused for one bad member.

    Args:
        max_bytes: the most that all members may declare together.

    Raises:
        ArchiveError: not a zip file or cut off; a name that is absolute, climbs out (".."), holds a backslash, drive
            letter or control character, or comes twice; a link or device; encrypted; members that share bytes; more
            bytes declared than `max_bytes`, or than the packed ones can become.
    """
    try:
        with archive.open("rb") as handle, zipfile.ZipFile(handle) as opened:
            entries = opened.infolist()
            if len(entries) > MAX_MEMBERS:
                raise ArchiveError(archive, f"it declares {len(entries)} members, more than {MAX_MEMBERS}")
            files = []
            spans = []
            for entry in entries:
                name = _safe_name(archive, entry)
                _check_entry(archive, entry, name)
                if not 0 <= entry.header_offset < opened.start_dir:
                    raise ArchiveError(archive, f"its directory places member {name} outside of it")
                start = _data_start(archive, handle, entry)
                spans.append((entry.header_offset, start + entry.compress_size, name))
                if not entry.is_dir():
                    files.append(
                        Member(
                            name=name,
                            size_bytes=entry.file_size,
                            packed_bytes=entry.compress_size,
                            crc32=entry.CRC,
                            method=entry.compress_type,
                            data_start=start,
                        )
                    )
            _check_spans(archive, spans, opened.start_dir)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, struct.error, UnicodeDecodeError) as error:
        raise ArchiveError(archive, f"not a zip file that can be read ({error})") from error
    _check_names(archive, files)
    declared = sum(member.size_bytes for member in files)
    if declared > max_bytes:
        raise ArchiveError(
            archive, f"it declares {declared} bytes, more than the {max_bytes} allowed", "do not unpack it"
        )
    return tuple(sorted(files, key=lambda member: member.data_start))


def _safe_name(archive: Path, entry: zipfile.ZipInfo) -> str:
    """The member's path, without empty and "." parts; `orig_filename`, for zipfile cuts names at NUL."""
    name = entry.orig_filename
    parts = [part for part in name.split("/") if part not in ("", ".")]
    problem = None
    if not all(character.isprintable() for character in name):
        problem = "holds a control character"
    elif "\\" in name:
        problem = "holds a backslash"
    elif name.startswith("/"):
        problem = "is absolute"
    elif re.match(r"[A-Za-z]:", name):
        problem = "names a drive"
    elif ".." in parts:
        problem = "climbs out of its folder"
    elif not parts and not name.endswith("/"):  # asked of zipfile, an empty name is an IndexError
        problem = "is empty"
    elif any(len(part.encode()) > 255 for part in parts):
        problem = "is too long"
    if problem:
        raise ArchiveError(archive, f"the name of member {name[:80]!r} {problem}", "do not unpack it")
    return "/".join(parts)


def _check_entry(archive: Path, entry: zipfile.ZipInfo, name: str) -> None:
    """Refuse links, devices, encryption, and sizes that the method cannot give."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or (kind == stat.S_IFDIR) > entry.is_dir():
        what = "a link" if kind == stat.S_IFLNK else "neither a file nor a folder"
        raise ArchiveError(archive, f"member {name} is {what}", "do not unpack it")
    if entry.flag_bits & ENCRYPTED_FLAGS:
        raise ArchiveError(archive, f"member {name} is encrypted", "unpack it by hand, with its password")
    ratio = MAX_RATIO.get(entry.compress_type)
    if entry.compress_type == STORED and entry.file_size != entry.compress_size:
        raise ArchiveError(archive, f"stored member {name} declares two sizes")
    if ratio and entry.file_size > entry.compress_size * ratio + RATIO_SLACK_BYTES * (ratio > 1):
        raise ArchiveError(
            archive,
            f"member {name} declares {entry.file_size} bytes, which {entry.compress_size} packed ones cannot become",
            "do not unpack it",
        )


def _data_start(archive: Path, handle: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin; its local header must agree with the directory."""
    handle.seek(entry.header_offset)
    header = handle.read(LOCAL_HEADER.size)
    if len(header) < LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
        raise ArchiveError(archive, f"no member begins where the directory says that {entry.filename} does")
    _, _, flags, method, *_, name_length, extra_length = LOCAL_HEADER.unpack(header)
    name = handle.read(name_length)
    if name.decode("utf-8" if flags & 0x800 else "cp437", "replace") != entry.orig_filename:
        raise ArchiveError(archive, f"{entry.filename} has two names in it", "do not unpack it")
    if method != entry.compress_type or flags & ENCRYPTED_FLAGS:
        raise ArchiveError(archive, f"its directory and its member {entry.filename} differ", "do not unpack it")
    return entry.header_offset + LOCAL_HEADER.size + name_length + extra_length


def _check_spans(archive: Path, spans: Iterable[tuple[int, int, str]], directory_start: int) -> None:
    """Members that share bytes are how a small archive unpacks to petabytes."""
    before, before_name = 0, ""
    for start, end, name in sorted(spans):
        if start < before:
            raise ArchiveError(archive, f"members {before_name} and {name} share bytes", "do not unpack it")
        before, before_name = end, name
    if before > directory_start:
        raise ArchiveError(archive, f"member {before_name} reaches into the directory: the file is cut off or damaged")


def _check_names(archive: Path, files: Iterable[Member]) -> None:
    """No file twice, also not on a disk that folds case, and none where another needs a folder."""
    seen: dict[str, str] = {}
    for member in files:
        key = unicodedata.normalize("NFC", member.name).casefold()
        if key in seen:
            raise ArchiveError(archive, f"{member.name} is in it twice", "do not unpack it")
        seen[key] = member.name
    for key, name in seen.items():
        above = key.split("/")[:-1]
        for depth in range(1, len(above) + 1):
            if "/".join(above[:depth]) in seen:
                raise ArchiveError(archive, f"{name} lies in what is a file itself", "do not unpack it")
