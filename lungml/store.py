"""Where does a scan live on disk, and is what lies there whole and still true?"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import zarr
import zarr.codecs

from lungml.errors import LunaError
from lungml.files import beside_path, naming
from lungml.geometry import Grid

# Raised whenever the bytes or attributes of a store change: older stores are then rebuilt, never read.
SCAN_FORMAT_VERSION = 2
CHUNK_IRC = (16, 256, 256)  # 2 MiB: whole slices for the U-Net and boxes for crops cost about the same
LZ4_LEVEL = 5


class StoreError(LunaError):
    """A store is missing, half-written or of another format version."""


def is_current(path: Path, key: Mapping[str, Any]) -> bool:
    """Whether a whole group lies at `path` and was written under exactly this key.

    Args:
        path: a Zarr group written by `write_group`.
        key: what the content depends on: fingerprints, settings, format versions (JSON values).
    """
    try:
        attributes = read_attributes(path)
    except StoreError:
        return False
    if attributes.get("key") != json.loads(json.dumps(dict(key))):
        return False
    # zarr reads a missing chunk as zeros, which would be soft tissue: a store that lost a file must not pass for whole.
    return all(_bytes_in(path / name) == size for name, size in attributes.get("bytes", {"": -1}).items())


def write_group(
    path: Path,
    arrays: Mapping[str, npt.NDArray[Any]],
    *,
    key: Mapping[str, Any],
    attributes: Mapping[str, Any] | None = None,
    chunks: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Write arrays as one Zarr v3 group that appears whole or not at all, replacing an older one.

    Arrays named in `chunks` are compressed (blosc lz4, bitshuffle) in chunks of that shape; every other array is
    one uncompressed chunk, so its chunk file is a plain C-order dump that `map_array` can memory-map.

    Raises:
        OSError: when the disk is full; nothing is left at `path` then but what was there before.
    """
    beside = beside_path(path)
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            group = zarr.open_group(beside, mode="w", zarr_format=3)
            for name, array in arrays.items():
                chunk = (chunks or {}).get(name)
                stored = group.create_array(
                    name,
                    shape=array.shape,
                    dtype=array.dtype,
                    chunks=_fitting(chunk, array.shape) if chunk else tuple(max(1, n) for n in array.shape),
                    compressors=_lz4() if chunk else None,
                    filters=None,
                    # All-zero chunks are skipped by default, and a file that is not there cannot be mapped.
                    config={"write_empty_chunks": True},
                )
                stored[...] = array
            sizes = {name: _bytes_in(beside / name) for name in arrays}
            group.attrs.update({**(attributes or {}), "key": dict(key), "bytes": sizes, "complete": True})
            _sync_tree(beside)
            _swap(beside, path)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


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


def read_attributes(group: Path) -> dict[str, Any]:
    """The attributes of a whole group.

    Raises:
        StoreError: when there is none, or it was not finished.
    """
    try:
        attributes = json.loads((group / "zarr.json").read_text())["attributes"]
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{group}: no store there; run `luna data prepare`") from error
    if not isinstance(attributes, dict) or attributes.get("complete") is not True:
        raise StoreError(f"{group}: the store is half-written; delete it and run `luna data prepare`")
    return attributes


def write_scan(path: Path, hu: npt.NDArray[np.int16], grid: Grid, *, key: Mapping[str, Any]) -> None:
    """Write one scan's HU volume and grid, with OME-Zarr 0.5 metadata so that standard viewers open it.

    Args:
        path: `<series_uid>.zarr`.
        hu: (index, row, col) int16.
        grid: where the voxels lie.
        key: what the store depends on, see `scan_key`.
    """
    spacing = grid.spacing_irc.tolist()
    multiscale = {
        "name": path.stem,
        "axes": [{"name": axis, "type": "space", "unit": "millimeter"} for axis in "zyx"],
        # OME-Zarr 0.5 knows scale and translation only: the direction stays in `grid`.
        "datasets": [
            {"path": "volume", "coordinateTransformations": [{"type": "scale", "scale": spacing}]},
        ],
    }
    write_group(
        path,
        {"volume": hu},
        key=key,
        attributes={"grid": grid.to_json(), "ome": {"version": "0.5", "multiscales": [multiscale]}},
        chunks={"volume": CHUNK_IRC},
    )


def scan_key(fingerprint: str) -> dict[str, Any]:
    """What a scan's store depends on: the source files and this format."""
    return {"source": fingerprint, "format_version": SCAN_FORMAT_VERSION}


def read_grid(path: Path) -> Grid:
    """The sampling grid of a stored scan."""
    return Grid.from_json(read_attributes(path)["grid"])


def read_volume(path: Path) -> npt.NDArray[np.int16]:
    """The whole HU volume of a stored scan, (index, row, col) int16, not clipped."""
    read_attributes(path)
    return np.asarray(zarr.open_array(path / "volume", mode="r")[...])


def read_slab(path: Path, index: int, context_slices: int) -> npt.NDArray[np.int16]:
    """Slices index - context .. index + context of a stored scan, edge slices repeated.

    Returns:
        (2 * context_slices + 1, rows, cols) int16 HU, not clipped.
    """
    volume = zarr.open_array(path / "volume", mode="r")
    wanted = np.clip(np.arange(index - context_slices, index + context_slices + 1), 0, volume.shape[0] - 1)
    block = np.asarray(volume[int(wanted[0]) : int(wanted[-1]) + 1])
    return block[wanted - wanted[0]]


def write_mask(path: Path, name: str, mask: npt.NDArray[np.uint8], *, key: Mapping[str, Any]) -> None:
    """Add a mask to a stored scan, as a group of its own inside it: whole or not at all.

    Args:
        path: `<series_uid>.zarr`, written before.
        name: `mask` or another mask's name.
        mask: (index, row, col) uint8, 1 inside a nodule.
        key: what the mask depends on.
    """
    read_attributes(path)
    write_group(path / name, {"volume": mask}, key=key, chunks={"volume": CHUNK_IRC})


def read_mask(path: Path, name: str) -> npt.NDArray[np.uint8]:
    """A stored mask, (index, row, col) uint8."""
    read_attributes(path / name)
    return np.asarray(zarr.open_array(path / name / "volume", mode="r")[...])


def _lz4() -> zarr.codecs.BloscCodec:
    return zarr.codecs.BloscCodec(cname="lz4", clevel=LZ4_LEVEL, shuffle="bitshuffle")


def _fitting(chunk: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(max(1, min(c, n)) for c, n in zip(chunk, shape, strict=True))


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _sync_tree(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


def _swap(beside: Path, path: Path) -> None:
    """Put a finished folder in place; `os.replace` refuses a folder that is not empty, so the old one steps aside."""
    if path.exists():
        old = beside_path(path)
        with suppress(FileNotFoundError):  # another run moved it first
            os.replace(path, old)
        shutil.rmtree(old, ignore_errors=True)
    try:
        os.replace(beside, path)
    except OSError:
        if not path.exists():
            raise
        # Two runs finished the same store at once: theirs stands, and ours is equal to it.
        shutil.rmtree(beside, ignore_errors=True)
