"""Does a store still hold exactly what its source holds?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from lungml import groups, store
from lungml.ct import ScanError, read_scan, source_files
from lungml.groups import StoreError
from lungml.home import Home
from lungml.remote import Location, RemoteError

READ_BYTES = 4 * 1024 * 1024


def describe_source(path: Path) -> dict[str, Any]:
    """The full checksum (XXH3, 128 bits) of a scan's files, with their number and bytes.

    Raises:
        ScanError: the scan's header cannot be read.
        OSError: a file cannot.
    """
    files = source_files(path)
    digest, total = xxhash.xxh3_128(), 0
    for file in files:
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode("utf-8", "surrogateescape"))
        with file.open("rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while block := handle.read(READ_BYTES):
                digest.update(block)
                total += len(block)
    return {"checksum": digest.hexdigest(), "files": len(files), "bytes": total}


@contextmanager
def source_described(path: Path) -> Iterator[Callable[[], dict[str, Any]]]:
    """`describe_source` beside other work: a thread reads while the caller goes on, and is asked at the end."""
    with ThreadPoolExecutor(1, thread_name_prefix="checksum") as pool:
        yield pool.submit(describe_source, path).result


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What `verify_stores` found.

    Attributes:
        scans: stores that equal their source.
        without_source: stores that are whole, and whose source is not there to compare.
        masks, crops: mask and crop groups that are whole.
        wrong: of every store or group that is not as it should be, where it lies and what is wrong.
        deleted: of what was wrong, what `repair` deleted.
        unread: of every store that cannot be read, or whose source cannot, where it lies and why; it is left alone.
    """

    scans: int
    without_source: int
    masks: int
    crops: int
    wrong: tuple[tuple[Location, str], ...]
    unread: tuple[tuple[Location, str], ...]
    deleted: tuple[Location, ...]


def verify_stores(
    home: Home,
    sources: Mapping[str, Path],
    *,
    repair: bool = False,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Verified:
    """Read every store and every crop again, to the last byte.

    Args:
        home: where they lie.
        sources: series_uid -> what the scan was read from.
        repair: delete what is wrong and can be made again: masks, crops, and scans whose source is there.
        workers: scans read at once; each needs the memory of two copies of a scan.
        progress: called with how many are done and how many there are.
    """
    scans = groups.groups_in(home.scans)
    masks = [group for scan in scans for group in groups.groups_in(scan) if group.name != "volume"]
    cuts = [group for recipe in sorted(home.crops.glob("*")) for group in groups.groups_in(recipe)]
    others = {*masks, *cuts}

    def look(location: Location) -> tuple[str, str]:
        source = None if location in others else sources.get(location.stem)
        try:
            return (find_difference(location, source) if source else groups.find_damage(location)), ""
        except (ScanError, RemoteError, OSError) as error:
            return "", f"cannot be read: {error}"

    wrong, unread, deleted, everything = [], [], [], [*scans, *masks, *cuts]
    with ThreadPoolExecutor(workers) as pool:
        for done, (location, (difference, reason)) in enumerate(zip(everything, pool.map(look, everything)), start=1):
            if reason:
                unread.append((location, reason))
            if difference:
                wrong.append((location, difference))
                if repair and (location in others or location.stem in sources):  # nothing else can be made anew
                    groups.remove(location)
                    deleted.append(location)
            if progress:
                progress(done, len(everything))
    bad = {location for location, _ in [*wrong, *unread]}
    good = [location for location in scans if location not in bad]
    alone = sum(location.stem not in sources for location in good)
    return Verified(
        scans=len(good) - alone,
        without_source=alone,
        masks=sum(location not in bad for location in masks),
        crops=sum(location not in bad for location in cuts),
        wrong=tuple(wrong),
        unread=tuple(unread),
        deleted=tuple(deleted),
    )


def find_difference(path: Location, source: Path) -> str:
    """Read a scan's store and its source again, to the last voxel; what differs, or nothing.

    The masks in it are groups of their own.

    Args:
        path: `<series_uid>.zarr`.
        source: the scan's `.mhd` or what it was read from.

    Raises:
        ScanError, OSError: the source cannot be read.
    """
    try:
        grid, volume = store.read_grid(path), store.read_volume(path)
        stored = groups.read_attributes(path).get("source")
    except StoreError as error:
        return str(error).removeprefix(f"{path}: ")
    about, scan = describe_source(source), read_scan(source)
    if stored != about:
        return "its source has changed since (another checksum)"
    if grid != scan.grid:
        return "the grid is not the source's"
    if not np.array_equal(volume, scan.hu):
        return f"{np.count_nonzero(volume != scan.hu)} voxels are not the source's"
    return ""
