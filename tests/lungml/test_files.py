import csv
import errno
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lungml.files import beside_path, locked, sweep, write_csv_atomic, write_text_atomic


def test_a_file_and_its_folders_appear(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    write_text_atomic(path, "Lunge, 5 µm\r\n")
    assert path.read_bytes() == "Lunge, 5 µm\r\n".encode()
    write_text_atomic(path, "new")
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["b.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "split.csv"
    write_text_atomic(path, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync", full) if call == "fsync" else (Path, "replace", full)))
    with pytest.raises(OSError, match="No space left"):
        write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["split.csv"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_really_full_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode, **kw: opened(Path("/dev/full"), mode.replace("x", "w"), **kw))
    with pytest.raises(OSError, match="No space left"):
        write_text_atomic(tmp_path / "a.txt", "x" * 100_000)
    assert os.listdir(tmp_path) == []


def test_csv_floats_are_exact_and_fields_are_quoted(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = [("a,b", 0.1 + 0.2, np.float64(1 / 3)), ('say "x"\n', -0.0, np.float64(1e-300))]
    write_csv_atomic(path, ("text", "one", "two"), rows)
    with path.open(newline="") as handle:
        header, *found = csv.reader(handle)
    assert header == ["text", "one", "two"]
    assert [(text, float(one), float(two)) for text, one, two in found] == rows
    assert b"\r" not in path.read_bytes()


def test_a_row_of_the_wrong_width_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"t.csv: row 2 has 1 fields"):
        write_csv_atomic(tmp_path / "t.csv", ("a", "b"), [(1, 2), (3,)])
    assert os.listdir(tmp_path) == []


def _count_up(path: Path, times: int) -> None:
    for _ in range(times):
        with locked(path):
            write_text_atomic(path, str(int(path.read_text()) + 1))


def test_the_lock_keeps_every_change_of_two_processes(tmp_path: Path) -> None:
    path = tmp_path / "count"
    write_text_atomic(path, "0")
    spawn = multiprocessing.get_context("fork")
    workers = [spawn.Process(target=_count_up, args=(path, 30)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert path.read_text() == "60"


def _leave_behind(folder: Path) -> None:
    """What a killed process leaves: a half-written file in a folder and a half-written group one level below."""
    code = """
import sys
from pathlib import Path
from lungml.files import beside_path
folder = Path(sys.argv[1])
beside_path(folder / "split.csv").write_text("half")
group = beside_path(folder / "1.2.zarr" / "mask")
(group / "volume").mkdir(parents=True)
(group / "volume" / "zarr.json").write_text("{}")
"""
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=Path(__file__).parents[2])


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    _leave_behind(tmp_path)
    ours = beside_path(tmp_path / "split.csv")  # this process is alive: it may be writing there
    others = [tmp_path / ".hidden", tmp_path / ".split.csv.000000-4194304-0123abcd", tmp_path / "1.2.zarr" / ".zgroup"]
    for path in (ours, *others):
        path.write_text("stays")
    assert len(sweep(tmp_path, tmp_path / "not there")) == 2
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        path.name for path in (ours, *others)
    )
    assert sweep(tmp_path) == []
