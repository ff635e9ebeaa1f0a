"""Which plain files lie in a folder or a zip, and do they stay inside it?

Nothing is unpacked to disk. A zip says how much it holds before a byte of it is inflated, and `zipfile` reads no more
of a member than that and compares its checksum.
"""

from __future__ import annotations

import io
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from lungml.metaimage import MAX_DEFLATE_RATIO, MAX_VOXELS, open_plain
from lungml.scan_errors import ByteCountError, FormatError, MissingDataError, ScanError, UnsafePathError

MAX_FILES = 20_000  # the longest LIDC series has 764 slices
MAX_FILE_BYTES = 256 * 1024 * 1024  # one slice of 4096 x 4096 x 2 bytes has 32 MiB
# What reading a damaged member raises: `zipfile` and its decompressors have no error in common.
DAMAGED_MEMBER = (OSError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
DAMAGE = (*DAMAGED_MEMBER, NotImplementedError, RuntimeError, ValueError, struct.error)


class SeriesFiles:
    """The plain files of a folder or a zip, by name.

    Attributes:
        path: the folder or zip.
        names: sorted, relative to `path`.
    """

    def __init__(self, path: Path, names: Sequence[str], archive: zipfile.ZipFile | None) -> None:
        self.path, self.names, self._archive = path, names, archive

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Open one for reading.

        Raises:
            ScanError: it is damaged, cannot be read, or is larger than a slice can be.
        """
        try:
            if self._archive is None:
                with (self.path / name).open("rb") as handle:
                    size = os.fstat(handle.fileno()).st_size
                    if size > MAX_FILE_BYTES:
                        raise FormatError(self.path, f"{name} has {size} bytes", "take it out: no slice has that many")
                    yield handle
            else:
                with self._archive.open(name) as member:
                    yield io.BufferedReader(member)  # type: ignore[type-var]
        except ScanError:
            raise
        except PermissionError as error:
            raise MissingDataError(self.path, f"{name} cannot be read: {error.strerror}", "check the file") from None
        except DAMAGE as error:
            # The kind of error only: a message may quote what stood in the file.
            kind = type(error).__name__
            raise ByteCountError(self.path, f"{name} cannot be read ({kind})", "download the series again") from None


def is_folder(path: Path) -> bool:
    """Whether it is one; a name that the system cannot look up, such as one too long, is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


@contextmanager
def opened(path: Path, *, deep: bool = True) -> Iterator[SeriesFiles]:
    """The plain files of a folder or a zip; hidden names are skipped.

    Args:
        path: of the folder or zip.
        deep: look into a folder's folders too.

    Raises:
        ScanError: a link or a member that leads outside, a link that leads nowhere, or more than a series could have.
    """
    if is_folder(path):
        yield SeriesFiles(path, _plain_files(path, deep), None)
        return
    with open_plain(path, path) as handle:  # a pipe called .zip would hang
        try:
            archive = zipfile.ZipFile(handle)
        except Exception as error:  # a damaged directory raises struct.error, IndexError and what not
            kind = type(error).__name__
            raise FormatError(path, f"not a whole zip file ({kind})", "download it again") from None
        with archive:
            yield SeriesFiles(path, _members(archive, path), archive)


def _plain_files(folder: Path, deep: bool) -> list[str]:
    real = folder.resolve()
    found = []

    def refuse(error: OSError) -> None:
        raise MissingDataError(folder, f"{error.filename} cannot be listed: {error.strerror}", "check the folder")

    for place, subfolders, names in os.walk(folder, onerror=refuse):
        subfolders[:] = sorted(s for s in subfolders if not s.startswith(".")) if deep else []
        for name in sorted(names):
            file = Path(place) / name
            if name.startswith("."):
                continue
            if file.is_symlink() and not file.exists():
                raise MissingDataError(folder, f"{file.relative_to(folder)} is a link to nowhere", "fetch its file")
            if not file.is_file():
                continue
            if file.is_symlink() and not file.resolve().is_relative_to(real):
                raise UnsafePathError(
                    folder, f"{file.relative_to(folder)} is a link out of the folder", "copy the file itself there"
                )
            found.append(str(file.relative_to(folder)))
            if len(found) > MAX_FILES:
                raise FormatError(folder, f"more than {MAX_FILES} files are no series", "name the series' own folder")
    return sorted(found)


def _members(archive: zipfile.ZipFile, path: Path) -> list[str]:
    infos = [info for info in archive.infolist() if not info.filename.endswith("/")]
    if len(infos) > MAX_FILES:
        raise FormatError(path, f"more than {MAX_FILES} files are no series", "pack the series alone")
    seen: set[str] = set()
    total = 0
    for info in infos:
        name = info.filename
        parts = PurePosixPath(name).parts
        if not name or name.startswith("/") or ".." in parts or "\\" in name or ":" in name:
            raise UnsafePathError(path, f"its member {name[:80]!r} leads outside", "pack the series again")
        if info.flag_bits & 1:
            raise FormatError(path, "it is encrypted", "unpack it and give the folder")
        if name in seen:
            raise FormatError(path, f"it holds {name[:80]!r} twice", "pack the series again")
        seen.add(name)
        total += info.file_size
        if info.file_size > MAX_FILE_BYTES or info.file_size > MAX_DEFLATE_RATIO * (info.compress_size + 1024):
            raise FormatError(
                path, f"its member {name[:80]!r} says it has {info.file_size} bytes", "pack the series again"
            )
    if total > 4 * MAX_VOXELS:
        raise FormatError(path, f"{total} bytes are more than a series has", "pack the series alone")
    return sorted(name for name in seen if not any(part.startswith(".") for part in PurePosixPath(name).parts))
