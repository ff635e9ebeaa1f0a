from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lungml import crop_cache, groups, store
from lungml.geometry import Grid, irc_to_xyz, xyz_to_irc
from lungml.luna import Nodule
from lungml.masks import annotation_mask, nodule_boxes
from lungml.recipes.data import PreparedScan

GRID = Grid(shape_irc=(36, 104, 104), spacing_xyz=(1.0, 1.0, 1.5), origin_xyz=(-40, 10, 5))
SPLITS = ("train", "train", "train", "val", "test")


def toy_scan(number: int) -> tuple[np.ndarray, tuple[Nodule, ...], np.ndarray]:
    """Lung with one large bright (malignant) and one small dimmer (benign) ball; rods are the non-nodules."""
    rng = np.random.default_rng(number)
    hu = rng.normal(-850, 20, GRID.shape_irc)
    axes = np.ogrid[tuple(slice(n) for n in GRID.shape_irc)]
    nodules = []
    for center, diameter_mm, value, malignant in (
        ((10 + number, 30, 30 + 3 * number), 14.0, 60, True),
        ((24 - number, 72, 60 + number), 8.0, -100, False),
    ):
        squared = sum(((a - c) * mm) ** 2 for a, c, mm in zip(axes, center, GRID.spacing_irc))
        hu[squared <= (diameter_mm / 2) ** 2] = value
        x, y, z = irc_to_xyz(center, GRID).tolist()
        nodules.append(
            Nodule(
                series_uid=str(number),
                center_xyz=(x, y, z),
                diameter_mm=diameter_mm,
                malignant=malignant,
                ratings=(5, 4) if malignant else (1, 2),
            )
        )
    negatives = []
    for row in (15, 50, 90):
        hu[5:30, row : row + 3, 80:83] = 40
        negatives.append((17, row + 1, 81))
        negatives.append((int(rng.integers(5, 30)), row + 6, 90))
    return hu.astype(np.int16), tuple(nodules), np.array(negatives)


@pytest.fixture(scope="session")
def toy_scans(tmp_path_factory: pytest.TempPathFactory) -> list[PreparedScan]:
    """Five prepared scans, three of them for training."""
    home: Path = tmp_path_factory.mktemp("home")
    scans = []
    for number, split in enumerate(SPLITS):
        hu, nodules, negatives = toy_scan(number)
        path = home / "scans" / f"{number}.zarr"
        store.write_scan(path, hu, GRID, key={})
        mask = annotation_mask(hu, nodules, GRID)
        store.write_mask(path, "mask", hu.shape, [*nodule_boxes(hu, nodules, GRID).boxes.values()], key={})
        sites = [
            crop_cache.CropSite(
                center_irc=tuple(xyz_to_irc(n.center_xyz, GRID)),
                label=crop_cache.MALIGNANT if n.malignant else crop_cache.BENIGN,
                diameter_mm=n.diameter_mm,
            )
            for n in nodules
        ]
        sites += [
            crop_cache.CropSite(center_irc=tuple(c), label=crop_cache.NON_NODULE, diameter_mm=float("nan"))
            for c in negatives.astype(float)
        ]
        group = home / "crops" / f"{number}"
        crop_cache.write_scan_crops(group, hu, mask, GRID, sites, slab_sites=range(len(sites)), key={})
        scans.append(
            PreparedScan(
                series_uid=str(number),
                split=split,
                store=path,
                mask_name="mask",
                crops=group,
                crops_digest=groups.key_digest({}),
                digest=str(number),
                nodules=nodules,
                excluded=(),
            )
        )
    return scans
