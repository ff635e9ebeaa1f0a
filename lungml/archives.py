"""How do an archive's members come out whole, unchanged, and nowhere but where they belong?

Which there are, says `lungml.archive_members`. Their bytes are decoded here, because `zipfile` refuses Deflate64, which
7-Zip packed LUNA16 with, and does not see output beyond what was declared.
"""

from __future__ import annotations

import json
import stat
import threading
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import inflate64

from lungml.archive_members import DEFLATE64, MAX_RATIO, METHOD_NAMES, STORED, ArchiveError, Member
from lungml.files import sweep, whole_file, write_text_atomic

READ_BYTES = 1 << 20
# inflate64 hands out all that its input becomes: 1 KiB of the longest matches in fixed codes, 18 000 times as much,
# took 87 MB here, and MAX_RATIO allows 1.6 times that. Gathered again, it is as fast as reads of 4 KiB.
DEFLATE64_READ_BYTES = 1 << 10
GATHERED_BYTES = 128 << 10


class UnpackingStopped(ArchiveError):
    """Another archive's failure, or a person, ended this one's unpacking."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What an archive is known by, also when it has been dropped.

    Where no md5 was published, `md5` is whatever else tells one version from another, or "".
    """

    name: str
    size_bytes: int
    md5: str


@dataclass(frozen=True, kw_only=True)
class Written:
    """An unpacked file that was proved: its bytes had this CRC-32 when it had this time."""

    size_bytes: int
    crc32: int
    mtime_ns: int


@dataclass(frozen=True, kw_only=True)
class Journal:
    """What has come out of an archive so far.

    Attributes:
        complete: every file that was wanted is there.
        written: path relative to the folder unpacked into -> file.
    """

    source: Source
    complete: bool
    written: Mapping[str, Written]


def plain_member(path: Path, stop: threading.Event | None = None) -> Member:
    """A file that is no archive, as the one stored member of itself: it is then placed as members are."""
    size_bytes, crc32 = _crc32(path, stop or threading.Event())
    return Member(
        name=path.name, size_bytes=size_bytes, packed_bytes=size_bytes, crc32=crc32, method=STORED, data_start=0
    )


def unpack(
    archive: Path,
    targets: Mapping[str, Member],
    folder: Path,
    journal: Path,
    source: Source,
    *,
    edits_stay: bool = False,
    stop: threading.Event | None = None,
) -> list[str]:
    """Unpack members that are not there yet, each whole or not at all; memory stays bounded.

    The journal is written after every member, so a killed run goes on behind the last one. A file is taken for
    finished only with the member's size and CRC-32; its bytes are read again unless size and time are the journal's.

    Args:
        targets: path relative to `folder` -> member. Missing folders are made.
        edits_stay: a file with other bytes is left alone, not replaced: a person may have written it.
        stop: when set, unpacking ends between two pieces.

    Returns:
        the paths that were unpacked now; empty when all of them were there.

    Raises:
        ArchiveError: a method that is not stored, Deflate or Deflate64, damaged or contradictory bytes, or `stop`.
        OSError: a full disk, no permission; it names the file.
    """
    stop = stop or threading.Event()
    methods = {member.method for member in targets.values()} - MAX_RATIO.keys()
    if methods:
        names = ", ".join(METHOD_NAMES.get(method, f"method {method}") for method in sorted(methods))
        raise ArchiveError(archive, f"it is packed with {names}", "unpack it by hand, with 7-Zip")
    known = read_journal(journal, source)
    written = dict(known.written) if known else {}
    sweep(folder)
    fresh = []
    with archive.open("rb") as handle:
        for path, member in targets.items():
            file = folder / path
            there = _proved(file, member.size_bytes, member.crc32, written.get(path), stop)
            if there is None and edits_stay and file.exists():
                there = _as_it_is(file, stop)
            if there is None:
                _extract(archive, handle, member, file, stop)
                there = _as_written(file, member)
                fresh.append(path)
            if written.get(path) != there:
                written[path] = there
                _write_journal(journal, source, written, complete=False)
    _write_journal(journal, source, {path: written[path] for path in targets}, complete=True)
    return fresh


def is_unpacked(
    folder: Path,
    journal: Path,
    source: Source,
    *,
    edits_stay: bool = False,
    stop: threading.Event | None = None,
) -> bool:
    """Whether everything from an archive is there, by the journal; the archive itself may be gone.

    Files with the journal's size but another time are read and compared by CRC-32, once. With `edits_stay`
    any file in its place will do.
    """
    known = read_journal(journal, source)
    if known is None or not known.complete:
        return False
    written = {}
    for path, before in known.written.items():
        file = folder / path
        there = _proved(file, before.size_bytes, before.crc32, before, stop or threading.Event())
        if there is None and not (edits_stay and file.is_file()):
            return False
        written[path] = there or before
    if written != known.written:
        _write_journal(journal, source, written, complete=True)
    return True


def bytes_there(folder: Path, journal: Path, source: Source) -> int:
    """How many bytes have been unpacked, by the journal and the files' sizes."""
    known = read_journal(journal, source)
    if known is None:
        return 0
    sizes = {path: there.size_bytes for path, there in known.written.items()}
    return sum(size for path, size in sizes.items() if _size_of(folder / path) == size)


def read_journal(path: Path, source: Source) -> Journal | None:
    """The journal of an archive; None when there is none, it is damaged, or it is of an archive that changed."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        journal = Journal(
            source=Source(**content["source"]),
            complete=content["complete"] is True,
            written={str(name): Written(**there) for name, there in content["written"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return journal if journal.source == source else None


def _write_journal(path: Path, source: Source, written: Mapping[str, Written], *, complete: bool) -> None:
    content: dict[str, Any] = {
        "source": asdict(source),
        "complete": complete,
        "written": {name: asdict(there) for name, there in written.items()},
    }
    write_text_atomic(path, json.dumps(content, indent=1) + "\n")


def _extract(archive: Path, handle: BinaryIO, member: Member, path: Path, stop: threading.Event) -> None:
    """Write one member, whole or not at all."""
    crc32 = size_bytes = 0
    with whole_file(path) as out:
        for piece in _decoded(archive, handle, member):
            if stop.is_set():
                raise UnpackingStopped(archive, "unpacking was stopped", "run it again: it goes on from here")
            size_bytes += len(piece)
            if size_bytes > member.size_bytes:
                raise ArchiveError(
                    archive, f"member {member.name} unpacks to more than the {member.size_bytes} bytes it declares"
                )
            crc32 = zlib.crc32(piece, crc32)
            out.write(piece)
        if size_bytes != member.size_bytes:
            raise ArchiveError(
                archive, f"member {member.name} unpacks to {size_bytes} bytes, not the {member.size_bytes} it declares"
            )
        if crc32 != member.crc32:
            raise ArchiveError(archive, f"member {member.name} is damaged (CRC-32 {crc32:08x}, not {member.crc32:08x})")


def _decoded(archive: Path, handle: BinaryIO, member: Member) -> Iterator[bytes | bytearray]:
    """A member's bytes, in pieces."""
    handle.seek(member.data_start)
    read_bytes = DEFLATE64_READ_BYTES if member.method == DEFLATE64 else READ_BYTES
    try:
        yield from _inflated(_packed(archive, handle, member, read_bytes), member)
    except (zlib.error, ValueError) as error:
        if isinstance(error, ArchiveError):
            raise
        raise ArchiveError(archive, f"member {member.name} is damaged ({error})") from error


def _packed(archive: Path, handle: BinaryIO, member: Member, read_bytes: int) -> Iterator[bytes]:
    left = member.packed_bytes
    while left:
        piece = handle.read(min(left, read_bytes))
        if not piece:
            raise ArchiveError(archive, f"it ends inside member {member.name}")
        left -= len(piece)
        yield piece


def _inflated(pieces: Iterator[bytes], member: Member) -> Iterator[bytes | bytearray]:
    if member.method == STORED:
        yield from pieces
        return
    if member.method == DEFLATE64:
        inflater = inflate64.Inflater()
        gathered = bytearray()  # what so small pieces become is too little to check and write one by one
        for piece in pieces:
            if inflater.eof:
                break
            gathered += inflater.inflate(piece)
            if len(gathered) >= GATHERED_BYTES:
                yield gathered
                gathered = bytearray()
        yield gathered
        ended = inflater.eof
    else:
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        for piece in pieces:
            while piece and not unpacker.eof:
                yield unpacker.decompress(piece, READ_BYTES)
                piece = unpacker.unconsumed_tail
        while not unpacker.eof and (rest := unpacker.decompress(unpacker.unconsumed_tail, READ_BYTES)):
            yield rest
        ended = unpacker.eof and not unpacker.unused_data
    if not ended or next(pieces, None) is not None:
        raise ValueError("its packed bytes do not end where they should")


def _proved(path: Path, size_bytes: int, crc32: int, before: Written | None, stop: threading.Event) -> Written | None:
    """The file, when its bytes are the member's; None when they are not, or nothing is there."""
    try:
        found = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode) or found.st_size != size_bytes:
        return None
    there = Written(size_bytes=size_bytes, crc32=crc32, mtime_ns=found.st_mtime_ns)
    return there if there == before or _crc32(path, stop)[1] == crc32 else None


def _as_written(path: Path, member: Member) -> Written:
    return Written(size_bytes=member.size_bytes, crc32=member.crc32, mtime_ns=path.stat().st_mtime_ns)


def _as_it_is(path: Path, stop: threading.Event) -> Written:
    size_bytes, crc32 = _crc32(path, stop)
    return Written(size_bytes=size_bytes, crc32=crc32, mtime_ns=path.stat().st_mtime_ns)


def _crc32(path: Path, stop: threading.Event) -> tuple[int, int]:
    """A file's size and CRC-32."""
    size_bytes = crc32 = 0
    with path.open("rb") as handle:
        while piece := handle.read(READ_BYTES):
            if stop.is_set():
                raise UnpackingStopped(path, "checking it was stopped", "run it again: it goes on from here")
            size_bytes += len(piece)
            crc32 = zlib.crc32(piece, crc32)
    return size_bytes, crc32


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
