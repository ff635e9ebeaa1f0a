"""How fast do scans become arrays and stores, and crops augmented ones, and how fast do the peers do it?"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
import zarr
from torch.nn.functional import affine_grid, grid_sample

from lungml.augment import augment_crops, draw_affines, report_classification
from lungml.crops import CROP_SHAPE
from lungml.ct import read_scan
from lungml.store import read_volume, write_scan
from lungml.verify import source_described
from tests.benchmarks.measure import Row, Settings, compare, further_than, unequal
from tests.benchmarks.scenes import long_scan, write_mhd

CROPS_PER_BATCH = 48  # the report's batch of the classifiers


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
# zarr-python's own codec pipeline: what it uses where nobody asks for another.
ZARR_PYTHON = "zarr.core.codec_pipeline.BatchedCodecPipeline"


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
    notes = (f"exact; compressed {sizes}; ours also checks and hashes the scan, and fsyncs", "exact")
    return [replace(row, note=note) for row, note in zip(rows, notes)]


def _convert(path: Path, out: Path) -> None:
    with source_described(path) as source:
        scan = read_scan(path)
        write_scan(out, scan.hu, scan.grid, key={}, source=source)


def zarr_convert(path: Path, out: Path, *, fsync: bool) -> None:
    with zarr.config.set({"codec_pipeline.path": ZARR_PYTHON}):
        group = zarr.open_group(out, mode="w")
        group.create_array("volume", data=sitk_read(path))
    for file in out.rglob("*") if fsync else ():
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


def _compression(folder: Path, plain_bytes: int) -> float:
    stored = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return plain_bytes / stored if stored else 0.0


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
