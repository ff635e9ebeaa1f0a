import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from lungml import groups


def test_mapped_arrays_equal_what_was_written_even_all_zero(tmp_path: Path) -> None:
    crops = np.zeros((3, 4, 5), dtype=np.int16)
    groups.write_group(tmp_path / "c", {"crops": crops, "none": crops[:0]}, key={})
    mapped = groups.map_array(tmp_path / "c", "crops")
    assert not mapped.flags.writeable
    np.testing.assert_array_equal(mapped, crops)
    assert groups.map_array(tmp_path / "c", "none").shape == (0, 4, 5)


def test_mapping_many_arrays_holds_no_file_open(tmp_path: Path) -> None:
    groups.write_group(tmp_path / "c", {"crops": np.ones((3, 4), np.int16)}, key={})
    before = len(list(Path("/proc/self/fd").iterdir()))
    mapped = [groups.map_array(tmp_path / "c", "crops") for _ in range(50)]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
    assert all(array.sum() == 12 for array in mapped)


def test_a_damaged_array_is_refused(tmp_path: Path) -> None:
    groups.write_group(tmp_path / "c", {"crops": np.ones((3, 4), np.int16)}, key={})
    chunk = tmp_path / "c/crops/c/0/0"
    chunk.write_bytes(chunk.read_bytes()[:-2])
    with pytest.raises(groups.StoreError, match="prepare again"):
        groups.map_array(tmp_path / "c", "crops")
    shutil.rmtree(tmp_path / "c/crops")
    with pytest.raises(groups.StoreError, match="no such array"):
        groups.map_array(tmp_path / "c", "crops")


def test_damage_that_keeps_the_size_is_found_by_reading(tmp_path: Path) -> None:
    group = tmp_path / "c"
    groups.write_group(group, {"crops": np.ones((3, 4), np.int16), "labels": np.zeros(3, np.uint8)}, key={"v": 1})
    assert groups.find_damage(group) == ""
    chunk = group / "crops/c/0/0"
    content = bytearray(chunk.read_bytes())
    content[5] ^= 1
    chunk.write_bytes(content)
    assert groups.is_current(group, {"v": 1})
    assert groups.find_damage(group) == "crops is damaged (its checksum differs)"
    chunk.unlink()
    assert groups.find_damage(group) == "crops lost or gained bytes"
    assert "no store there" in groups.find_damage(tmp_path / "none")


def test_what_else_is_to_be_said_is_asked_for_after_the_arrays(tmp_path: Path) -> None:
    seen = []

    def ask() -> dict[str, int]:
        seen.append(sorted(path.name for path in next(tmp_path.glob(".c.*")).iterdir()))
        return {"answer": 42}

    groups.write_group(tmp_path / "c", {"crops": np.ones(3, np.int16)}, key={}, attributes=ask)
    assert seen == [["crops"]]
    assert groups.read_attributes(tmp_path / "c")["answer"] == 42


def test_groups_are_listed_without_hidden_and_half_written_ones(tmp_path: Path) -> None:
    for name in ("b", "a", ".c"):
        groups.write_group(tmp_path / name, {"x": np.ones(1)}, key={})
    (tmp_path / "d").mkdir()
    assert groups.groups_in(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert groups.groups_in(tmp_path / "none") == []
    groups.remove(tmp_path / "a")
    groups.remove(tmp_path / "none")
    assert groups.groups_in(tmp_path) == [tmp_path / "b"]


def test_the_bytes_of_a_plain_group(tmp_path: Path) -> None:
    # When this fails, crops written before are read wrongly: raise crop_cache.CROP_FORMAT_VERSION.
    groups.write_group(tmp_path / "c", {"crops": np.arange(6, dtype=np.int16).reshape(2, 3)}, key={"v": 1})
    files = sorted(path for path in (tmp_path / "c").rglob("*") if path.is_file())
    assert [str(path.relative_to(tmp_path)) for path in files] == ["c/crops/c/0/0", "c/crops/zarr.json", "c/zarr.json"]
    assert files[0].read_bytes() == bytes([0, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0])
    assert hashlib.sha256(files[2].read_bytes()).hexdigest()[:16] == "528befc815e234ba"
