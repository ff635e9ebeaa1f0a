"""Is every kind of difference between a store and its source found, and is nothing else called one?"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from lungml import groups, store
from lungml.ct import read_scan, scan_fingerprint
from lungml.geometry import Grid
from lungml.home import Home
from lungml.verify import describe_source, find_difference, source_described, verify_stores

UIDS = ("1.2", "1.3")


def write_source(path: Path, add: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    hu = (np.arange(2 * 20 * 30) - 900 + add).astype(np.int16).reshape(2, 20, 30)
    sitk.WriteImage(sitk.GetImageFromArray(hu), str(path))
    return path


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Two scans, the first of them with a mask, and its crops."""
    home = Home(tmp_path / "artifacts")
    for uid in UIDS:
        path = write_source(tmp_path / "source" / f"{uid}.mhd")
        scan = read_scan(path)
        with source_described(path) as source:
            key = store.scan_key(scan_fingerprint(path))
            store.write_scan(home.scans / f"{uid}.zarr", scan.hu, scan.grid, key=key, source=source)
    box = (slice(0, 1), slice(3, 5), slice(6, 9))
    store.write_mask(home.scans / "1.2.zarr", "mask", (2, 20, 30), [(box, np.ones((1, 2, 3), bool))], key={})
    groups.write_group(home.crops / "toy.zarr" / "1.2", {"crops": np.ones((2, 3), np.int16)}, key={})
    return home


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    return {uid: tmp_path / "source" / f"{uid}.mhd" for uid in UIDS}


def flip(path: Path) -> None:
    """One bit of one byte, the size and the time stay."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_whole_stores_equal_their_sources(home: Home, sources: dict[str, Path]) -> None:
    seen: list[tuple[int, int]] = []
    found = verify_stores(home, sources, progress=lambda done, total: seen.append((done, total)))
    assert (found.scans, found.masks, found.crops, found.without_source, found.wrong) == (2, 1, 1, 0, ())
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    alone = verify_stores(home, {"1.2": sources["1.2"]})
    assert (alone.scans, alone.without_source, alone.wrong) == (1, 1, ())
    assert verify_stores(Home(home.root / "empty"), sources).scans == 0


def rewrite_volume(home: Home, _: dict[str, Path]) -> None:
    # A store that is whole in itself, and wrong.
    path = home.scans / "1.2.zarr"
    hu = store.read_volume(path)
    hu[0, 0, 0] += 1
    about, grid = groups.read_attributes(path), store.read_grid(path)
    groups.remove(path)  # a whole one under an equal key would be kept
    store.write_scan(path, hu, grid, key=about["key"], source=lambda: about["source"])


DAMAGE: dict[str, tuple[Callable[[Home, dict[str, Path]], object], str]] = {
    "a bit of the volume": (
        lambda home, _: flip(home.scans / "1.2.zarr/volume/c/0/0/0"),
        r"1\.2\.zarr: volume is damaged \(.*checksum",
    ),
    "a bit of the mask": (lambda home, _: flip(home.scans / "1.2.zarr/mask/volume/c/0/0/0"), "mask: volume is damaged"),
    "a mask's chunk": (
        lambda home, _: (home.scans / "1.2.zarr/mask/volume/c/0/0/0").unlink(),
        "mask: volume lost or gained bytes",
    ),
    "a bit of the crops": (lambda home, _: flip(home.crops / "toy.zarr/1.2/crops/c/0/0"), "crops is damaged"),
    "the description": (lambda home, _: (home.scans / "1.2.zarr/zarr.json").write_text("{}"), "no store there"),
    "another voxel": (rewrite_volume, "1 voxels are not the source's"),
    "a bit of the source": (
        lambda _, sources: flip(sources["1.2"].with_suffix(".raw")),
        "its source has changed since",
    ),
    "another source": (lambda _, sources: write_source(sources["1.2"], add=1), "its source has changed since"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_of_every_kind_is_found_and_repaired_by_deleting(
    case: str, home: Home, sources: dict[str, Path]
) -> None:
    damage, message = DAMAGE[case]
    damage(home, sources)
    ((location, difference),) = verify_stores(home, sources).wrong
    assert re.search(message, f"{location}: {difference}")
    verify_stores(home, sources, repair=True)
    assert not location.exists()
    assert verify_stores(home, sources).wrong == ()


def test_a_store_whose_source_cannot_be_read_is_told_of_and_never_deleted(home: Home, sources: dict[str, Path]) -> None:
    sources["1.2"].unlink()  # a disk that is not mounted looks the same
    found = verify_stores(home, sources, repair=True)
    assert (found.scans, found.wrong) == (1, ())
    ((location, reason),) = found.unread
    assert location == home.scans / "1.2.zarr"
    assert "cannot be read: " in reason
    assert location.exists()


def test_a_checksum_covers_names_and_every_byte(tmp_path: Path) -> None:
    path = write_source(tmp_path / "1.2.mhd")
    first = describe_source(path)
    assert first["files"] == 2
    assert first["bytes"] == sum(file.stat().st_size for file in tmp_path.iterdir())
    flip(path.with_suffix(".raw"))
    assert describe_source(path)["checksum"] != first["checksum"]


def test_a_description_that_was_edited_is_no_description(home: Home, sources: dict[str, Path]) -> None:
    path = home.scans / "1.2.zarr"
    header = path / "zarr.json"
    text = header.read_text()
    assert '"spacing_xyz": [\n        1.0' in text
    header.write_text(text.replace('"spacing_xyz": [\n        1.0', '"spacing_xyz": [\n        1.5'))
    assert "damaged or edited" in find_difference(path, sources["1.2"])


def test_the_grid_is_compared(home: Home, sources: dict[str, Path]) -> None:
    path = home.scans / "1.2.zarr"
    about, hu = groups.read_attributes(path), store.read_volume(path)
    groups.remove(path)
    grid = replace(Grid.from_json(about["grid"]), spacing_xyz=(1.5, 1.0, 1.0))
    store.write_scan(path, hu, grid, key=about["key"], source=lambda: about["source"])
    assert find_difference(path, sources["1.2"]) == "the grid is not the source's"


def test_a_damaged_store_without_a_source_is_told_of_and_kept(home: Home, sources: dict[str, Path]) -> None:
    flip(home.scans / "1.2.zarr/volume/c/0/0/0")
    found = verify_stores(home, {"1.3": sources["1.3"]}, repair=True)
    ((location, _),) = found.wrong
    assert found.deleted == ()
    assert location.exists()  # it is all there is of the scan


def test_a_damaged_mask_costs_only_itself(home: Home, sources: dict[str, Path]) -> None:
    flip(home.scans / "1.2.zarr/mask/volume/c/0/0/0")
    assert verify_stores(home, sources, repair=True).deleted == (home.scans / "1.2.zarr" / "mask",)
    assert groups.find_damage(home.scans / "1.2.zarr") == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_chunk_that_may_not_be_read_is_no_damage(home: Home, sources: dict[str, Path]) -> None:
    (home.scans / "1.2.zarr/volume/c/0/0/0").chmod(0)
    found = verify_stores(home, sources, repair=True)
    assert (found.wrong, found.deleted) == ((), ())
    assert "cannot be read" in found.unread[0][1]
