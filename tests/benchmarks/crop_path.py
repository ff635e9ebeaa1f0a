"""How fast do scans become masks, crops and batches on the device, and how fast do the peers do it?"""

from __future__ import annotations

import gzip
import importlib.util
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import zarr
from torch.utils.data import DataLoader, Dataset

from lungml.crop_cache import CropCache, CropSite, write_scan_crops
from lungml.crops import CONTEXT_SLICES, CROP_SHAPE, SLAB_SIDE, clip_hu, cut_boxes, cut_slabs
from lungml.devices import resolve_device
from lungml.geometry import Grid, xyz_to_irc
from lungml.loading import DeviceBatches
from lungml.luna import Nodule
from lungml.masks import NoduleBoxes, annotation_mask, nodule_boxes
from lungml.store import read_mask, read_volume, write_mask, write_scan
from tests.benchmarks.data_path import CROPS_PER_BATCH
from tests.benchmarks.measure import Row, Settings, compare, skipped, unequal
from tests.benchmarks.scenes import long_scan

GROUPS, CROPS_PER_GROUP = 4, 60  # as many scans in the crop cache, and crops of each: five batches in all
CUT_CROPS = (60, 600)  # of one scan: what a recipe keeps, and about all candidates that LUNA16 has of a scan
SLABS = 8
BOX_CHUNK = (32, 64, 64)  # of a Zarr store made for reading crops: with 16 x 256 x 256 it takes several times as long
NOT_INSTALLED = "not installed; `make bench` installs it (extra `bench`)"


# ---------------------------------------------------------------- mask
def mask(settings: Settings) -> list[Row]:
    """The report's annotation mask of a scan with four nodules."""
    hu, grid, nodules = long_scan()
    shape = grid.shape_irc
    repeats = max(settings.repeats, 15)
    in_boxes = compare(
        f"mask, {len(nodules)} nodules, 512x512x200",
        "full-volume booleans (the report)",
        lambda: nodule_boxes(hu, nodules, grid, "report"),
        lambda: full_volume_mask(hu, nodules, grid),
        disagree=lambda ours, peer: unequal(painted(ours, shape), peer),
        repeats=repeats,
        note="exact; ours is a box a nodule, the peer one boolean volume for all of them",
    )
    as_volume = compare(
        "",
        "the same, ours as a volume as well",
        lambda: annotation_mask(hu, nodules, grid, "report").max(),
        lambda: full_volume_mask(hu, nodules, grid).view(np.uint8).max(),
        disagree=unequal,
        repeats=repeats,
        note="exact; both volumes are read once: ours leaves most of its pages unwritten till then",
    )
    scan, plain = settings.folder / "scan.zarr", settings.folder / "plain.zarr"
    write_scan(scan, hu, grid, key={})
    stored = compare(
        "",
        "the same, stored with zarr's defaults",
        lambda: _store_boxes(scan, nodule_boxes(hu, nodules, grid, "report"), shape),
        lambda: zarr_store(plain, full_volume_mask(hu, nodules, grid).view(np.uint8)),
        disagree=lambda *_: unequal(read_mask(scan, "mask_report"), np.asarray(zarr.open_array(plain))),
        repeats=settings.repeats,
        note="exact; ours writes the chunks that hold a nodule, and fsyncs; the peer leaves out empty chunks, no fsync",
    )
    return [in_boxes, as_volume, stored]


def painted(found: NoduleBoxes, shape: tuple[int, int, int]) -> npt.NDArray[np.bool_]:
    whole = np.zeros(shape, dtype=np.bool_)
    for box, inside in found.boxes.values():
        whole[box] |= inside
    return whole


def full_volume_mask(hu: npt.NDArray[np.int16], nodules: Sequence[Nodule], grid: Grid) -> npt.NDArray[np.bool_]:
    """The specification as it stands; nodules so near a border that it would wrap around do not occur here."""
    boxes = np.zeros(hu.shape, dtype=np.bool_)
    for nodule in nodules:
        index, row, col = np.rint(xyz_to_irc(nodule.center_xyz, grid)).astype(int).tolist()
        index_radius = row_radius = col_radius = 2
        try:
            while hu[index + index_radius, row, col] > -700 and hu[index - index_radius, row, col] > -700:
                index_radius += 1
        except IndexError:
            index_radius -= 1
        try:
            while hu[index, row + row_radius, col] > -700 and hu[index, row - row_radius, col] > -700:
                row_radius += 1
        except IndexError:
            row_radius -= 1
        try:
            while hu[index, row, col + col_radius] > -700 and hu[index, row, col - col_radius] > -700:
                col_radius += 1
        except IndexError:
            col_radius -= 1
        boxes[
            index - index_radius : index + index_radius + 1,
            row - row_radius : row + row_radius + 1,
            col - col_radius : col + col_radius + 1,
        ] = True
    return boxes & (hu > -700)


def _store_boxes(scan: Path, found: NoduleBoxes, shape: tuple[int, int, int]) -> None:
    write_mask(scan, "mask_report", shape, list(found.boxes.values()), key={})


def zarr_store(path: Path, array: npt.NDArray[Any]) -> None:
    with zarr_defaults():
        zarr.create_array(path, data=array, overwrite=True)


def zarr_defaults() -> Any:
    """zarr-python with its own codec pipeline: ours sets another one for the whole process."""
    return zarr.config.set({"codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline"})


# ---------------------------------------------------------------- crop
def crops(settings: Settings) -> list[Row]:
    """Crops out of one stored scan, and crops out of the cache: warm, and with the page cache dropped."""
    return [*_cut(settings), *_cached(settings)]


def _cut(settings: Settings) -> Iterator[Row]:
    """What the crop cache is made of: one scan is read once, all of its crops and slabs are cut."""
    hu, grid, _ = long_scan()
    scan, boxy = settings.folder / "scan.zarr", settings.folder / "boxes.zarr"
    write_scan(scan, hu, grid, key={})
    with zarr_defaults():
        volume = zarr.create_array(
            boxy, data=hu, chunks=BOX_CHUNK, compressors=zarr.codecs.BloscCodec(cname="lz4", shuffle="bitshuffle")
        )

    for count in CUT_CROPS:
        centers = random_centers(hu.shape, count)
        yield compare(
            f"cut {count} crops, {SLABS} slabs",
            "zarr-python, box by box",
            partial(_cut_from_store, scan, centers),
            partial(zarr_crops_and_slabs, volume, centers),
            disagree=unequal,
            floor=lambda: np.copy(hu),
            repeats=settings.repeats,
            note="exact; ours reads the scan once; the peer's chunks are 32 x 64 x 64; floor: memcpy of the scan",
        )


def _cut_from_store(scan: Path, centers: npt.NDArray[np.int64]) -> npt.NDArray[np.int16]:
    hu = read_volume(scan)
    cut_slabs(hu, centers[:SLABS], CONTEXT_SLICES, SLAB_SIDE)
    return clip_hu(cut_boxes(hu, centers, CROP_SHAPE))


def zarr_crops_and_slabs(volume: zarr.Array, centers: npt.NDArray[np.int64]) -> npt.NDArray[np.int16]:
    for index, row, col in centers[:SLABS].tolist():
        volume[index - 3 : index + 4, row - 48 : row + 48, col - 48 : col + 48]
    return zarr_boxes(volume, centers)


def zarr_boxes(volume: zarr.Array, centers: npt.NDArray[np.int64]) -> npt.NDArray[np.int16]:
    boxes = []
    for index, row, col in centers.tolist():
        boxes.append(volume[index - 16 : index + 16, row - 24 : row + 24, col - 24 : col + 24])
    return np.stack(boxes).clip(-1000, 1000)


@dataclass(frozen=True)
class Peer:
    """Another cache of the same crops.

    Attributes:
        name: of the peer.
        read: crop by number; None where the peer is not installed.
        note: what a reader should know.
        folder: holds its files.
    """

    name: str
    read: Callable[[int], npt.ArrayLike] | None
    note: str
    folder: Path

    def batch(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        assert self.read is not None
        return np.stack([self.read(number) for number in numbers.tolist()])


def _cached(settings: Settings) -> Iterator[Row]:
    groups = write_groups(settings.folder / "crops")
    cache = CropCache(groups, ["crops"])
    whole = cache.rows("crops", np.arange(len(cache)))
    batch = np.random.default_rng(2).permutation(len(cache))[:CROPS_PER_BATCH]
    found = cache.rows("crops", batch)
    buffer = np.empty_like(found)  # as a loop that reads batch after batch has it
    as_float = whole.astype(np.float32)  # what these caches hold in the systems that use them
    libraries = [
        fanout_cache(settings.folder / "fanout", as_float),
        persistent_dataset(settings.folder / "monai", as_float),
        fanout_cache(settings.folder / "fanout16", whole),
        persistent_dataset(settings.folder / "monai16", whole),
    ]
    files = [pickle_files(settings.folder / "pickle", as_float), gzip_files(settings.folder / "gzip", as_float)]
    for number, peer in enumerate([*libraries, *files]):
        stage = "" if number else f"read {CROPS_PER_BATCH} crops, warm"
        if peer.read is None:
            yield skipped(stage, peer.name, NOT_INSTALLED)
            continue
        yield compare(
            stage,
            peer.name,
            lambda: cache.rows("crops", batch, out=buffer),
            partial(peer.batch, batch),
            disagree=unequal,
            floor=lambda: np.copyto(buffer, found),
            repeats=max(settings.repeats, 9),
            note=f"exact; {peer.note}; ours int16, into a buffer that is kept; floor: memcpy into the same",
        )
    cache = None  # what is mapped cannot be dropped from the page cache
    for number, peer in enumerate(libraries):
        yield _cold("" if number else f"read {CROPS_PER_BATCH} crops, cold", peer, groups, batch, settings)


def _cold(stage: str, peer: Peer, groups: Sequence[Path], batch: npt.NDArray[np.int64], settings: Settings) -> Row:
    if peer.read is None:
        return skipped(stage, peer.name, NOT_INSTALLED)
    opened: list[CropCache] = []

    def forget() -> None:
        opened.clear()
        for folder in (*groups, peer.folder):
            drop_pages(folder)
        opened.append(CropCache(groups, ["crops"]))

    forget()
    before = _bytes_from_disk()
    wanted = opened[0].rows("crops", batch).nbytes
    if _bytes_from_disk() - before < wanted / 2:
        return skipped(stage, peer.name, "this folder's page cache cannot be dropped (in memory, or /proc is closed)")
    return compare(
        stage,
        peer.name,
        lambda: opened[0].rows("crops", batch),
        partial(peer.batch, batch),
        disagree=unequal,
        before=forget,
        repeats=max(settings.repeats, 5),
        note=f"exact; {peer.note}; before each side fsync and posix_fadvise(DONTNEED) on every file of both",
    )


def drop_pages(folder: Path) -> None:
    """Let the kernel forget what it holds of a folder's files."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # what is not written yet cannot be dropped
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _bytes_from_disk() -> int:
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


def write_groups(folder: Path) -> list[Path]:
    """The crop cache of a few scans, which are all cut from one."""
    hu, grid, _ = long_scan()
    nothing = np.zeros(hu.shape, np.uint8)
    groups = []
    for number in range(GROUPS):
        centers = random_centers(hu.shape, CROPS_PER_GROUP, seed=number).tolist()
        sites = [CropSite(center_irc=(i, r, c), label=0, diameter_mm=float("nan")) for i, r, c in centers]
        groups.append(folder / str(number))
        write_scan_crops(groups[-1], hu, nothing, grid, sites, slab_sites=[], key={})
    return groups


def random_centers(shape: Sequence[int], count: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Voxels so far from every border that no crop or slab has to be shifted."""
    margin = np.array((16, 48, 48))
    return np.random.default_rng(seed).integers(margin, np.array(shape) - margin, (count, 3))


def fanout_cache(folder: Path, crops: npt.NDArray[Any]) -> Peer:
    """diskcache's FanoutCache as the book sets it up, the arrays pickled."""
    name = "diskcache FanoutCache, pickled"
    if importlib.util.find_spec("diskcache") is None:
        return Peer(name, None, "", folder)
    from diskcache import FanoutCache

    cache = FanoutCache(str(folder), shards=64, timeout=1, size_limit=2**40)
    for number, crop in enumerate(crops):
        cache[number] = crop
    return Peer(name, cache.__getitem__, str(crops.dtype), folder)


def persistent_dataset(folder: Path, crops: npt.NDArray[Any]) -> Peer:
    """MONAI's PersistentDataset with its own defaults."""
    name = "MONAI PersistentDataset"
    if importlib.util.find_spec("monai") is None:
        return Peer(name, None, "", folder)
    from monai.data import PersistentDataset

    items = [{"number": number} for number in range(len(crops))]
    dataset = PersistentDataset(items, lambda item: {"image": torch.from_numpy(crops[item["number"]])}, folder)
    for number in range(len(crops)):
        dataset[number]
    return Peer(name, lambda number: dataset[number]["image"], str(crops.dtype), folder)


def pickle_files(folder: Path, crops: npt.NDArray[Any]) -> Peer:
    """As the book's cache worked, without its SQLite look-up: it never compressed."""
    folder.mkdir()
    for number, crop in enumerate(crops):
        (folder / str(number)).write_bytes(pickle.dumps(crop, protocol=pickle.HIGHEST_PROTOCOL))
    return Peer(
        "pickle, a file a crop",
        lambda number: pickle.loads((folder / str(number)).read_bytes()),
        f"{crops.dtype}: as the book's cache worked",
        folder,
    )


def gzip_files(folder: Path, crops: npt.NDArray[Any]) -> Peer:
    """As the book's cache was meant, without its SQLite look-up."""
    folder.mkdir()
    for number, crop in enumerate(crops):
        dumped = pickle.dumps(crop, protocol=pickle.HIGHEST_PROTOCOL)
        (folder / str(number)).write_bytes(gzip.compress(dumped, compresslevel=1))  # the level of the book's GzipDisk
    return Peer(
        "gzip + pickle, a file a crop",
        lambda number: pickle.loads(gzip.decompress((folder / str(number)).read_bytes())),
        f"{crops.dtype}, gzip level 1: as the book's cache was meant",
        folder,
    )


# ---------------------------------------------------------------- batch
def batch(settings: Settings) -> list[Row]:
    """An epoch of five shuffled batches, as floats on the model's device; augmentation is another row."""
    device = resolve_device("auto")
    cache = CropCache(write_groups(settings.folder / "crops"), ["crops"])
    whole = cache.rows("crops", np.arange(len(cache)))
    order = np.random.default_rng(3).permutation(len(cache))
    wanted = np.split(order, len(order) // CROPS_PER_BATCH)
    ready = DeviceBatches(cache, ["crops"], device)
    where = "resident on the GPU" if ready.is_resident else "read ahead in one thread"
    as_float = whole.astype(np.float32)
    peers = [
        fanout_cache(settings.folder / "fanout", as_float),
        persistent_dataset(settings.folder / "monai", as_float),
        pickle_files(settings.folder / "pickle", as_float),
    ]
    rows = []
    for number, peer in enumerate(peers):
        stage = "" if number else f"{len(wanted)} batches of {CROPS_PER_BATCH}, {device.type}"
        name = f"DataLoader on {peer.name}"
        if peer.read is None:
            rows.append(skipped(stage, name, NOT_INSTALLED))
            continue
        loader = DataLoader(_Crops(peer), batch_size=CROPS_PER_BATCH, sampler=order.tolist())
        rows.append(
            compare(
                stage,
                name,
                lambda: _on_device((found.arrays[0] for found in ready(wanted)), device),
                lambda loader=loader: _on_device(loader, device),
                disagree=unequal,
                floor=lambda: _on_device(map(torch.from_numpy, np.split(whole, len(wanted))), device),
                repeats=max(settings.repeats, 5),
                note=f"exact; ours {where}; the peer without workers, {peer.note}; floor: crops in RAM, in order",
            )
        )
    return rows


class _Crops(Dataset):
    """A peer's crops for PyTorch's DataLoader."""

    def __init__(self, peer: Peer) -> None:
        assert peer.read is not None
        self._read = peer.read

    def __getitem__(self, number: int) -> torch.Tensor:
        return torch.as_tensor(self._read(number))


def _on_device(batches: Any, device: torch.device) -> npt.NDArray[np.float32]:
    """What the network is given of each batch; a few voxels of each come back, and wait for the device."""
    return np.stack([crops.to(device).float()[:, None, ::8, ::16, ::16].cpu().numpy() for crops in batches])
