from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lungml.archive_members import ArchiveError
from lungml.download import ChecksumError, DownloadError, DownloadSettings, Progress, RemoteFile
from lungml.frozen_split import freeze_split
from lungml.luna_archives import Downloaded, check_disk, download_luna, parse_subsets, wanted_files
from tests.lungml.fixtures.loopback import Loopback, Trick, luna_files, md5, serving, subset_files, zipped

PROJECT = Path(__file__).parents[2]
TABLES = ("annotations.csv", "annotations_excluded.csv", "candidates_V2.csv", "seriesuids.csv")
Usage = namedtuple("Usage", "total used free")
TABLE_SOURCES = ("annotations.csv", "evaluationScript.zip", "candidates_V2.zip")


@pytest.fixture
def server() -> Iterator[Loopback]:
    with serving(luna_files()) as loopback:
        yield loopback


@pytest.fixture
def luna_dir(tmp_path: Path) -> Path:
    return tmp_path / "luna16"


def get(server: Loopback, luna_dir: Path, subsets: tuple[int, ...] | None, **changes: Any) -> Downloaded:
    return download_luna(luna_dir, server.settings(**changes), subsets)


def tree(luna_dir: Path) -> dict[str, bytes]:
    """What lies there, without the archives folder."""
    found = (path for path in luna_dir.rglob("*") if path.is_file() and path.parent.name != "archives")
    return {str(path.relative_to(luna_dir)): path.read_bytes() for path in found}


def expected(server: Loopback, *subsets: int) -> dict[str, bytes]:
    files = luna_files()
    tables = {
        "annotations.csv": files["annotations.csv"],
        "annotations_excluded.csv": files["annotations.csv"].replace(b"5.5", b"-1"),
        "candidates_V2.csv": files["candidates.csv"],
        "seriesuids.csv": "".join(f"{n}.{scan}\n" for n in range(10) for scan in range(2)).encode(),
    }
    return {**tables, **{name: content for subset in subsets for name, content in subset_files(subset).items()}}


class TestSubsets:
    @pytest.mark.parametrize(
        ("text", "subsets"),
        [
            ("0", (0,)),
            ("0,3,5-7", (0, 3, 5, 6, 7)),
            (" 9 , 0 - 1 ,1", (0, 1, 9)),
            ("4-4", (4,)),
            ("0-9", tuple(range(10))),
        ],
    )
    def test_read(self, text: str, subsets: tuple[int, ...]) -> None:
        assert parse_subsets(text) == subsets

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("", "'' is neither a number nor a range"),
            ("1,", "'' is neither"),
            ("a", "'a' is neither"),
            ("-1", "'-1' is neither"),
            ("1-", "'1-' is neither"),
            ("1.5", "'1.5' is neither"),
            ("٣", "is neither"),
            ("7-5", "'7-5' ends before it begins"),
            ("10", "LUNA16 has no subset 10"),
            ("8-12", "LUNA16 has no subset 12"),
            ("0-99999999", "is neither"),
        ],
    )
    def test_errors_say_what_to_give(self, text: str, problem: str) -> None:
        with pytest.raises(DownloadError, match=r"give numbers of 0\.\.9, such as 0,3,5-7") as caught:
            parse_subsets(text)
        assert problem in str(caught.value)

    def test_tables_always_come(self, server: Loopback) -> None:
        assert wanted_files((3,), server.settings()) == (*TABLE_SOURCES, "subset3.zip")


class TestDownload:
    def test_every_file_where_it_belongs(self, server: Loopback, luna_dir: Path) -> None:
        brought = get(server, luna_dir, (0, 8))
        assert tree(luna_dir) == expected(server, 0, 8)
        assert brought.subsets == (0, 8)
        assert brought.fetched == (*TABLE_SOURCES, "subset0.zip", "subset8.zip")
        assert brought.unpacked == 4 + 2 + 4
        assert brought.notes == ()
        archives = {path.name for path in (luna_dir / "archives").glob("*.zip")}
        assert archives == {"evaluationScript.zip", "candidates_V2.zip", "subset0.zip", "subset8.zip"}

    def test_all_ten_when_none_is_named(self, server: Loopback, luna_dir: Path) -> None:
        assert get(server, luna_dir, None).subsets == tuple(range(10))
        assert tree(luna_dir) == expected(server, *range(10))

    @pytest.mark.parametrize("keep_archives", [True, False])
    def test_a_second_run_asks_nothing(self, server: Loopback, luna_dir: Path, keep_archives: bool) -> None:
        get(server, luna_dir, (1,), keep_archives=keep_archives)
        assert len(list((luna_dir / "archives").glob("*.zip"))) == 3 * keep_archives
        server.asked.clear()
        server.records_asked = 0
        again = get(server, luna_dir, (1,), keep_archives=keep_archives)
        assert again.kept
        assert (server.asked, server.records_asked) == ([], 0)

    def test_another_subset_later_adds_only_that(self, server: Loopback, luna_dir: Path) -> None:
        get(server, luna_dir, (1,), keep_archives=False)
        brought = get(server, luna_dir, (1, 2), keep_archives=False)
        assert brought.fetched == ("subset2.zip",)
        assert tree(luna_dir) == expected(server, 1, 2)

    def test_a_deleted_file_comes_back_from_the_kept_archive(self, server: Loopback, luna_dir: Path) -> None:
        get(server, luna_dir, (1,))
        (luna_dir / "subset1" / "1.1.raw").unlink()
        brought = get(server, luna_dir, (1,))
        assert (brought.fetched, brought.unpacked) == ((), 1)
        assert tree(luna_dir) == expected(server, 1)

    def test_a_deleted_file_of_a_dropped_archive_is_fetched(self, server: Loopback, luna_dir: Path) -> None:
        get(server, luna_dir, (1, 2), keep_archives=False)
        (luna_dir / "subset1" / "1.1.raw").unlink()
        brought = get(server, luna_dir, (1, 2), keep_archives=False)
        assert (brought.fetched, brought.unpacked) == (("subset1.zip",), 1)
        assert tree(luna_dir) == expected(server, 1, 2)

    def test_archives_can_be_dropped_later(self, server: Loopback, luna_dir: Path) -> None:
        get(server, luna_dir, (1,))
        assert get(server, luna_dir, (1,), keep_archives=False).kept
        assert not list((luna_dir / "archives").glob("*.zip"))

    def test_a_persons_table_stays(self, server: Loopback, luna_dir: Path) -> None:
        luna_dir.mkdir()
        (luna_dir / "annotations.csv").write_bytes(b"mine\n")
        brought = get(server, luna_dir, (1,))
        assert brought.notes == (
            f"{luna_dir / 'annotations.csv'} is not the published one and stays; delete it to get that",
        )
        with (luna_dir / "seriesuids.csv").open("a") as table:
            table.write("of.mine\n")
        assert get(server, luna_dir, (1,)).kept
        assert (luna_dir / "annotations.csv").read_bytes() == b"mine\n"
        (luna_dir / "annotations.csv").unlink()
        get(server, luna_dir, (1,))
        assert (luna_dir / "annotations.csv").read_bytes() == server.files["annotations.csv"]

    def test_a_damaged_archive_is_fetched_again_at_the_next_run(self, server: Loopback, luna_dir: Path) -> None:
        get(server, luna_dir, (1,))
        archive = luna_dir / "archives" / "subset1.zip"
        was = archive.stat()
        content = bytearray(archive.read_bytes())
        content[60] ^= 255  # in the first member; as a failing disk does it, size and time stay
        archive.write_bytes(content)
        os.utime(archive, ns=(was.st_atime_ns, was.st_mtime_ns))
        shutil.rmtree(luna_dir / "subset1")
        with pytest.raises(ArchiveError, match=r"subset1\.zip"):
            get(server, luna_dir, (1,))
        assert get(server, luna_dir, (1,)).fetched == ("subset1.zip",)
        assert tree(luna_dir) == expected(server, 1)

    def test_lidc_xml_from_its_own_address(self, server: Loopback, luna_dir: Path) -> None:
        server.files["LIDC-XML-only.zip"] = content = zipped({"tcia-lidc-xml/185/069.xml": b"<x/>"})
        url = f"{server.url}/LIDC-XML-only.zip"
        assert "lidc_xml.zip" in get(server, luna_dir, (1,), lidc_xml_url=url).fetched
        assert (luna_dir / "lidc_xml.zip").read_bytes() == content
        assert get(server, luna_dir, (1,), lidc_xml_url=url).kept

    def test_progress_and_words(self, server: Loopback, luna_dir: Path) -> None:
        told: list[Progress] = []
        said: list[str] = []
        download_luna(luna_dir, server.settings(), (0, 1), progress=told.append, say=said.append)
        total = sum(len(server.files[name]) for name in (*TABLE_SOURCES, "subset0.zip", "subset1.zip"))
        assert (told[-1].bytes_done, told[-1].bytes_total) == (total, total)
        assert "subset0.zip: 2 of 2 files unpacked, the others were there" in said

    def test_a_partial_download_moves_no_scan(self, server: Loopback, luna_dir: Path, tmp_path: Path) -> None:
        def split(split_csv: Path) -> dict[str, str]:
            return dict(freeze_split((luna_dir / "seriesuids.csv").read_text().split(), 10, split_csv))

        get(server, luna_dir, (3,))
        partial = split(tmp_path / "split.csv")
        get(server, luna_dir, None)
        assert split(tmp_path / "split.csv") == partial
        assert split(tmp_path / "other.csv") == partial
        assert len(partial) == 20


class TestFailures:
    def test_one_archive_that_fails_leaves_the_others(self, server: Loopback, luna_dir: Path) -> None:
        server.always["subset2.zip"] = Trick(status=404)
        with pytest.raises(DownloadError, match=r"subset2\.zip/content: the server answers 404"):
            get(server, luna_dir, (1, 2, 3), parallel=1)
        server.always.clear()
        assert "subset2.zip" in get(server, luna_dir, (1, 2, 3)).fetched
        assert tree(luna_dir) == expected(server, 1, 2, 3)
        assert server.sent("subset1.zip") == len(server.files["subset1.zip"])

    def test_a_wrong_checksum(self, server: Loopback, luna_dir: Path) -> None:
        server.checksums["subset1.zip"] = "0" * 32
        with pytest.raises(ChecksumError, match=f"md5 is {md5(server.files['subset1.zip'])}, expected {'0' * 32}"):
            get(server, luna_dir, (1,))
        assert not (luna_dir / "subset1").exists()
        server.checksums.clear()  # a mended record is read again
        get(server, luna_dir, (1,))
        assert tree(luna_dir) == expected(server, 1)

    def test_a_record_that_lacks_a_file(self, server: Loopback, luna_dir: Path) -> None:
        del server.files["subset8.zip"]
        with pytest.raises(DownloadError, match=r"records 3723295, 4121926 have no subset8\.zip"):
            get(server, luna_dir, (8,))

    def test_a_record_that_is_none(self, server: Loopback, luna_dir: Path) -> None:
        server.record_body = b"<html>maintenance</html>"
        with pytest.raises(DownloadError, match=r"/api/records/3723295: the answer is no record with files"):
            get(server, luna_dir, (1,))

    @pytest.mark.parametrize(
        ("name", "content", "problem"),
        [
            ("subset1.zip", zipped({"../../evil.mhd": b"x"}), "climbs out"),
            ("subset1.zip", zipped({"subset1/readme.txt": b"x"}), "holds no scan"),
            ("subset1.zip", zipped({"a/1.mhd": b"x", "b/1.mhd": b"y"}), "1.mhd is in it twice"),
            ("subset1.zip", b"PK no zip", "not a zip file"),
            ("candidates_V2.zip", zipped({"x.csv": b"x"}), "holds no candidates_V2.csv"),
            ("evaluationScript.zip", zipped({"seriesuids.csv": b"1\n"}), "holds no annotations_excluded.csv"),
            (
                "candidates_V2.zip",
                zipped({"candidates_V2.csv": b"x", "old/candidates_V2.csv": b"y"}),
                "several candidates_V2.csv, which differ",
            ),
        ],
    )
    def test_archives_that_are_not_luna16s(
        self, server: Loopback, luna_dir: Path, name: str, content: bytes, problem: str
    ) -> None:
        server.files[name] = content
        with pytest.raises(ArchiveError, match=problem):
            get(server, luna_dir, (1,))
        assert not list(luna_dir.parent.rglob("evil*"))

    def test_hidden_and_other_files_are_left_in_the_archive(self, server: Loopback, luna_dir: Path) -> None:
        strange = {"subset1/.1.0.mhd": b"x", "__MACOSX/._1.0.raw": b"x", "subset1/a b.mhd": b"x", "note.txt": b"x"}
        server.files["subset1.zip"] = zipped({**subset_files(1), **strange})
        get(server, luna_dir, (1,))
        assert tree(luna_dir) == expected(server, 1)

    def test_too_little_disk_before_the_first_byte(
        self, server: Loopback, luna_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1, 1, 1000))
        line = (
            r"[\d.]+ MB are needed \([\d.]+ MB of archives and [\d.]+ MB unpacked, taken as 2 x the archives\), 0.0 MB"
        )
        with pytest.raises(DownloadError, match=line):
            get(server, luna_dir, (1,))
        assert server.asked == []

    @pytest.mark.parametrize(
        ("options", "needed"),
        [
            ({}, 2 * (1000 + 2000)),
            ({"keep_archives": False, "parallel": 1}, 1000 + 2 * 2000),
            ({"keep_archives": False, "parallel": 2}, 2 * (1000 + 2000)),
        ],
    )
    def test_what_disk_is_needed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], needed: int
    ) -> None:
        """Two subsets of 1000 bytes, 2000 unpacked; without keeping, `parallel` archives are there at once."""
        files = [RemoteFile(name=f"subset{n}.zip", url="http://a", size_bytes=1000, md5="0" * 32) for n in (4, 5)]
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(needed, 0, needed))
        check_disk(tmp_path, files, DownloadSettings(**options))
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(needed, 1, needed - 1))
        with pytest.raises(DownloadError, match="are needed"):
            check_disk(tmp_path, files, DownloadSettings(**options))

    def test_what_is_there_needs_no_disk(
        self, server: Loopback, luna_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        get(server, luna_dir, (1,))
        (luna_dir / "subset1" / "1.0.mhd").unlink()
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100, 0, 100))
        get(server, luna_dir, (1,))
        assert tree(luna_dir) == expected(server, 1)


RUN = """
import json, sys
from pathlib import Path
from lungml.download import DownloadSettings
from lungml.luna_archives import download_luna
settings = json.loads(sys.argv[2])
settings["records"] = tuple(settings["records"])
brought = download_luna(Path(sys.argv[1]), DownloadSettings(**settings), tuple(json.loads(sys.argv[3])))
print(json.dumps([brought.fetched, brought.unpacked]))
"""

# Forks once for every moment at which a run is killed, and once for the run after it. What counts as a moment: every
# file that is about to get its name, and every flush to disk.
DRILL = """
import json, os, sys
from pathlib import Path
from lungml.download import DownloadSettings, open_client
from lungml.luna_archives import download_luna
from tests.killing import killed_at

url, root = sys.argv[1], Path(sys.argv[2])
open_client(DownloadSettings()).close()  # loads what every child would load anew


def run(folder, settings):
    return download_luna(folder, settings, (1,))


def child(work):
    read, write = os.pipe()
    if not (pid := os.fork()):
        try:
            os.write(write, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        content = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(content) if content else None


def run_until(moment, folder, settings):
    counted = killed_at(moment + 1)  # so many calls come through
    os.fsync, os.replace, Path.replace = counted(os.fsync), counted(os.replace), counted(Path.replace)
    run(folder, settings)
    return "came through"


def finished(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")
                  if path.suffix in (".csv", ".mhd", ".raw", ".zip") and not path.name.startswith("."))


def again(folder, settings):
    before = finished(folder)
    brought = run(folder, settings)
    third = run(folder, settings)
    strays = [path.name for path in folder.rglob("*") if path.name.startswith(".") or ".part" in path.name]
    return [before, brought.fetched, brought.unpacked, third.kept, strays]


for keep in (True, False):
    settings = DownloadSettings(zenodo_url=url, parallel=1, keep_archives=keep, backoff_seconds=0.01)
    for moment in range(0 if keep else 3, 1000, 6):
        folder = root / f"{keep}-{moment}"
        if child(lambda: run_until(moment, folder, settings)):
            break
        folder.mkdir(exist_ok=True)
        print(json.dumps([str(folder), *child(lambda: again(folder, settings))]))
"""


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def started(server: Loopback, luna_dir: Path, *subsets: int) -> subprocess.Popen[str]:
    settings = {"zenodo_url": server.url, "records": ["3723295", "4121926"], "backoff_seconds": 0.01}
    return start(RUN, str(luna_dir), json.dumps(settings), json.dumps(subsets))


class TestKilled:
    def test_in_mid_download_the_next_run_fetches_the_rest(self, server: Loopback, luna_dir: Path) -> None:
        server.files["subset1.zip"] = zipped({**subset_files(1), "noise.txt": os.urandom(2 << 20)})
        server.pace_seconds = 0.005
        process = started(server, luna_dir, 1)
        deadline = time.monotonic() + 30
        while server.sent("subset1.zip") < 1 << 20 and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        part = luna_dir / "archives" / "subset1.zip.part"
        there = part.stat().st_size
        assert 0 < there < len(server.files["subset1.zip"])
        server.pace_seconds = 0.0
        get(server, luna_dir, (1,))
        assert server.ranges("subset1.zip") == [None, f"bytes={there}-"]
        assert server.ranges("annotations.csv") == [None]
        assert tree(luna_dir) == expected(server, 1)
        assert not part.exists()

    def test_at_any_moment_nothing_finished_is_repeated(self, server: Loopback, tmp_path: Path) -> None:
        process = start(DRILL, server.url, str(tmp_path))
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        lines = [json.loads(line) for line in out.splitlines()]
        assert len(lines) > 30
        whole = expected(server, 1)
        for folder, before, fetched, unpacked, third_kept, strays in lines:
            placed = {name for name in before if not name.startswith("archives/")}
            archives = {name.removeprefix("archives/") for name in before if name.startswith("archives/")}
            assert not archives & set(fetched), folder
            assert unpacked == len(whole) - len(placed), folder
            assert third_kept, folder
            assert strays == [], folder
            assert tree(Path(folder)) == whole, folder

    def test_two_at_once_share_the_work(self, server: Loopback, luna_dir: Path) -> None:
        server.pace_seconds = 0.002
        both = [started(server, luna_dir, 0, 1, 2) for _ in range(2)]
        results = []
        for process in both:
            out, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
            results.append(json.loads(out))
        assert sum(unpacked for _, unpacked in results) == len(expected(server, 0, 1, 2))
        assert sorted(results[0][0] + results[1][0]) == sorted(
            [*TABLE_SOURCES, "subset0.zip", "subset1.zip", "subset2.zip"]
        )
        assert len(server.asked) == 6
        assert tree(luna_dir) == expected(server, 0, 1, 2)
