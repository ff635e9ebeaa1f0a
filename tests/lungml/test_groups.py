import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
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


@pytest.mark.parametrize("at_once", [True, False])
def test_what_is_written_again_takes_the_place_of_the_old_one(
    at_once: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = tmp_path / "c"
    groups.write_group(group, {"crops": np.ones(3, np.int16)}, key={"v": 1})
    groups.write_group(group / "mask", {"x": np.ones(2)}, key={"m": 1}, within=True)
    if not at_once:  # as on a file system that cannot let two names change places
        monkeypatch.setattr(groups, "_exchange", lambda one, other: False)
    groups.write_group(group, {"crops": np.zeros(3, np.int16)}, key={"v": 1})
    assert groups.map_array(group, "crops").tolist() == [0, 0, 0]
    assert groups.is_current(group, {"v": 1})
    assert groups.find_damage(group / "mask") == ""  # of an equal scan it still is the mask
    assert sorted(path.name for path in tmp_path.iterdir()) == [".groups.lock", "c"]
    groups.write_group(group, {"crops": np.zeros(3, np.int16)}, key={"v": 2})
    assert not (group / "mask").exists()


def test_a_group_that_can_have_no_other_name_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group, real = tmp_path / "c", os.replace
    groups.write_group(group, {"crops": np.ones(3)}, key={"v": 1})
    groups.write_group(group / "mask", {"x": np.ones(2)}, key={"m": 1}, within=True)

    def as_on_an_overlay(source: Path, target: Path) -> None:
        if Path(source) == group:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source))
        real(source, target)

    monkeypatch.setattr(groups, "_exchange", lambda one, other: False)
    monkeypatch.setattr(os, "replace", as_on_an_overlay)
    groups.write_group(group, {"crops": np.zeros(3)}, key={"v": 1})
    assert groups.find_damage(group) + groups.find_damage(group / "mask") == ""
    assert groups.map_array(group, "crops").tolist() == [0, 0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".groups.lock", "c"]


def test_where_the_new_group_cannot_take_the_place_the_old_one_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, real = tmp_path / "c", os.replace
    groups.write_group(group, {"crops": np.ones(3)}, key={"v": 1})

    def refused_once(source: Path, target: Path) -> None:
        if Path(target) == group:
            monkeypatch.setattr(os, "replace", real)
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(source))
        real(source, target)

    monkeypatch.setattr(groups, "_exchange", lambda one, other: False)
    monkeypatch.setattr(os, "replace", refused_once)
    with pytest.raises(OSError, match="Input/output"):
        groups.write_group(group, {"crops": np.zeros(3)}, key={"v": 1})
    assert groups.find_damage(group) == ""
    assert groups.map_array(group, "crops").tolist() == [1, 1, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".groups.lock", "c"]


def test_of_two_runs_that_write_the_same_the_second_gives_up_its_own(tmp_path: Path) -> None:
    group = tmp_path / "c"
    groups.write_group(group, {"crops": np.zeros(3)}, key={"v": 1})

    def meanwhile() -> dict[str, str]:
        groups.write_group(group, {"crops": np.ones(3)}, key={"v": 1})
        return {"by": "the second"}

    groups.write_group(group, {"crops": np.ones(3)}, key={"v": 1}, attributes=meanwhile)
    assert "by" not in groups.read_attributes(group)
    assert groups.map_array(group, "crops").tolist() == [1, 1, 1]


# A process of its own, which forks once for every moment at which the writer is killed: each flush and each new name.
KILLED = """
import json, os, sys
from pathlib import Path
import numpy as np
from lungml import groups
from tests.killing import killed_at

group, key = Path(sys.argv[1]) / "c", {"v": 1}
groups.write_group(group, {"crops": np.ones(3)}, key=key)
groups.write_group(group / "mask", {"x": np.ones(2)}, key=key, within=True)

def refresh_until(moment):
    counted = killed_at(moment)
    os.fsync, os.link, groups._exchange = counted(os.fsync), counted(os.link), counted(groups._exchange)
    groups.shutil.rmtree = counted(groups.shutil.rmtree)
    groups.write_group(group, {"crops": np.full(3, moment + 1.0)}, key=key)
    os._exit(0)

moment, seen = 0, []
while True:
    moment += 1
    child = os.fork()
    if child == 0:
        refresh_until(moment)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    damage = groups.find_damage(group) + groups.find_damage(group / "mask")
    seen.append([damage, bool(groups.is_current(group, key)), float(groups.map_array(group, "crops")[0])])
    if not killed:
        break
print(json.dumps(seen))
"""


def test_whenever_a_refresh_is_killed_the_old_group_or_the_new_one_stands_whole(tmp_path: Path) -> None:
    script = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(script, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout)
    assert len(seen) > 10
    assert all((damage, current) == ("", True) for damage, current, _ in seen)
    last = len(seen)
    # Of the kills only that of clearing the old one away, the very last, comes after the new one took its place.
    assert [first for *_, first in seen] == [1.0] * (last - 2) + [float(last), float(last + 1)]


def test_a_group_that_was_found_useful_says_so_by_its_time(tmp_path: Path) -> None:
    group = tmp_path / "c"
    groups.write_group(group, {"crops": np.ones(3)}, key={})
    os.utime(group, (0, 0))
    groups.touch(group)
    assert group.stat().st_mtime > 10**9
    groups.touch(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_bytes_of_a_plain_group(tmp_path: Path) -> None:
    # When this fails, crops written before are read wrongly: raise crop_cache.CROP_FORMAT_VERSION.
    groups.write_group(tmp_path / "c", {"crops": np.arange(6, dtype=np.int16).reshape(2, 3)}, key={"v": 1})
    files = sorted(path for path in (tmp_path / "c").rglob("*") if path.is_file())
    assert [str(path.relative_to(tmp_path)) for path in files] == ["c/crops/c/0/0", "c/crops/zarr.json", "c/zarr.json"]
    assert files[0].read_bytes() == bytes([0, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0])
    assert hashlib.sha256(files[2].read_bytes()).hexdigest()[:16] == "528befc815e234ba"
