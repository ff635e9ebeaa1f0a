"""Is what lies at this place one whole Zarr group, written under exactly this key?

A group appears whole or not at all. On a local disk it is written beside and takes its place at once, so that what was
there before stands until then; on an object store, which cannot rename, its description (`zarr.json`, with the
completion mark) is written last and removed first.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xxhash
import zarr
import zarr.codecs

from lungml.errors import LunaError
from lungml.files import beside_path, locked, naming
from lungml.remote import Location, RemoteFolder, unreachable

LZ4_LEVEL = 5  # on real scans 2.10 : 1; level 9 reaches 2.15 and takes a tenth longer, level 1 2.06

CHUNKS_AT_ONCE = 8  # along the first axis

Box = tuple[slice, slice, slice]  # of a scan, (index, row, col)


class StoreError(LunaError):
    """A store is missing, half-written, damaged or of another format version."""


@dataclass(frozen=True, kw_only=True)
class Sparse:
    """An array that is zero but in some boxes: only the chunks that they touch are written.

    Attributes:
        shape: of the whole array, (index, row, col).
        boxes: where, and which voxels there are 1.
    """

    shape: tuple[int, int, int]
    boxes: Sequence[tuple[Box, npt.NDArray[np.bool_]]]


def is_current(group: Location, key: Mapping[str, Any]) -> bool:
    """Whether a whole group lies there and was written under exactly this key.

    Sizes are compared, contents are not: `find_damage` reads them.

    Args:
        group: a Zarr group written by `write_group`.
        key: what the content depends on: fingerprints, settings, format versions (JSON values).
    """
    try:
        attributes = read_attributes(group)
    except StoreError:
        return False
    if not _is_under(attributes, key):
        return False
    # zarr reads a missing chunk as zeros, which would be soft tissue: a store that lost a file must not pass for whole.
    return all(_bytes_in(group / name) == size for name, size in attributes.get("bytes", {"": -1}).items())


def write_group(
    group: Location,
    arrays: Mapping[str, npt.NDArray[Any] | Sparse],
    *,
    key: Mapping[str, Any],
    attributes: Callable[[], Mapping[str, Any]] = dict,
    chunks: Mapping[str, tuple[int, ...]] | None = None,
    within: bool = False,
) -> None:
    """Write arrays as one Zarr v3 group that appears whole or not at all, replacing an older one.

    Arrays named in `chunks` are compressed (blosc lz4, bitshuffle) in chunks of that shape, each with a checksum that
    every reader checks; every other array is one uncompressed chunk, so its chunk file is a plain C-order dump that
    `map_array` can memory-map, and its checksum lies in the attributes.

    What lies there stands until the new one is whole, then it goes, also where it is of the same key: whoever writes it
    again wants it anew. The groups within one of the same key, a scan's masks, go over to the new one. Of two runs that
    write the same at once, the one that comes second gives up its own.

    Args:
        group: where.
        arrays: by name.
        key: what the content depends on, see `is_current`.
        attributes: asked for what else to write once the arrays are written.
        chunks: by array name.
        within: whether the group belongs to the group around it, without which it is not written.

    Raises:
        StoreError: the group around it is gone.
        OSError: when the disk is full; nothing is left there then but what was there before.
    """
    if isinstance(group, RemoteFolder):
        group.remove()
        about = _write_arrays(group, arrays, chunks or {})
        group.write("zarr.json", _description({**attributes(), "key": dict(key), **about}))
        return
    folder = group.parent.parent if within else group.parent
    beside = beside_path(folder / "-".join(group.relative_to(folder).parts))
    before = _mark(group)
    try:
        with naming(group), _system_errors():
            folder.mkdir(parents=True, exist_ok=True)
            beside.mkdir()
            about = _write_arrays(beside, arrays, chunks or {})
            (beside / "zarr.json").write_bytes(_description({**attributes(), "key": dict(key), **about}))
            _sync_tree(beside)
            with locked(folder / ".groups"):  # one run at a time puts something in its place
                if within:
                    read_attributes(group.parent)
                current = is_current(group, key)
                if current and _mark(group) != before:  # another run was faster
                    shutil.rmtree(beside, ignore_errors=True)
                else:
                    if current and not within:
                        _take_over(group, beside)
                    _swap(beside, group)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def read_attributes(group: Location) -> dict[str, Any]:
    """The attributes of a whole group.

    Raises:
        StoreError: when there is none, or it was not finished.
    """
    try:
        attributes = json.loads(_read_bytes(group, "zarr.json"))["attributes"]
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{group}: no store there; run `luna data prepare`") from error
    if not isinstance(attributes, dict) or attributes.get("complete") is not True:
        raise StoreError(f"{group}: the store is half-written; delete it and run `luna data prepare`")
    if attributes.pop("seal", None) != key_digest(attributes):
        raise StoreError(f"{group}: its description was damaged or edited; delete it and run `luna data prepare`")
    return attributes


def read_array(group: Location, name: str, *, key: Mapping[str, Any] | None = None) -> npt.NDArray[Any]:
    """One array of a whole group, read into memory; compressed chunks are checked against their checksums.

    Args:
        group: written by `write_group`.
        name: of the array.
        key: what the group must have been written under; any when None.

    Raises:
        StoreError: when the group is not whole or of another key, or a chunk is damaged.
    """
    before = read_attributes(group)
    if key is not None and not _is_under(before, key):
        raise StoreError(f"{group}: another run replaced it with one of other tables or settings; run again")
    use_zarrs()
    try:
        array = np.asarray(zarr.open_array(_zarr_store(group / name), mode="r", zarr_format=3)[...])
    except (RuntimeError, ValueError, FileNotFoundError) as error:
        # Rust's words for what an operating system refused; that a file is missing (2) is damage.
        if "(os error" in str(error) and "(os error 2)" not in str(error):
            raise OSError(f"{group}: {name} cannot be read ({_short(error)})") from error
        raise StoreError(
            f"{group}: {name} is damaged ({_short(error)}); run `luna data verify --repair`, then prepare again"
        ) from error
    except Exception as error:  # obstore's own kinds, whose text is pages
        if isinstance(group, RemoteFolder):
            raise unreachable(group.url, error) from error
        raise
    # zarr reads a chunk that is not there, or not any more because another run replaces the group, as zeros.
    try:
        whole = read_attributes(group) == before and _bytes_in(group / name) == before["bytes"][name]
    except (StoreError, OSError, KeyError):
        whole = False
    if not whole:
        raise StoreError(
            f"{group}: {name} lost a file, or another run replaced it while it was read; run `luna data prepare` again"
        )
    return array.view(array.dtype.newbyteorder("="))  # zarr names the byte order even where it is the machine's own


def _is_under(attributes: Mapping[str, Any], key: Mapping[str, Any]) -> bool:
    """Whether a group was written under this key, which may hold tuples that JSON made lists of."""
    return bool(attributes.get("key") == json.loads(json.dumps(dict(key))))


def map_array(group: Path, name: str) -> npt.NDArray[Any]:
    """Memory-map an uncompressed one-chunk array of a group, read-only; an empty array is returned as such.

    Raises:
        StoreError: when the array is missing or is not a plain dump.
    """
    try:
        described = json.loads((group / name / "zarr.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise StoreError(f"{group / name}: no such array; delete {group} and prepare again") from error
    shape = tuple(described["shape"])
    dtype = np.dtype(described["data_type"])
    if 0 in shape:
        return np.empty(shape, dtype)
    chunk = group / name / "c" / "/".join(["0"] * len(shape))
    if len(described["codecs"]) != 1 or not chunk.exists() or chunk.stat().st_size != dtype.itemsize * np.prod(shape):
        raise StoreError(f"{group / name}: not one uncompressed chunk; delete {group} and prepare again")
    # np.memmap holds a file descriptor while it lives, and 888 scans would pass the usual limit of 1024.
    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    mapped = torch.from_file(str(chunk), shared=False, size=int(np.prod(shape)), dtype=kind).numpy().reshape(shape)
    mapped.flags.writeable = False
    return mapped


def find_damage(group: Location) -> str:
    """Read everything in a whole group again; what is wrong, or nothing.

    Compressed chunks are checked against their own checksums, plain arrays against the one in the attributes.
    """
    try:
        attributes = read_attributes(group)
        for name, size in attributes.get("bytes", {}).items():
            if _bytes_in(group / name) != size:
                return f"{name} lost or gained bytes"
            array = read_array(group, name)
            expected = attributes.get("checksums", {}).get(name)
            if expected is not None and checksum(array) != expected:
                return f"{name} is damaged (its checksum differs)"
    except StoreError as error:
        return str(error).removeprefix(f"{group}: ")
    return ""


def key_digest(key: Any) -> str:
    """A short fingerprint of what a group was made from, equal before and after it went through JSON."""
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:24]


def checksum(array: npt.NDArray[Any]) -> str:
    """The XXH3 checksum (128 bits) of an array's values in C order, as hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)


def groups_in(location: Location) -> list[Location]:
    """The Zarr groups directly in a folder, sorted by name; whole or not. Hidden ones are not finished."""
    if isinstance(location, RemoteFolder):
        return [location / name for name in location.folders()]
    return [path.parent for path in sorted(location.glob("*/zarr.json")) if not path.parent.name.startswith(".")]


def remove(group: Location) -> None:
    """Delete a group, if it is there."""
    if isinstance(group, RemoteFolder):
        group.remove()
    else:
        shutil.rmtree(group, ignore_errors=True)


@cache
def use_zarrs() -> None:
    """Let zarr encode and decode chunks through zarrs' codec pipeline, from now on in this process."""
    import zarrs  # noqa: F401  # registers the pipeline

    # It says so for each array of each object store, and nothing can be done about it.
    warnings.filterwarnings("ignore", "Successfully reconstructed a store", RuntimeWarning)
    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})


@contextmanager
def _system_errors() -> Iterator[None]:
    """Let a full disk be an OSError: zarrs makes a RuntimeError of it that only says the error's number."""
    try:
        yield
    except RuntimeError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _write_arrays(
    group: Location, arrays: Mapping[str, npt.NDArray[Any] | Sparse], chunks: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """Write the arrays and return what their attributes say of them: sizes and checksums."""
    use_zarrs()
    sizes, checksums = {}, {}
    for name, array in arrays.items():
        dtype = np.dtype(np.uint8) if isinstance(array, Sparse) else array.dtype
        wanted = chunks.get(name, array.shape)
        chunk = tuple(max(1, min(c, n)) for c, n in zip(wanted, array.shape, strict=True))
        stored = zarr.create_array(
            _zarr_store(group / name),
            shape=array.shape,
            dtype=dtype,
            chunks=chunk,
            compressors=_compressors() if name in chunks else None,
            filters=None,
            zarr_format=3,
            config={"write_empty_chunks": False},
        )
        if isinstance(array, Sparse):
            _paint(stored, array)
        elif name in chunks:
            _write_chunks(stored, array, group / name)
            if isinstance(group, RemoteFolder) and stored.nchunks_initialized != _filled_chunks(array, chunk):
                raise StoreError(f"{group / name}: another run is writing it; run again")
        else:
            # As zarr would write it, all zeros included: a file that is not there cannot be mapped.
            if array.size:
                _write_bytes(group / name, "c" + "/0" * array.ndim, array)
            checksums[name] = checksum(array)
        sizes[name] = _bytes_in(group / name)
    return {"bytes": sizes, "checksums": checksums}


def _write_chunks(stored: zarr.Array, array: npt.NDArray[Any], location: Location) -> None:
    """Write some rows of chunks at a time, and let the disk take those while the next ones are compressed."""
    step = stored.chunks[0] * CHUNKS_AT_ONCE
    with ThreadPoolExecutor(1, thread_name_prefix="flush") as flushing:
        for start in range(0, len(array), step):
            stored[start : start + step] = array[start : start + step]
            if isinstance(location, Path):
                first = start // stored.chunks[0]
                flushing.submit(_flush, [location / "c" / str(n) for n in range(first, first + CHUNKS_AT_ONCE)])


def _filled_chunks(array: npt.NDArray[Any], chunk: tuple[int, ...]) -> int:
    """How many chunks hold anything but zeros: zarr writes no others."""
    starts = product(*(range(0, n, c) for n, c in zip(array.shape, chunk)))
    return sum(bool(array[tuple(slice(s, s + c) for s, c in zip(start, chunk))].any()) for start in starts)


def _flush(folders: Sequence[Path]) -> None:
    """Start what `_sync_tree` ends: whether it worked is seen there."""
    with suppress(OSError):
        for folder in folders:
            _sync_tree(folder)


def _paint(stored: zarr.Array, sparse: Sparse) -> None:
    """Write the slabs of chunks that the boxes touch, each once."""
    depth = stored.chunks[0]
    touched = sorted({n for box, _ in sparse.boxes for n in range(box[0].start // depth, -(-box[0].stop // depth))})
    for number in touched:
        start, stop = number * depth, min((number + 1) * depth, sparse.shape[0])
        slab = np.zeros((stop - start, *sparse.shape[1:]), dtype=np.uint8)
        for box, inside in sparse.boxes:
            low, high = max(box[0].start, start), min(box[0].stop, stop)
            if low < high:
                part = inside[low - box[0].start : high - box[0].start]
                slab[(slice(low - start, high - start), *box[1:])] |= part
        stored[start:stop] = slab


def _description(attributes: Mapping[str, Any]) -> bytes:
    whole = {**attributes, "complete": True}
    sealed = {**whole, "seal": key_digest(json.loads(json.dumps(whole)))}
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": sealed}, indent=2).encode()


def _compressors() -> list[Any]:
    return [
        zarr.codecs.BloscCodec(cname="lz4", clevel=LZ4_LEVEL, shuffle="bitshuffle"),
        zarr.codecs.Crc32cCodec(),
    ]


def _zarr_store(location: Location) -> Any:
    return location.zarr_store() if isinstance(location, RemoteFolder) else location


def _read_bytes(group: Location, name: str) -> bytes:
    return group.read(name) if isinstance(group, RemoteFolder) else (group / name).read_bytes()


def _write_bytes(location: Location, name: str, array: npt.NDArray[Any]) -> None:
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    if isinstance(location, RemoteFolder):
        location.write(name, plain.tobytes())
        return
    (location / name).parent.mkdir(parents=True, exist_ok=True)
    with (location / name).open("wb") as handle:
        handle.write(plain.reshape(-1).view(np.uint8).data)  # tofile would not say that the disk is full


def _bytes_in(location: Location) -> int:
    if isinstance(location, RemoteFolder):
        return location.bytes_in()
    return sum(file.stat().st_size for file in location.rglob("*") if file.is_file())


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _sync_tree(folder: Path) -> None:
    """Put everything in a folder on disk, one by one: several at once are slower on the disks tried."""
    for path in [folder, *folder.rglob("*")]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _mark(group: Path) -> tuple[int, int] | None:
    """What tells one writing of a group from another; None where there is none."""
    try:
        about = (group / "zarr.json").stat()
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns


def _take_over(group: Path, beside: Path) -> None:
    """Let the whole groups within a group be within its successor, too; where links can be, no byte is copied."""
    for inner in sorted(path for path in group.iterdir() if path.is_dir()):
        try:
            read_attributes(inner)
        except StoreError:  # an array of the group itself, or a half-written one
            continue
        shutil.copytree(inner, beside / inner.name, copy_function=_link)
        _sync_tree(beside / inner.name)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)
    return target


def _swap(beside: Path, path: Path) -> None:
    """Put a finished folder in place of another, at once where the system can; else the old one steps aside first."""
    if not path.exists():
        os.replace(beside, path)
        return
    old = beside
    if not _exchange(beside, path):  # `os.replace` refuses a folder that is not empty
        old = _step_aside(path)
        try:
            os.replace(beside, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise
    shutil.rmtree(old, ignore_errors=True)


def _step_aside(path: Path) -> Path:
    """Give a folder another name; one of a lower layer of an overlay can have none, and goes."""
    aside = beside_path(path)
    try:
        os.replace(path, aside)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.rmtree(path)
    return aside


def _exchange(one: Path, other: Path) -> bool:
    """Let two names change places, with no moment at which one of them is gone; whether the system could (Linux)."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def touch(group: Location) -> None:
    """Note that a run found use for a group: `luna data sweep` goes by the time of its folder."""
    if isinstance(group, Path):
        with suppress(OSError):  # a folder that may only be read is not swept either
            os.utime(group)
