"""How fast do scans become arrays, stores, masks and augmented crops, and how fast do the peers do it?"""

from __future__ import annotations

import gzip
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
import zarr
from torch.nn.functional import affine_grid, grid_sample

from lungml.augment import augment_crops, draw_affines, report_classification
from lungml.crop_cache import CropCache, CropSite, write_scan_crops
from lungml.crops import CROP_SHAPE
from lungml.ct import read_scan
from lungml.geometry import Grid, xyz_to_irc
from lungml.luna import Nodule
from lungml.masks import annotation_mask
from lungml.store import read_volume, write_scan
from tests.benchmarks.measure import Row, Settings, compare, further_than, unequal
from tests.benchmarks.scenes import long_scan, write_mhd

CROPS_PER_BATCH = 48  # the report's batch of the classifiers
CACHED_CROPS = 240


# ---------------------------------------------------------------- read
def read(settings: Settings) -> list[Row]:
    """An uncompressed 512 x 512 x 200 scan becomes an array; whoever wants it clipped clips what it uses."""
    hu, grid, _ = long_scan()
    path = write_mhd(settings.folder, hu, grid)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(torch.get_num_threads())
    clipped = compare(
        "read 512x512x200 .raw",
        "SimpleITK, float32, clip",
        lambda: read_scan(path).hu,
        lambda: sitk_read_clipped(path),
        disagree=lambda ours, peer: unequal(np.clip(ours, -1000, 1000), peer),
        floor=lambda: np.copy(hu),
        repeats=settings.repeats,
        note="exact after clip; ours checks header, size and HU, and stays int16, unclipped; floor: memcpy",
    )
    as_stored = compare(
        "",
        "SimpleITK, left int16",
        lambda: read_scan(path).hu,
        lambda: sitk_read(path),
        disagree=unequal,
        floor=lambda: np.copy(hu),
        repeats=settings.repeats,
        note="exact; the same bytes, no conversion on either side",
    )
    return [clipped, as_stored]


def sitk_read(path: Path) -> npt.NDArray[np.int16]:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def sitk_read_clipped(path: Path) -> npt.NDArray[np.float32]:
    return sitk_read(path).astype(np.float32).clip(-1000, 1000)


# ---------------------------------------------------------------- convert
def convert(settings: Settings) -> list[Row]:
    """From `.mhd` to a store on disk."""
    hu, grid, _ = long_scan()
    path = write_mhd(settings.folder, hu, grid)
    ours, peer = settings.folder / "ours.zarr", settings.folder / "peer.zarr"
    rows = [
        compare(
            stage,
            name,
            lambda: _convert(path, ours),
            lambda fsync=fsync: zarr_convert(path, peer, fsync=fsync),
            disagree=lambda *_: (
                unequal(hu, read_volume(ours)) or unequal(hu, np.asarray(zarr.open_array(peer / "volume")))
            ),
            repeats=settings.repeats,
        )
        for stage, name, fsync in (
            ("convert to Zarr", "SimpleITK + zarr defaults", False),
            ("", "the same, then fsync as ours does", True),
        )
    ]
    # The sizes are known only after both have run.
    sizes = f"{_compression(ours, hu.nbytes):.2f} : 1, peer {_compression(peer, hu.nbytes):.2f} : 1"
    notes = (f"exact; compressed {sizes}; ours also checks the scan and fsyncs", "exact")
    return [replace(row, note=note) for row, note in zip(rows, notes)]


def _convert(path: Path, out: Path) -> None:
    scan = read_scan(path)
    write_scan(out, scan.hu, scan.grid, key={})


def zarr_convert(path: Path, out: Path, *, fsync: bool) -> None:
    group = zarr.open_group(out, mode="w")
    group.create_array("volume", data=sitk_read(path))
    for file in out.rglob("*") if fsync else ():
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


def _compression(folder: Path, plain_bytes: int) -> float:
    stored = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return plain_bytes / stored if stored else 0.0


# ---------------------------------------------------------------- crops
def crops(settings: Settings) -> list[Row]:
    """A batch of 48 training crops, clipped; every file is in the page cache."""
    hu, grid, _ = long_scan()
    rng = np.random.default_rng(2)
    low = np.array(CROP_SHAPE) // 2
    centers = rng.integers(low, np.array(hu.shape) - low, (CACHED_CROPS, 3))
    batch = rng.choice(CACHED_CROPS, CROPS_PER_BATCH, replace=False)

    scan_path = settings.folder / "scan.zarr"
    write_scan(scan_path, hu, grid, key={})
    volume = zarr.open_array(scan_path / "volume", mode="r")

    group = settings.folder / "crops"
    sites = [CropSite(center_irc=(i, r, c), label=0, diameter_mm=float("nan")) for i, r, c in centers.tolist()]
    write_scan_crops(group, hu, np.zeros(hu.shape, np.uint8), grid, sites, slab_sites=[], key={})
    cache = CropCache([group], ["crops"])

    zipped, pickled = settings.folder / "gzip", settings.folder / "pickle"
    zipped.mkdir()
    pickled.mkdir()
    for number, crop in enumerate(cache.rows("crops", np.arange(CACHED_CROPS))):
        dumped = pickle.dumps(crop.astype(np.float32), protocol=pickle.HIGHEST_PROTOCOL)
        # The level that the book's GzipDisk asks for.
        (zipped / str(number)).write_bytes(gzip.compress(dumped, compresslevel=1))
        (pickled / str(number)).write_bytes(dumped)

    found = cache.rows("crops", batch)
    rows = []
    for stage, peer, theirs, note in (
        (
            "read 48 crops",
            "zarr-python, boxes of the scan store",
            lambda: zarr_boxes(volume, centers[batch]),
            "exact; ours from the crop cache; floor: memcpy of 48 crops",
        ),
        (
            "",
            "gzip + pickle, a file a crop",
            lambda: gzip_crops(zipped, batch),
            "exact; as the book's cache was meant: float32, gzip level 1, without its SQLite look-up",
        ),
        (
            "",
            "pickle, a file a crop",
            lambda: pickle_crops(pickled, batch),
            "exact; as the book's cache worked: it never compressed",
        ),
    ):
        rows.append(
            compare(
                stage,
                peer,
                lambda: cache.rows("crops", batch),
                theirs,
                disagree=unequal,
                floor=lambda: np.copy(found),
                repeats=max(settings.repeats, 5),
                note=note,
            )
        )
    return rows


def zarr_boxes(volume: zarr.Array, centers: npt.NDArray[np.int64]) -> npt.NDArray[np.int16]:
    boxes = []
    for index, row, col in centers.tolist():
        boxes.append(volume[index - 16 : index + 16, row - 24 : row + 24, col - 24 : col + 24])
    return np.stack(boxes).clip(-1000, 1000)


def gzip_crops(folder: Path, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    return np.stack([pickle.loads(gzip.decompress((folder / str(n)).read_bytes())) for n in numbers])


def pickle_crops(folder: Path, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    return np.stack([pickle.loads((folder / str(n)).read_bytes()) for n in numbers])


# ---------------------------------------------------------------- mask
def mask(settings: Settings) -> list[Row]:
    """The report's annotation mask of a scan with four nodules."""
    hu, grid, nodules = long_scan()
    made = compare(
        f"mask, {len(nodules)} nodules, 512x512x200",
        "full-volume booleans (the report)",
        lambda: annotation_mask(hu, nodules, grid, "report"),
        lambda: full_volume_mask(hu, nodules, grid),
        disagree=unequal,
        repeats=max(settings.repeats, 5),
        note="exact; the peer has one boolean volume for all nodules; ours leaves most pages unwritten",
    )
    read_once = compare(
        "",
        "the same, and the mask read once",
        lambda: annotation_mask(hu, nodules, grid, "report").max(),
        lambda: full_volume_mask(hu, nodules, grid).view(np.uint8).max(),
        disagree=unequal,
        repeats=max(settings.repeats, 5),
        note="exact; whoever stores the mask pays for the unwritten pages",
    )
    return [made, read_once]


def full_volume_mask(hu: npt.NDArray[np.int16], nodules: tuple[Nodule, ...], grid: Grid) -> npt.NDArray[np.bool_]:
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


# ---------------------------------------------------------------- augment
def augment(settings: Settings) -> list[Row]:
    """The classifiers' augmentation of a batch of 48 crops, matrices and noise included."""
    rng = np.random.default_rng(3)
    # White noise over the whole range of HU: no real crop is as hard to interpolate equally.
    pictures = torch.from_numpy(rng.uniform(-1000, 1000, (CROPS_PER_BATCH, 1, *CROP_SHAPE)).astype(np.float32))

    def ours() -> npt.NDArray[np.float32]:
        return augment_crops(pictures, report_classification(), torch.Generator().manual_seed(4)).numpy()

    return [
        compare(
            stage,
            peer,
            ours,
            lambda peer_augment=peer_augment: peer_augment(pictures).numpy(),
            disagree=further_than(0.01, "HU"),
            repeats=settings.repeats,
            note="within 0.01 HU, the same matrices and noise",
        )
        for stage, peer, peer_augment in (
            ("augment 48 crops", "3D grid_sample, one by one", grid_sample_one_by_one),
            ("", "3D grid_sample, the batch at once", grid_sample_batch),
        )
    ]


@torch.no_grad()
def grid_sample_one_by_one(pictures: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    matrices = draw_affines(report_classification(), len(pictures), 3, generator)
    changed = []
    for picture, matrix in zip(pictures, matrices):
        grid = affine_grid(matrix[None], [1, *picture.shape], align_corners=False)
        moved = grid_sample(picture[None], grid, mode="bilinear", padding_mode="border", align_corners=False)
        changed.append(moved + 25 * torch.randn(moved.shape, generator=generator))
    return torch.cat(changed)


@torch.no_grad()
def grid_sample_batch(pictures: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    matrices = draw_affines(report_classification(), len(pictures), 3, generator)
    grid = affine_grid(matrices, list(pictures.shape), align_corners=False)
    moved = grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved + 25 * torch.randn(moved.shape, generator=generator)
