import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from lungml import store
from lungml.geometry import Grid

GRID = Grid(shape_irc=(5, 20, 30), spacing_xyz=(0.7, 0.8, 2.5000001), origin_xyz=(-1.5, 2, -340.045))


def volume() -> np.ndarray:
    return np.random.default_rng(1).integers(-3024, 5892, GRID.shape_irc, dtype=np.int16)


def test_a_scan_comes_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "1.2.3.zarr"
    store.write_scan(path, volume(), GRID, key=store.scan_key("abc"))
    np.testing.assert_array_equal(store.read_volume(path), volume())
    assert store.read_grid(path) == GRID
    assert store.is_current(path, store.scan_key("abc"))
    assert not store.is_current(path, store.scan_key("abd"))


def test_standard_viewers_find_the_volume(tmp_path: Path) -> None:
    store.write_scan(tmp_path / "a.zarr", volume(), GRID, key={})
    ome = zarr.open_group(tmp_path / "a.zarr", mode="r").attrs["ome"]
    assert ome["version"] == "0.5"
    dataset = ome["multiscales"][0]["datasets"][0]
    assert dataset["coordinateTransformations"][0]["scale"] == [2.5000001, 0.8, 0.7]
    assert zarr.open_group(tmp_path / "a.zarr", mode="r")[dataset["path"]].shape == GRID.shape_irc


def test_slab_repeats_edge_slices(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    store.write_scan(path, volume(), GRID, key={})
    np.testing.assert_array_equal(store.read_slab(path, 0, 3), volume()[[0, 0, 0, 0, 1, 2, 3]])
    np.testing.assert_array_equal(store.read_slab(path, 4, 3), volume()[[1, 2, 3, 4, 4, 4, 4]])


def test_a_half_written_store_is_never_read(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    store.write_scan(path, volume(), GRID, key={"v": 1})
    header = path / "zarr.json"
    fields = json.loads(header.read_text())
    del fields["attributes"]["complete"]
    header.write_text(json.dumps(fields))
    assert not store.is_current(path, {"v": 1})
    with pytest.raises(store.StoreError, match="half-written"):
        store.read_volume(path)


def test_a_failed_write_leaves_the_old_store_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.zarr"
    store.write_scan(path, volume(), GRID, key={"v": 1})

    def full_disk(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_sync_tree", full_disk)
    with pytest.raises(OSError, match="No space"):
        store.write_scan(path, volume() + 1, GRID, key={"v": 2})
    assert store.is_current(path, {"v": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_rewriting_replaces_the_store(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    store.write_scan(path, volume(), GRID, key={"v": 1})
    store.write_scan(path, volume()[::-1], GRID, key={"v": 2})
    np.testing.assert_array_equal(store.read_volume(path), volume()[::-1])
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_masks_live_inside_the_scan_and_go_with_it(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    store.write_scan(path, volume(), GRID, key={"v": 1})
    mask = (volume() > 0).astype(np.uint8)
    store.write_mask(path, "mask", mask, key={"rule": "bounded"})
    np.testing.assert_array_equal(store.read_mask(path, "mask"), mask)
    store.write_scan(path, volume(), GRID, key={"v": 2})
    assert not store.is_current(path / "mask", {"rule": "bounded"})


def test_mapped_arrays_equal_what_was_written_even_all_zero(tmp_path: Path) -> None:
    crops = np.zeros((3, 4, 5), dtype=np.int16)
    store.write_group(tmp_path / "c", {"crops": crops, "none": crops[:0]}, key={})
    mapped = store.map_array(tmp_path / "c", "crops")
    assert not mapped.flags.writeable
    np.testing.assert_array_equal(mapped, crops)
    assert store.map_array(tmp_path / "c", "none").shape == (0, 4, 5)


def test_mapping_many_arrays_holds_no_file_open(tmp_path: Path) -> None:
    store.write_group(tmp_path / "c", {"crops": np.ones((3, 4), np.int16)}, key={})
    before = len(list(Path("/proc/self/fd").iterdir()))
    mapped = [store.map_array(tmp_path / "c", "crops") for _ in range(50)]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
    assert all(array.sum() == 12 for array in mapped)


def test_a_store_that_lost_a_file_is_not_whole(tmp_path: Path) -> None:
    store.write_scan(tmp_path / "a.zarr", volume(), GRID, key={"v": 1})
    assert store.is_current(tmp_path / "a.zarr", {"v": 1})
    chunk = next(file for file in (tmp_path / "a.zarr/volume/c").rglob("*") if file.is_file())
    chunk.unlink()  # zarr would read zeros there
    assert not store.is_current(tmp_path / "a.zarr", {"v": 1})


def test_a_damaged_array_is_refused(tmp_path: Path) -> None:
    store.write_group(tmp_path / "c", {"crops": np.ones((3, 4), np.int16)}, key={})
    chunk = tmp_path / "c/crops/c/0/0"
    chunk.write_bytes(chunk.read_bytes()[:-2])
    with pytest.raises(store.StoreError, match="prepare again"):
        store.map_array(tmp_path / "c", "crops")
    shutil.rmtree(tmp_path / "c/crops")
    with pytest.raises(store.StoreError, match="no such array"):
        store.map_array(tmp_path / "c", "crops")


def test_the_bytes_of_format_version_2(tmp_path: Path) -> None:
    # When this fails, the format changed: raise SCAN_FORMAT_VERSION, or every older store is read wrongly.
    assert store.SCAN_FORMAT_VERSION == 2
    hu = np.arange(2 * 4 * 4, dtype=np.int16).reshape(2, 4, 4)
    grid = Grid(shape_irc=(2, 4, 4), spacing_xyz=(1, 1, 1), origin_xyz=(0, 0, 0))
    store.write_scan(tmp_path / "a.zarr", hu, grid, key={})
    described = json.loads((tmp_path / "a.zarr/volume/zarr.json").read_text())
    assert described["data_type"] == "int16"
    assert described["chunk_grid"]["configuration"]["chunk_shape"] == [2, 4, 4]
    assert [codec["name"] for codec in described["codecs"]] == ["bytes", "blosc"]
    blosc = described["codecs"][1]["configuration"]
    assert (blosc["cname"], blosc["clevel"], blosc["shuffle"]) == ("lz4", 5, "bitshuffle")


@pytest.mark.parametrize(
    "damage", [b"", b"[]", b"\xff\xfe\x00", b'{"attributes": []}', b'{"attributes": {"complete": true}}']
)
def test_a_damaged_description_is_made_again(damage: bytes, tmp_path: Path) -> None:
    store.write_scan(tmp_path / "a.zarr", volume(), GRID, key={"v": 1})
    (tmp_path / "a.zarr/zarr.json").write_bytes(damage)
    assert not store.is_current(tmp_path / "a.zarr", {"v": 1})
