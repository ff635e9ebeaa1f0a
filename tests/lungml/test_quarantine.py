import os
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from lungml.quarantine import read_quarantine, release, set_aside


@pytest.fixture
def quarantine_csv(tmp_path: Path) -> Path:
    return tmp_path / "home" / "quarantine.csv"


def reasons(quarantine_csv: Path) -> dict[str, str]:
    return {row["series_uid"]: row["reason"] for row in read_quarantine(quarantine_csv)}


def test_a_scan_is_set_aside_with_path_reason_and_time(quarantine_csv: Path) -> None:
    reason = 'scan.raw is too short: 118 bytes, "120" were said; copy it again'
    set_aside(quarantine_csv, "1.2", Path("/scans/1.2.mhd"), reason)
    (row,) = read_quarantine(quarantine_csv)
    assert (row["series_uid"], row["path"], row["reason"]) == ("1.2", "/scans/1.2.mhd", reason)
    time = datetime.fromisoformat(row["time"])
    assert timedelta(0) <= datetime.now(time.tzinfo) - time < timedelta(minutes=1)


def test_nothing_is_set_aside_yet(quarantine_csv: Path) -> None:
    assert read_quarantine(quarantine_csv) == []
    release(quarantine_csv, "1.2")
    assert not quarantine_csv.exists()


def test_a_newer_reason_replaces_the_older_and_goes_to_the_end(quarantine_csv: Path) -> None:
    for series_uid, reason in [("a", "short"), ("b", "no air"), ("a", "missing")]:
        set_aside(quarantine_csv, series_uid, Path("x.mhd"), reason)
    assert list(reasons(quarantine_csv).items()) == [("b", "no air"), ("a", "missing")]


def test_one_scan_is_released_and_the_others_stay(quarantine_csv: Path) -> None:
    for series_uid in ("1", "11", "1.1"):
        set_aside(quarantine_csv, series_uid, Path("x.mhd"), "short")
    kept = [row for row in read_quarantine(quarantine_csv) if row["series_uid"] != "1"]
    release(quarantine_csv, "1")
    release(quarantine_csv, "none")
    assert read_quarantine(quarantine_csv) == kept


def test_threads_at_once_lose_nothing(quarantine_csv: Path) -> None:
    for n in range(10):
        set_aside(quarantine_csv, f"old{n}", Path("x.mhd"), "short")
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(set_aside, quarantine_csv, f"new{n}", Path("x.mhd"), f"reason {n}") for n in range(40)]
        jobs += [pool.submit(release, quarantine_csv, f"old{n}") for n in range(10)]
        for job in jobs:
            job.result()
    assert reasons(quarantine_csv) == {f"new{n}": f"reason {n}" for n in range(40)}


def test_a_folder_with_a_latin_1_name_can_be_told_of(quarantine_csv: Path) -> None:
    # Such a path is no UTF-8, and a scan that cannot be set aside would end the run.
    set_aside(quarantine_csv, "1.2", Path(os.fsdecode(b"/scans/\xfcbung/1.2.mhd")), "short")
    (row,) = read_quarantine(quarantine_csv)
    assert row["path"].startswith("/scans/")
    assert row["path"].endswith("bung/1.2.mhd")


@pytest.mark.parametrize("damage", [bytes(range(128, 256)), b"series_uid,path\na,b\n", b"hello"])
def test_a_damaged_quarantine_is_written_anew(damage: bytes, tmp_path: Path) -> None:
    quarantine_csv = tmp_path / "quarantine.csv"
    quarantine_csv.write_bytes(damage)
    release(quarantine_csv, "a")
    set_aside(quarantine_csv, "a", tmp_path / "a.mhd", "too short")
    assert [row["series_uid"] for row in read_quarantine(quarantine_csv)] == ["a"]
