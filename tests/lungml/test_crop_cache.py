import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lungml import crop_cache, groups
from lungml.crop_cache import CROP_FORMAT_VERSION, CropCache, CropSite, write_scan_crops
from lungml.geometry import Grid, irc_to_xyz
from lungml.groups import StoreError, key_digest

CPU = torch.device("cpu")

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


def write_many(folder: Path, counts: tuple[int, ...] = (5, 0, 3, 7)) -> tuple[list[Path], np.ndarray]:
    """Several scans of noise, and what a cache of them should hold."""
    rng = np.random.default_rng(0)
    groups, whole = [], []
    for number, count in enumerate(counts):
        hu = rng.integers(-2000, 2000, GRID.shape_irc, dtype=np.int16)
        centers = rng.integers((16, 24, 24), (24, 36, 46), (count, 3)).tolist()
        sites = [CropSite(center_irc=(i, r, c), label=0, diameter_mm=float("nan")) for i, r, c in centers]
        groups.append(folder / f"{number}")
        mask = np.zeros(hu.shape, np.uint8)
        write_scan_crops(groups[-1], hu, mask, GRID, sites, slab_sites=[], key={"scan": number})
        whole += [hu[i - 16 : i + 16, r - 24 : r + 24, c - 24 : c + 24].clip(-1000, 1000) for i, r, c in centers]
    return groups, np.stack(whole)


@pytest.mark.parametrize("memory_bytes", [1, 2**40])
def test_rows_come_in_the_wanted_order_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_bytes: int
) -> None:
    monkeypatch.setattr(crop_cache, "_memory_bytes", lambda: memory_bytes)
    groups, whole = write_many(tmp_path)
    cache = CropCache(groups, ["crops"])
    rng = np.random.default_rng(1)
    for wanted in [np.arange(15), *(rng.integers(0, 15, 6) for _ in range(5))]:
        np.testing.assert_array_equal(cache.rows("crops", wanted), whole[wanted])
        np.testing.assert_array_equal(cache.batch("crops", wanted), whole[wanted])
    out = np.empty((2, 32, 48, 48), np.int16)
    assert cache.rows("crops", np.array([14, 0]), out=out) is out
    np.testing.assert_array_equal(out, whole[[14, 0]])
    with pytest.raises(ValueError, match="C-contiguous"):
        cache.rows("crops", np.array([14, 0]), out=np.empty((4, 32, 48, 48), np.int16)[::2])
    assert cache.scan_of(np.array([4, 5, 7, 8])).tolist() == [0, 2, 2, 3]
    assert cache.rows("crops", np.array([], dtype=np.int64)).shape == (0, 32, 48, 48)


def test_the_scan_is_not_clipped_by_cutting(tmp_path: Path) -> None:
    hu = np.full(GRID.shape_irc, 3000, np.int16)
    hu.flags.writeable = False
    site = CropSite(center_irc=(20, 30, 30), label=0, diameter_mm=float("nan"))
    write_scan_crops(tmp_path / "s", hu, np.zeros(hu.shape, np.uint8), GRID, [site], slab_sites=[0], key={})
    cache = CropCache([tmp_path / "s"], ["crops", "slabs"])
    assert set(np.unique(cache.column("crops"))) == set(np.unique(cache.column("slabs"))) == {1000}


def test_what_fits_the_budget_lies_on_the_device_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups, whole = write_many(tmp_path)
    cache = CropCache(groups, ["crops"])
    assert cache.nbytes("crops") == whole.nbytes
    assert cache.resident("crops", CPU, whole.nbytes - 1) is None
    for piece in (1, 4 * whole[0].nbytes, 2**26):
        monkeypatch.setattr(crop_cache, "PIECE_BYTES", piece)
        resident = cache.resident("crops", CPU, whole.nbytes)
        assert resident is not None
        assert resident.dtype == torch.int16
        np.testing.assert_array_equal(resident, whole)


def test_nothing_has_no_place_on_the_device(tmp_path: Path) -> None:
    groups, _ = write_many(tmp_path, (0, 1))
    assert CropCache(groups[:1], ["crops"]).resident("crops", CPU, 2**30) is None
    assert CropCache([], ["crops"]).resident("crops", CPU, 2**30) is None


def test_crops_of_another_key_are_refused(tmp_path: Path) -> None:
    groups, _ = write_many(tmp_path, (1, 1))
    digests = [key_digest({"scan": number}) for number in range(2)]
    assert len(CropCache(groups, ["crops"], digests=digests)) == 2
    write_scan_crops(
        groups[1], np.zeros(GRID.shape_irc, np.int16), np.zeros(GRID.shape_irc, np.uint8), GRID, [],
        slab_sites=[], key={"scan": "another"},
    )  # fmt: skip
    with pytest.raises(StoreError, match=r"1: changed by another run since this one prepared it; run again$"):
        CropCache(groups, ["crops"], digests=digests)
    assert len(CropCache(groups, ["crops"])) == 1


def test_a_digest_does_not_change_on_its_way_through_a_file() -> None:
    key = {"b": (1, 2.5, None), "a": {"x": "y"}}
    assert key_digest(key) == key_digest({"a": {"x": "y"}, "b": [1, 2.5, None]}) != key_digest({"a": 1})


def test_equal_versions_mean_equal_crops(tmp_path: Path) -> None:
    """Raise CROP_FORMAT_VERSION when this fails: crops under the old one are then cut anew."""
    hu = np.random.default_rng(0).integers(-2000, 2000, GRID.shape_irc, dtype=np.int16)
    mask = (hu > 1500).astype(np.uint8)
    grid = replace(GRID, direction=((0, -1, 0), (1, 0, 0), (0, 0, 1)))
    sites = [
        CropSite(center_irc=(20.5, 30.4, 30), label=2, diameter_mm=8.25, ratings=(5, 4, 5)),
        CropSite(center_irc=(0, 59, 69), label=0, diameter_mm=float("nan")),
    ]
    write_scan_crops(tmp_path / "g", hu, mask, grid, sites, slab_sites=[0, 1], key={})
    assert groups.map_array(tmp_path / "g", "rating_counts").tolist() == [[0, 0, 0, 1, 2], [0] * 5]
    np.testing.assert_allclose(groups.map_array(tmp_path / "g", "places_irc"), [[15.5, 24.4, 24], [0, 47, 47]])
    assert groups.map_array(tmp_path / "g", "spacings_mm").tolist() == [[2.0, 0.7, 0.7]] * 2
    found = hashlib.sha256()
    for name in (
        "crops",
        "labels",
        "diameters_mm",
        "centers_xyz",
        "places_irc",
        "spacings_mm",
        "rating_counts",
        "slabs",
        "slab_masks",
        "slab_labels",
    ):
        array = np.round(groups.map_array(tmp_path / "g", name), 6)
        found.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    assert (CROP_FORMAT_VERSION, found.hexdigest()[:12]) == (3, "2efb36aa69cf")
