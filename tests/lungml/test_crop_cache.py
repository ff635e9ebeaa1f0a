from pathlib import Path

import numpy as np

from lungml.crop_cache import CropCache, CropSite, write_scan_crops
from lungml.geometry import Grid, irc_to_xyz

GRID = Grid(shape_irc=(40, 60, 70), spacing_xyz=(0.7, 0.7, 2.0), origin_xyz=(-10, 20, 5))


def write_two_scans(folder: Path) -> list[Path]:
    groups = []
    for number in range(2):
        hu = np.full(GRID.shape_irc, number * 100, dtype=np.int16)
        hu[20, 30, 30] = 3000
        mask = np.zeros(hu.shape, np.uint8)
        mask[20, 30, 30] = 1
        sites = [
            CropSite(center_irc=(20, 30, 30), label=2, diameter_mm=8.0),
            CropSite(center_irc=(20, 31, 30), label=0, diameter_mm=float("nan")),
        ][: 2 - number]
        groups.append(folder / f"{number}")
        write_scan_crops(groups[-1], hu, mask, GRID, sites, slab_sites=[0], key={"n": number})
    return groups


def test_the_cache_joins_scans(tmp_path: Path) -> None:
    cache = CropCache(write_two_scans(tmp_path), ["crops", "labels", "centers_xyz"])
    assert len(cache) == 3
    assert cache.column("labels").tolist() == [2, 0, 2]
    crops = cache.rows("crops", np.array([2, 0]))
    assert crops.dtype == np.int16
    assert crops[:, 0, 0, 0].tolist() == [100, 0]
    assert crops[:, 16, 24, 24].tolist() == [1000, 1000]  # clipped
    assert cache.scan_of(np.array([0, 1, 2])).tolist() == [0, 0, 1]
    np.testing.assert_allclose(cache.column("centers_xyz")[0], irc_to_xyz((20, 30, 30), GRID))


def test_the_cache_holds_slabs_of_the_sites_asked_for(tmp_path: Path) -> None:
    cache = CropCache(write_two_scans(tmp_path), ["slabs", "slab_masks", "slab_labels"])
    assert len(cache) == 2
    slab, mask = cache.rows("slabs", np.array([0])), cache.rows("slab_masks", np.array([0]))
    assert slab.shape == (1, 7, 96, 96)
    assert mask.shape == (1, 96, 96)
    # The marked voxel lies at the same place in both.
    assert np.argwhere(mask[0]).tolist() == np.argwhere(slab[0, 3] == 1000).tolist()


def test_no_sites_make_empty_arrays_of_the_right_shape(tmp_path: Path) -> None:
    hu = np.zeros(GRID.shape_irc, np.int16)
    write_scan_crops(tmp_path / "e", hu, hu.astype(np.uint8), GRID, [], slab_sites=[], key={})
    cache = CropCache([tmp_path / "e"], ["crops", "slabs"])
    assert len(cache) == 0
