import errno
import hashlib
import json
import resource
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import zarr

from lungml import groups, store
from lungml.geometry import Grid

GRID = Grid(shape_irc=(5, 20, 30), spacing_xyz=(0.7, 0.8, 2.5000001), origin_xyz=(-1.5, 2, -340.045))


def volume() -> np.ndarray:
    return np.random.default_rng(1).integers(-3024, 5892, GRID.shape_irc, dtype=np.int16)


def test_a_scan_comes_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "1.2.3.zarr"
    store.write_scan(path, volume(), GRID, key=store.scan_key("abc"))
    np.testing.assert_array_equal(store.read_volume(path), volume())
    assert store.read_grid(path) == GRID
    assert groups.is_current(path, store.scan_key("abc"))
    assert not groups.is_current(path, store.scan_key("abd"))


def test_standard_viewers_find_the_volume(tmp_path: Path) -> None:
    store.write_scan(tmp_path / "a.zarr", volume(), GRID, key={})
    ome = zarr.open_group(tmp_path / "a.zarr", mode="r").attrs["ome"]
    assert ome["version"] == "0.5"
    dataset = ome["multiscales"][0]["datasets"][0]
    assert dataset["coordinateTransformations"][0]["scale"] == [2.5000001, 0.8, 0.7]
    assert zarr.open_group(tmp_path / "a.zarr", mode="r")[dataset["path"]].shape == GRID.shape_irc


def test_a_half_written_store_is_never_read(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    store.write_scan(path, volume(), GRID, key={"v": 1})
    header = path / "zarr.json"
    fields = json.loads(header.read_text())
    del fields["attributes"]["complete"]
    header.write_text(json.dumps(fields))
    assert not groups.is_current(path, {"v": 1})
    with pytest.raises(groups.StoreError, match="half-written"):
        store.read_volume(path)


def test_a_failed_write_leaves_the_old_store_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.zarr"
    store.write_scan(path, volume(), GRID, key={"v": 1})

    def full_disk(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(groups, "_sync_tree", full_disk)
    with pytest.raises(OSError, match="No space"):
        store.write_scan(path, volume() + 1, GRID, key={"v": 2})
    assert groups.is_current(path, {"v": 1})
    assert sorted(p.name for p in tmp_path.iterdir()) == [".groups.lock", "a.zarr"]


def test_a_chunk_that_cannot_be_written_is_an_error_of_the_system_that_names_the_store(tmp_path: Path) -> None:
    path, allowed = tmp_path / "a.zarr", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, allowed[1]))  # a chunk is larger, its description is not
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            store.write_scan(path, volume(), GRID, key={"v": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert isinstance(caught.value.__cause__.__cause__, RuntimeError)  # of zarrs, which says no more than a number
    assert not list(tmp_path.glob("*.zarr"))


def test_rewriting_replaces_the_store(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    store.write_scan(path, volume(), GRID, key={"v": 1})
    store.write_scan(path, volume()[::-1], GRID, key={"v": 2})
    np.testing.assert_array_equal(store.read_volume(path), volume()[::-1])
    assert sorted(p.name for p in tmp_path.iterdir()) == [".groups.lock", "a.zarr"]


def test_masks_live_inside_the_scan_and_go_with_it(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    store.write_scan(path, volume(), GRID, key={"v": 1})
    box = (slice(1, 4), slice(0, 2), slice(28, 30))
    inside = np.arange(12).reshape(3, 2, 2) % 3 == 0
    other = (slice(3, 5), slice(1, 3), slice(29, 30))
    store.write_mask(
        path, "mask", GRID.shape_irc, [(box, inside), (other, np.ones((2, 2, 1), bool))], key={"rule": "bounded"}
    )
    expected = np.zeros(GRID.shape_irc, np.uint8)
    expected[box] = inside
    expected[other] = 1
    np.testing.assert_array_equal(store.read_mask(path, "mask"), expected)
    assert groups.is_current(path, {"v": 1})
    store.write_scan(path, volume(), GRID, key={"v": 2})
    assert not groups.is_current(path / "mask", {"rule": "bounded"})


def test_a_run_that_comes_late_with_an_equal_store_leaves_the_mask_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    store.write_scan(path, volume(), GRID, key={"v": 1})
    store.write_mask(path, "mask", GRID.shape_irc, [], key={"rule": "r"})
    store.write_scan(path, volume(), GRID, key={"v": 1})
    assert groups.is_current(path / "mask", {"rule": "r"})
    assert sorted(p.name for p in tmp_path.iterdir()) == [".groups.lock", "a.zarr"]


def test_a_store_that_is_replaced_while_it_is_read_is_never_read_as_zeros(tmp_path: Path) -> None:
    # zarr takes a chunk that is not there any more for zeros.
    path, hu = tmp_path / "a.zarr", np.full((64, 32, 32), 7, np.int16)
    grid = Grid(shape_irc=hu.shape, spacing_xyz=(1, 1, 1), origin_xyz=(0, 0, 0))
    store.write_scan(path, hu, grid, key={"v": 0})
    stop = threading.Event()

    def replace() -> None:
        version = 1
        while not stop.is_set():
            store.write_scan(path, hu, grid, key={"v": version})
            version += 1

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        whole = 0
        for _ in range(200):
            with suppress(groups.StoreError):  # that another run replaced it is said
                assert (store.read_volume(path) == 7).all()
                whole += 1
    finally:
        stop.set()
        writer.join()
    assert whole


def test_only_the_chunks_that_a_nodule_touches_are_written(tmp_path: Path) -> None:
    shape = (4 * store.CHUNK_IRC[0] + 3, 6, 7)
    grid = Grid(shape_irc=shape, spacing_xyz=(1, 1, 1), origin_xyz=(0, 0, 0))
    store.write_scan(tmp_path / "a.zarr", np.zeros(shape, np.int16), grid, key={})
    deep = store.CHUNK_IRC[0]
    boxes = [((slice(deep - 1, deep + 1), slice(0, 1), slice(0, 1)), np.ones((2, 1, 1), bool))]
    boxes += [((slice(4 * deep, 4 * deep + 3), slice(5, 6), slice(6, 7)), np.ones((3, 1, 1), bool))]
    store.write_mask(tmp_path / "a.zarr", "mask", shape, boxes, key={})
    assert store.read_mask(tmp_path / "a.zarr", "mask").sum() == 5
    chunks = [file for file in (tmp_path / "a.zarr/mask/volume/c").rglob("*") if file.is_file()]
    assert sorted(int(file.parts[-3]) for file in chunks) == [0, 1, 4]
    store.write_mask(tmp_path / "a.zarr", "empty", shape, [], key={})
    assert not store.read_mask(tmp_path / "a.zarr", "empty").any()


def test_a_store_that_lost_a_file_is_not_whole(tmp_path: Path) -> None:
    store.write_scan(tmp_path / "a.zarr", volume(), GRID, key={"v": 1})
    assert groups.is_current(tmp_path / "a.zarr", {"v": 1})
    chunk = next(file for file in (tmp_path / "a.zarr/volume/c").rglob("*") if file.is_file())
    chunk.unlink()  # zarr would read zeros there
    assert not groups.is_current(tmp_path / "a.zarr", {"v": 1})


def test_a_damaged_chunk_is_not_read(tmp_path: Path) -> None:
    store.write_scan(tmp_path / "a.zarr", volume(), GRID, key={"v": 1})
    chunk = next(file for file in (tmp_path / "a.zarr/volume/c").rglob("*") if file.is_file())
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1  # one bit, the same size
    chunk.write_bytes(content)
    assert groups.is_current(tmp_path / "a.zarr", {"v": 1})
    with pytest.raises(groups.StoreError, match=r"volume is damaged \(.*checksum.*--repair") as caught:
        store.read_volume(tmp_path / "a.zarr")
    assert "\n" not in str(caught.value)


def test_the_bytes_of_format_version_3(tmp_path: Path) -> None:
    # When this fails, the format changed: raise SCAN_FORMAT_VERSION, or every older store is read wrongly. When only
    # the compressor's own version changed (the decoded values are the same), the digest of the chunk is what moves.
    assert store.SCAN_FORMAT_VERSION == 3
    hu = np.arange(2 * 4 * 4, dtype=np.int16).reshape(2, 4, 4)
    grid = Grid(shape_irc=(2, 4, 4), spacing_xyz=(1, 1, 1), origin_xyz=(0, 0, 0))
    store.write_scan(tmp_path / "a.zarr", hu, grid, key=store.scan_key("f"), source=lambda: {"checksum": "c"})
    box = (slice(0, 1), slice(1, 3), slice(1, 2))
    store.write_mask(tmp_path / "a.zarr", "mask", hu.shape, [(box, np.ones((1, 2, 1), bool))], key={"rule": "r"})
    described = json.loads((tmp_path / "a.zarr/volume/zarr.json").read_text())
    assert described["data_type"] == "int16"
    assert described["chunk_grid"]["configuration"]["chunk_shape"] == [2, 4, 4]
    assert [codec["name"] for codec in described["codecs"]] == ["bytes", "blosc", "crc32c"]
    blosc = described["codecs"][1]["configuration"]
    assert (blosc["cname"], blosc["clevel"], blosc["shuffle"]) == ("lz4", 5, "bitshuffle")
    found = {
        str(path.relative_to(tmp_path / "a.zarr")): hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        for path in (tmp_path / "a.zarr").rglob("*")
        if path.is_file() and "volume/zarr.json" not in str(path)  # zarr's own description, checked above
    }
    assert found == {
        "mask/volume/c/0/0/0": "d58be05dc741",
        "mask/zarr.json": "fd5652dce192",
        "volume/c/0/0/0": "23743573d8ff",
        "zarr.json": "9b6940732fa7",
    }


@pytest.mark.parametrize(
    "damage", [b"", b"[]", b"\xff\xfe\x00", b'{"attributes": []}', b'{"attributes": {"complete": true}}']
)
def test_a_damaged_description_is_made_again(damage: bytes, tmp_path: Path) -> None:
    store.write_scan(tmp_path / "a.zarr", volume(), GRID, key={"v": 1})
    (tmp_path / "a.zarr/zarr.json").write_bytes(damage)
    assert not groups.is_current(tmp_path / "a.zarr", {"v": 1})
