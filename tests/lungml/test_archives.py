from __future__ import annotations

import io
import os
import random
import shutil
import struct
import subprocess
import threading
import tracemalloc
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lungml.archive_members import ArchiveError, Member, read_members
from lungml.archives import (
    Source,
    UnpackingStopped,
    bytes_there,
    is_unpacked,
    plain_member,
    read_journal,
    unpack,
)
from tests.lungml.fixtures.archives.make import contents
from tests.lungml.fixtures.loopback import ARCHIVES, zipped

FIXTURE = ARCHIVES / "subset0.zip"
SOURCE = Source(name="a.zip", size_bytes=1, md5="0" * 32)


def unpack_all(archive: Path, folder: Path, **options: bool) -> list[str]:
    members = read_members(archive)
    return unpack(archive, {m.name: m for m in members}, folder, folder / "journal.json", SOURCE, **options)


def files_in(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != "journal.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def made(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


class TestMethods:
    def test_deflate64_as_lunas_archives_are_packed(self, tmp_path: Path) -> None:
        with pytest.raises(NotImplementedError), zipfile.ZipFile(FIXTURE) as opened:
            opened.read("subset0/1.0.raw")
        assert {member.method for member in read_members(FIXTURE)} >= {9}
        assert len(unpack_all(FIXTURE, tmp_path)) == 3
        assert files_in(tmp_path) == {f"subset0/{name}": content for name, content in contents().items()}

    @pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    def test_stored_and_deflate(self, tmp_path: Path, method: int) -> None:
        files = {"a/b.raw": random.Random(0).randbytes(70_000) + bytes(3_000_000), "empty": b"", "c.csv": b"1,2\n"}
        unpack_all(made(tmp_path / "a.zip", zipped(files, method)), tmp_path / "out")
        assert files_in(tmp_path / "out") == files

    def test_zip64_member_and_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        files = {f"{n}.raw": bytes([n]) * 5000 for n in range(3)}
        archive = io.BytesIO()
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)  # so that small members are written as if over 4 GB
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
            for name, content in files.items():
                with opened.open(name, "w", force_zip64=True) as member:
                    member.write(content)
        monkeypatch.undo()
        assert b"PK\x06\x06" in archive.getvalue()  # the Zip64 end of directory
        unpack_all(made(tmp_path / "a.zip", archive.getvalue()), tmp_path / "out")
        assert files_in(tmp_path / "out") == files

    @pytest.mark.skipif(not shutil.which("7zz"), reason="needs 7-Zip")
    def test_a_live_deflate64_archive(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(1)
        smooth = np.cumsum(rng.integers(-9, 10, (40, 64, 64)), axis=0).astype(np.int16)
        files = {"s/1.raw": smooth.tobytes() + bytes(1 << 20), "s/2.raw": rng.bytes(100_000), "s/3.raw": b""}
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(content)
        packing = ["7zz", "a", "-tzip", "-mm=Deflate64", "a.zip", "s"]
        subprocess.run(packing, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
        unpack_all(tmp_path / "a.zip", tmp_path / "out")
        assert files_in(tmp_path / "out") == files

    def test_another_method_is_named(self, tmp_path: Path) -> None:
        archive = made(tmp_path / "a.zip", zipped({"a": b"1" * 100}, zipfile.ZIP_BZIP2))
        with pytest.raises(ArchiveError, match=r"packed with bzip2; unpack it by hand"):
            unpack_all(archive, tmp_path / "out")

    def test_memory_stays_bounded(self, tmp_path: Path) -> None:
        archive = made(tmp_path / "a.zip", zipped({"zeros": bytes(100 << 20)}))
        tracemalloc.start()
        try:
            unpack_all(archive, tmp_path / "out")
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()

    def test_the_longest_matches_of_deflate64(self, tmp_path: Path) -> None:
        """7-Zip writes none of them, another packer may; and as a bomb they must not fill the memory."""
        body, size_bytes = longest_matches(1200)
        archive = made(tmp_path / "a.zip", body)
        crc32 = zlib.crc32(bytes(size_bytes))
        member = Member(name="a", size_bytes=size_bytes, packed_bytes=len(body), crc32=crc32, method=9, data_start=0)
        tracemalloc.start()
        try:
            unpack(archive, {"a": member}, tmp_path / "out", tmp_path / "journal.json", SOURCE)
            assert tracemalloc.get_traced_memory()[1] < 80 << 20
        finally:
            tracemalloc.stop()
        assert (tmp_path / "out" / "a").stat().st_size == size_bytes > 17_000 * len(body)

    def test_a_plain_file_is_placed_as_a_member(self, tmp_path: Path) -> None:
        plain = made(tmp_path / "annotations.csv", b"a,b\n")
        targets = {"to/annotations.csv": plain_member(plain)}
        assert unpack(plain, targets, tmp_path / "out", tmp_path / "journal.json", SOURCE) == list(targets)
        assert files_in(tmp_path / "out") == {"to/annotations.csv": b"a,b\n"}


class TestRefused:
    @pytest.mark.parametrize(
        ("declared", "problem"), [(49, "unpacks to more than the 49 bytes"), (51, "unpacks to 50 bytes, not the 51")]
    )
    def test_a_member_of_another_size_than_it_declares(self, declared: int, problem: str, tmp_path: Path) -> None:
        archive = made(tmp_path / "a.zip", zipped({"a": b"x" * 50}))
        (member,) = read_members(archive)
        targets = {"a": replace(member, size_bytes=declared)}
        with pytest.raises(ArchiveError, match=problem) as caught:
            unpack(archive, targets, tmp_path / "out", tmp_path / "journal.json", SOURCE)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(f"{archive}: ")
        assert not files_in(tmp_path / "out")

    @pytest.mark.parametrize("method", [8, 9])
    def test_a_bomb_ends_at_what_it_declares(self, method: int, tmp_path: Path) -> None:
        """Also when the directory lies: what was read as a member of 1000 bytes yields no byte more."""
        zeros = bytes(10 << 20)
        body = deflate64(zeros) if method == 9 else zlib.compress(zeros)[2:-4]
        archive = made(tmp_path / "a.zip", body)
        member = Member(name="a", size_bytes=1000, packed_bytes=len(body), crc32=0, method=method, data_start=0)
        with pytest.raises(ArchiveError, match="more than the 1000 bytes it declares"):
            unpack(archive, {"a": member}, tmp_path / "out", tmp_path / "journal.json", SOURCE)
        assert not files_in(tmp_path / "out")

    def test_a_member_that_ends_early_or_late(self, tmp_path: Path) -> None:
        body = zlib.compress(b"1" * 500)[2:-4]
        archive = made(tmp_path / "a.zip", body + b"tail")
        for packed_bytes, problem in (
            (len(body) - 2, "do not end"),
            (len(body) + 3, "do not end"),
            (99, "ends inside"),
        ):
            member = Member(
                name="a",
                size_bytes=500,
                packed_bytes=packed_bytes,
                crc32=zlib.crc32(b"1" * 500),
                method=8,
                data_start=0,
            )
            with pytest.raises(ArchiveError, match=problem):
                unpack(archive, {"a": member}, tmp_path / "out", tmp_path / "journal.json", SOURCE)

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_damage_anywhere_is_an_archive_error_or_harmless(self, tmp_path: Path, data: st.DataObject) -> None:
        whole = FIXTURE.read_bytes()
        place = data.draw(st.integers(0, len(whole) - 1))
        change = data.draw(st.integers(1, 255))
        damaged = whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :]
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        try:
            unpack_all(made(tmp_path / "a.zip", damaged), out)
        except ArchiveError as error:
            assert "\n" not in str(error)
        right = contents()
        assert all(content == right.get(Path(name).name, content) for name, content in files_in(out).items())


def longest_matches(count: int) -> tuple[bytes, int]:
    """A zero, then `count` times "65538 as before", in Deflate64's fixed codes; with its unpacked size."""
    match = "11000101" + "1" * 16 + "00000"  # length code 285, all extra bits set, distance 1
    bits = "1" + "10" + "00110000" + match * count + "0000000"  # last block, fixed codes, literal 0, ..., end
    padded = bits + "0" * (-len(bits) % 8)
    return bytes(int(padded[n : n + 8][::-1], 2) for n in range(0, len(padded), 8)), 1 + count * 65538


def deflate64(zeros: bytes) -> bytes:
    """Zeros as Deflate64, by 7-Zip, or the fixture's stream where there is none."""
    if not shutil.which("7zz"):
        member = next(m for m in read_members(FIXTURE) if m.name.endswith(".raw"))
        return FIXTURE.read_bytes()[member.data_start :][: member.packed_bytes]
    packing = ["7zz", "a", "-tzip", "-mm=Deflate64", "-sia", "-so", "-an"]
    content = subprocess.run(packing, input=zeros, check=True, capture_output=True).stdout
    name, extra = struct.unpack_from("<HH", content, 26)
    return content[30 + name + extra : content.index(b"PK\1\2")]


class TestResuming:
    FILES = {f"s/{n}.raw": bytes([n]) * 4000 for n in range(4)}  # noqa: RUF012

    def test_nothing_is_unpacked_twice(self, tmp_path: Path) -> None:
        archive = made(tmp_path / "a.zip", zipped(self.FILES))
        assert len(unpack_all(archive, tmp_path / "out")) == 4
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "s").iterdir()}
        assert unpack_all(archive, tmp_path / "out") == []
        assert {path: path.stat().st_mtime_ns for path in before} == before

    def test_a_stopped_run_goes_on_behind_its_last_member(self, tmp_path: Path) -> None:
        archive, out, stop = made(tmp_path / "a.zip", zipped(self.FILES)), tmp_path / "out", threading.Event()
        targets = {member.name: member for member in read_members(archive)}
        first = dict(list(targets.items())[:2])
        unpack(archive, first, out, out / "journal.json", SOURCE)
        stop.set()
        with pytest.raises(UnpackingStopped):
            unpack(archive, targets, out, out / "journal.json", SOURCE, stop=stop)
        assert len(files_in(out)) == 2
        assert unpack(archive, targets, out, out / "journal.json", SOURCE) == list(targets)[2:]
        assert files_in(out) == self.FILES

    def test_a_file_without_a_journal_is_proved_not_unpacked(self, tmp_path: Path) -> None:
        archive, out = made(tmp_path / "a.zip", zipped(self.FILES)), tmp_path / "out"
        unpack_all(archive, out)
        (out / "journal.json").write_text("{ torn")
        assert unpack_all(archive, out) == []
        assert is_unpacked(out, out / "journal.json", SOURCE)

    def test_a_changed_file_is_unpacked_again(self, tmp_path: Path) -> None:
        archive, out = made(tmp_path / "a.zip", zipped(self.FILES)), tmp_path / "out"
        unpack_all(archive, out)
        (out / "s/1.raw").write_bytes(b"!" * 4000)  # same size
        (out / "s/2.raw").write_bytes(b"!")
        (out / "s/3.raw").unlink()
        assert not is_unpacked(out, out / "journal.json", SOURCE)
        assert unpack_all(archive, out) == ["s/1.raw", "s/2.raw", "s/3.raw"]
        assert files_in(out) == self.FILES

    def test_a_new_time_alone_is_no_change(self, tmp_path: Path) -> None:
        archive, out = made(tmp_path / "a.zip", zipped(self.FILES)), tmp_path / "out"
        unpack_all(archive, out)
        archive.unlink()
        os.utime(out / "s/1.raw", (1, 1))
        assert is_unpacked(out, out / "journal.json", SOURCE)
        journal = read_journal(out / "journal.json", SOURCE)
        assert journal is not None
        assert journal.written["s/1.raw"].mtime_ns == 1_000_000_000
        assert bytes_there(out, out / "journal.json", SOURCE) == 16_000

    def test_the_journal_of_another_archive_does_not_count(self, tmp_path: Path) -> None:
        archive, out = made(tmp_path / "a.zip", zipped(self.FILES)), tmp_path / "out"
        unpack_all(archive, out)
        assert not is_unpacked(out, out / "journal.json", Source(name="a.zip", size_bytes=1, md5="1" * 32))

    def test_a_persons_edit_stays_where_asked(self, tmp_path: Path) -> None:
        archive, out = made(tmp_path / "a.zip", zipped({"t.csv": b"a\n", "u.csv": b"b\n"})), tmp_path / "out"
        out.mkdir()
        (out / "t.csv").write_bytes(b"mine\n")
        assert unpack_all(archive, out, edits_stay=True) == ["u.csv"]
        (out / "u.csv").write_bytes(b"mine too\n")
        assert is_unpacked(out, out / "journal.json", SOURCE, edits_stay=True)
        assert unpack_all(archive, out, edits_stay=True) == []
        assert files_in(out) == {"t.csv": b"mine\n", "u.csv": b"mine too\n"}

    def test_a_damaged_member_leaves_the_others(self, tmp_path: Path) -> None:
        content = bytearray(zipped(self.FILES, zipfile.ZIP_STORED))
        content[content.index(bytes([2]) * 100) + 50] ^= 1
        with pytest.raises(ArchiveError, match=r"s/2\.raw is damaged \(CRC-32"):
            unpack_all(made(tmp_path / "a.zip", bytes(content)), tmp_path / "out")
        assert sorted(files_in(tmp_path / "out")) == ["s/0.raw", "s/1.raw"]

    def test_a_full_disk_names_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "out").write_bytes(b"a file, not a folder")
        archive = made(tmp_path / "a.zip", zipped(self.FILES))
        with pytest.raises(OSError, match=r"s/0\.raw|out"):
            unpack(archive, {m.name: m for m in read_members(archive)}, tmp_path / "out", tmp_path / "j.json", SOURCE)
