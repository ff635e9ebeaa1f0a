from __future__ import annotations

import errno
import gzip
import json
import os
import pickle
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from lungml import download
from lungml.download import (
    ChecksumError,
    DownloadError,
    DownloadSettings,
    Meter,
    Progress,
    RemoteFile,
    Stopped,
    bytes_fetched,
    drop,
    fetch,
    is_fetched,
    open_client,
    parse_record,
    part_path,
    read_record,
)
from lungml.errors import LunaError
from tests.lungml.fixtures.loopback import Loopback, Trick, md5, serving

NAME = "subset1.zip"
CONTENT = bytes(range(256)) * 800  # 204 800 bytes
RECORD = Path(__file__).parent / "fixtures" / "zenodo" / "record.json"


@pytest.fixture
def server() -> Iterator[Loopback]:
    with serving({NAME: CONTENT}) as loopback:
        yield loopback


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "archives" / NAME


def remote(server: Loopback, **changes: Any) -> RemoteFile:
    published = {"name": NAME, "size_bytes": len(CONTENT), "md5": md5(CONTENT)}
    return RemoteFile(**{"url": f"{server.url}/files/{NAME}/content", **published, **changes})


def get(
    server: Loopback,
    target: Path,
    file: RemoteFile | None = None,
    stop: threading.Event | None = None,
    **changes: Any,
) -> bool:
    settings = server.settings(**changes)
    with open_client(settings) as client:
        return fetch(client, file or remote(server), target, settings, stop=stop)


def left(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


class Patience(threading.Event):
    """A stop signal that never comes, and notes how long it was waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout)
        return False


class TestFetch:
    def test_whole_and_proved(self, server: Loopback, target: Path) -> None:
        assert get(server, target)
        assert target.read_bytes() == CONTENT
        assert left(target) == [NAME, f"{NAME}.fetched.json"]

    def test_a_finished_file_is_neither_fetched_nor_read(
        self, server: Loopback, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        get(server, target)
        monkeypatch.setattr(download, "_md5", lambda *_: pytest.fail("it was read again"))
        assert not get(server, target)
        assert len(server.asked) == 1

    def test_without_its_marker_it_is_read_not_fetched(self, server: Loopback, target: Path) -> None:
        target.parent.mkdir()
        target.write_bytes(CONTENT)
        assert not get(server, target)
        assert server.asked == []
        assert is_fetched(target, remote(server))

    @pytest.mark.parametrize("damaged", [b"!" + CONTENT[1:], CONTENT[:-1]])
    def test_a_changed_file_is_fetched_again(self, server: Loopback, target: Path, damaged: bytes) -> None:
        get(server, target)
        target.write_bytes(damaged)
        os.utime(target, (1, 1))
        assert get(server, target)
        assert target.read_bytes() == CONTENT

    def test_a_newer_record_is_fetched(self, server: Loopback, target: Path) -> None:
        get(server, target)
        server.files[NAME] = newer = CONTENT[::-1]
        assert get(server, target, remote(server, md5=md5(newer)))
        assert target.read_bytes() == newer

    def test_dropped_wholly(self, server: Loopback, target: Path) -> None:
        get(server, target)
        drop(target)
        assert left(target) == []

    def test_an_empty_file(self, server: Loopback, target: Path) -> None:
        server.files[NAME] = b""
        assert get(server, target, remote(server, size_bytes=0, md5=md5(b"")))
        assert target.read_bytes() == b""


class TestResume:
    def test_after_a_break_only_the_rest_is_asked_for(self, server: Loopback, target: Path) -> None:
        server.tricks[NAME] = [Trick(break_after=100_000)]
        get(server, target)
        assert target.read_bytes() == CONTENT
        assert server.ranges(NAME) == [None, "bytes=100000-"]
        assert server.asked[1].if_range == f'"{md5(CONTENT)}"'
        assert server.sent(NAME) == len(CONTENT)

    def test_in_a_later_run_too(self, server: Loopback, target: Path) -> None:
        server.always[NAME] = Trick(break_after=50_000)
        with pytest.raises(DownloadError, match=r"received 50000 bytes.*, after 1 try; run it again"):
            get(server, target, attempts=1)
        assert bytes_fetched(target, remote(server)) == 50_000
        server.always.clear()
        get(server, target)
        assert server.ranges(NAME) == [None, "bytes=50000-"]
        assert target.read_bytes() == CONTENT

    def test_without_etag_by_the_md5(self, server: Loopback, target: Path) -> None:
        server.etags = False
        server.tricks[NAME] = [Trick(break_after=100_000)]
        get(server, target)
        assert server.asked[1].range == "bytes=100000-"
        assert server.asked[1].if_range is None
        assert target.read_bytes() == CONTENT

    def test_a_weak_etag_is_not_sent_back(self, server: Loopback, target: Path) -> None:
        server.tricks[NAME] = [Trick(break_after=100_000, etag='W/"1"')]
        get(server, target)
        assert server.asked[1].if_range is None

    @pytest.mark.parametrize(
        "second",
        [
            Trick(ignore_range=True),
            Trick(status=416),
            Trick(content_range="bytes 5-204799/204800"),
            Trick(content_range="bytes 100000-204799/999"),
            Trick(content_range="rubbish"),
            Trick(headers={"Content-Encoding": "gzip"}),
        ],
        ids=["200", "416", "other start", "other size", "no range", "packed"],
    )
    def test_a_server_that_cannot(self, server: Loopback, target: Path, second: Trick) -> None:
        server.tricks[NAME] = [Trick(break_after=100_000), second]
        get(server, target)
        assert target.read_bytes() == CONTENT

    def test_numbers_that_are_none(self, server: Loopback, target: Path) -> None:
        endless = f"bytes {'9' * 5000}-9/9"  # more digits than int() takes
        server.tricks[NAME] = [Trick(break_after=100_000), Trick(content_range=endless)]
        get(server, target)
        assert target.read_bytes() == CONTENT

    def test_an_etag_that_cannot_be_sent_back(self, server: Loopback, target: Path) -> None:
        server.tricks[NAME] = [Trick(break_after=100_000, etag='"é"')]
        get(server, target)
        assert [asked.if_range for asked in server.asked] == [None, None]
        assert target.read_bytes() == CONTENT

    @pytest.mark.parametrize("etag", ['"é"', 5, ["x"], '"a\nb"'])
    def test_nor_one_from_a_damaged_sidecar(self, server: Loopback, target: Path, etag: Any) -> None:
        target.parent.mkdir()
        part_path(target).write_bytes(CONTENT[:1000])
        known = {"name": NAME, "size_bytes": len(CONTENT), "md5": md5(CONTENT), "etag": etag}
        (target.parent / f"{NAME}.part.json").write_text(json.dumps(known))
        get(server, target)
        assert (server.ranges(NAME), server.asked[0].if_range) == (["bytes=1000-"], None)
        assert target.read_bytes() == CONTENT

    def test_killed_before_its_name_though_nobody_said_how_long(self, server: Loopback, target: Path) -> None:
        file = remote(server, size_bytes=None, md5=None)
        get(server, target, file)
        target.rename(part_path(target))
        known = {"name": NAME, "size_bytes": None, "md5": None, "etag": f'"{md5(CONTENT)}"'}
        (target.parent / f"{NAME}.part.json").write_text(json.dumps(known))
        get(server, target, file)
        assert server.sent(NAME) == len(CONTENT)  # by the first of the two
        assert left(target) == [NAME, f"{NAME}.fetched.json"]
        assert target.read_bytes() == CONTENT

    def test_a_file_that_changed_meanwhile(self, server: Loopback, target: Path) -> None:
        older = CONTENT[::-1]
        server.tricks[NAME] = [Trick(body=older, break_after=100_000)]
        get(server, target)
        assert target.read_bytes() == CONTENT

    def test_one_that_changed_under_the_same_etag(self, server: Loopback, target: Path) -> None:
        server.tricks[NAME] = [Trick(body=CONTENT[::-1], break_after=100_000, etag=f'"{md5(CONTENT)}"')]
        get(server, target)
        assert target.read_bytes() == CONTENT
        assert server.ranges(NAME) == [None, "bytes=100000-", None]

    def test_a_changed_etag_behind_a_206(self, server: Loopback, target: Path) -> None:
        server.tricks[NAME] = [Trick(break_after=100_000), Trick(headers={"ETag": '"2"'}), Trick()]
        file = remote(server)
        get(server, target, file)
        assert target.read_bytes() == CONTENT

    @pytest.mark.parametrize("sidecar", ["{ torn", "[]", '{"name": 1}', None])
    def test_a_part_of_unknown_origin_is_not_used(self, server: Loopback, target: Path, sidecar: str | None) -> None:
        target.parent.mkdir()
        part_path(target).write_bytes(b"?" * 1000)
        if sidecar:
            (target.parent / f"{NAME}.part.json").write_text(sidecar)
        get(server, target)
        assert server.ranges(NAME) == [None]
        assert target.read_bytes() == CONTENT

    def test_a_damaged_part_costs_one_more_download(self, server: Loopback, target: Path) -> None:
        server.always[NAME] = Trick(break_after=50_000)
        with pytest.raises(DownloadError):
            get(server, target, attempts=1)
        server.always.clear()
        part_path(target).write_bytes(bytes(50_000))
        get(server, target)
        assert target.read_bytes() == CONTENT

    def test_a_part_that_is_too_long_starts_anew(self, server: Loopback, target: Path) -> None:
        server.always[NAME] = Trick(break_after=50_000)
        with pytest.raises(DownloadError):
            get(server, target, attempts=1)
        server.always.clear()
        part_path(target).write_bytes(bytes(len(CONTENT) + 1))
        get(server, target)
        assert server.ranges(NAME) == [None, None]

    def test_breaks_that_bring_more_each_time_do_not_count(
        self, server: Loopback, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(download, "GAIN_BYTES", 20_000)
        server.always[NAME] = Trick(break_after=30_000)
        get(server, target, attempts=2)
        assert len(server.asked) == 7
        assert target.read_bytes() == CONTENT

    def test_the_same_bytes_again_and_again_do(
        self, server: Loopback, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(download, "GAIN_BYTES", 20_000)
        server.always[NAME] = Trick(break_after=30_000, ignore_range=True)
        with pytest.raises(DownloadError, match="after 3 tries"):
            get(server, target, attempts=3)


class TestLies:
    def test_a_length_too_short(self, server: Loopback, target: Path) -> None:
        server.tricks[NAME] = [Trick(length=1000)]
        get(server, target)
        assert target.read_bytes() == CONTENT

    def test_a_length_too_long(self, server: Loopback, target: Path) -> None:
        server.tricks[NAME] = [Trick(length=300_000)]
        get(server, target)
        assert target.read_bytes() == CONTENT

    @pytest.mark.parametrize("length", [1000, 300_000])
    def test_always(self, server: Loopback, target: Path, length: int) -> None:
        server.always[NAME] = Trick(length=length)
        with pytest.raises(
            DownloadError, match=f"the server has {length} bytes, the record says 204800, after 4 tries"
        ):
            get(server, target)

    def test_more_than_it_should_without_a_length(self, server: Loopback, target: Path) -> None:
        server.always[NAME] = Trick(body=CONTENT + b"more")
        with pytest.raises(DownloadError, match="204804 bytes"):
            get(server, target)
        assert not target.exists()

    def test_a_wrong_checksum_once(self, server: Loopback, target: Path) -> None:
        server.tricks[NAME] = [Trick(body=b"!" + CONTENT[1:])]
        get(server, target)
        assert target.read_bytes() == CONTENT
        assert len(server.asked) == 2

    def test_a_wrong_checksum_always(self, server: Loopback, target: Path) -> None:
        wrong = b"!" + CONTENT[1:]
        server.always[NAME] = Trick(body=wrong)
        with pytest.raises(ChecksumError, match=f"md5 is {md5(wrong)}, expected {md5(CONTENT)}, after 2 downloads"):
            get(server, target)
        assert len(server.asked) == 2
        assert not target.exists()
        assert bytes_fetched(target, remote(server)) == 0

    def test_nobody_says_how_long_and_which(self, server: Loopback, target: Path) -> None:
        server.tricks[NAME] = [Trick(break_after=100_000)]
        file = remote(server, size_bytes=None, md5=None)
        assert get(server, target, file)
        assert target.read_bytes() == CONTENT
        assert not get(server, target, file)

    def test_a_part_without_etag_or_md5_is_not_added_to(self, server: Loopback, target: Path) -> None:
        server.etags = False
        file = remote(server, size_bytes=None, md5=None)
        server.always[NAME] = Trick(break_after=50_000)
        with pytest.raises(DownloadError):
            get(server, target, file, attempts=1)
        server.always.clear()
        get(server, target, file)
        assert server.ranges(NAME) == [None, None]
        assert target.read_bytes() == CONTENT


class TestRefusals:
    @pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 408])
    def test_tried_again(self, server: Loopback, target: Path, status: int) -> None:
        server.tricks[NAME] = [Trick(status=status)] * 3
        get(server, target)
        assert len(server.asked) == 4

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_in_the_end_one_line(self, server: Loopback, target: Path, status: int) -> None:
        server.always[NAME] = Trick(status=status)
        with pytest.raises(DownloadError, match=rf"{NAME}/content: the server answers {status} .*, after 4 tries; "):
            get(server, target)

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
    def test_at_once(self, server: Loopback, target: Path, status: int) -> None:
        server.always[NAME] = Trick(status=status)
        with pytest.raises(DownloadError, match=f"answers {status}") as caught:
            get(server, target)
        assert len(server.asked) == 1
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("as_date", [False, True])
    @pytest.mark.parametrize("status", [429, 503])
    def test_retry_after_is_honoured_and_bounded(
        self, server: Loopback, target: Path, status: int, as_date: bool
    ) -> None:
        patience = Patience()
        later = format_datetime(datetime.now(UTC) + timedelta(seconds=3600), usegmt=True)
        server.tricks[NAME] = [
            Trick(status=status, headers={"Retry-After": later if as_date else "3600"}),
            Trick(status=status, headers={"Retry-After": "7"}),
            Trick(status=status, headers={"Retry-After": "soon"}),
        ]
        get(server, target, stop=patience, max_wait_seconds=100.0)
        waits = patience.waits
        assert waits[:2] == [100.0, 7.0]
        assert 0 < waits[2] < 1

    @pytest.mark.parametrize("when", ["²", "-5", "", "Mon, 01 Jan 99999999999999999999 00:00:00 GMT", "9" * 400])
    def test_a_retry_after_that_is_none(self, server: Loopback, target: Path, when: str) -> None:
        patience = Patience()
        server.tricks[NAME] = [Trick(status=503, headers={"Retry-After": when})]
        get(server, target, stop=patience)
        assert len(patience.waits) == 1
        assert target.read_bytes() == CONTENT

    def test_a_wait_says_why_and_how_long(self, server: Loopback, target: Path) -> None:
        said: list[str] = []
        patience = Patience()
        server.tricks[NAME] = [Trick(status=429, headers={"Retry-After": "240"}), Trick(break_after=1000)]
        server.tricks["record"] = [Trick(status=503)]
        settings = server.settings(max_wait_seconds=300.0)
        with open_client(settings) as client:
            read_record(client, settings, "3723295", patience, say=said.append)
            fetch(client, remote(server), target, settings, stop=patience, say=said.append)
        url = remote(server).url
        assert said[0].startswith(f"{server.url}/api/records/3723295: the server answers 503 ")
        assert said[1] == f"{url}: the server answers 429 Too Many Requests; tried again in 240 s"
        assert said[2].startswith(f"{url}: the connection broke (")
        assert len(said) == len(patience.waits) == 3

    def test_a_certificate_that_nobody_vouches_for(self, server: Loopback, target: Path) -> None:
        asked = []

        def refuse(request: httpx.Request) -> httpx.Response:
            asked.append(request)
            raise httpx.ConnectError("expired") from ssl.SSLCertVerificationError("expired")

        with (
            httpx.Client(transport=httpx.MockTransport(refuse)) as client,
            pytest.raises(
                DownloadError, match=r"cannot prove who it is \(expired\); check the address, this machine's"
            ),
        ):
            fetch(client, remote(server), target, server.settings())
        assert len(asked) == 1

    def test_backoff_doubles_with_jitter(self, server: Loopback, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        patience = Patience()
        server.tricks[NAME] = [Trick(status=500)] * 6
        get(server, target, stop=patience, attempts=9, backoff_seconds=2.0, max_wait_seconds=30.0)
        waits = patience.waits
        assert all(0.5 <= wait / (2 * 2**n) <= 1.5 or wait == 30.0 for n, wait in enumerate(waits))
        assert len(waits) == 6

    def test_silence(self, server: Loopback, target: Path) -> None:
        server.tricks[NAME] = [Trick(hang_seconds=0.3)]
        get(server, target, read_seconds=0.1)
        assert len(server.asked) == 2
        server.always[NAME] = Trick(hang_seconds=0.3)
        drop(target)
        with pytest.raises(DownloadError, match="the server is silent, after 2 tries"):
            get(server, target, read_seconds=0.1, attempts=2)

    def test_nobody_there(self, target: Path) -> None:
        with serving({}) as gone:
            pass
        with pytest.raises(DownloadError, match="the connection broke"):
            get(gone, target)

    def test_stopped_by_another(self, server: Loopback, target: Path) -> None:
        stop = threading.Event()
        stop.set()
        with pytest.raises(Stopped):
            get(server, target, stop=stop)

    def test_a_full_disk_names_the_file(self, server: Loopback, target: Path) -> None:
        target.parent.mkdir()
        part_path(target).symlink_to("/dev/full")
        known = {"name": NAME, "size_bytes": len(CONTENT), "md5": md5(CONTENT), "etag": None}
        (target.parent / f"{NAME}.part.json").write_text(json.dumps(known))  # else it would be emptied first
        with pytest.raises(OSError, match=f"{NAME}.part") as caught:
            get(server, target)
        assert caught.value.errno == errno.ENOSPC
        assert len(server.asked) == 1
        assert not target.exists()

    def test_a_folder_in_its_place_is_named(self, server: Loopback, target: Path) -> None:
        part_path(target).mkdir(parents=True)
        with pytest.raises(OSError, match=f"{NAME}.part"):
            get(server, target)

    def test_errors_survive_pickling(self) -> None:
        error = pickle.loads(pickle.dumps(DownloadError("a\nb", "is wrong", "mend it")))
        assert str(error) == r"a\nb: is wrong; mend it"
        assert isinstance(error, LunaError)


class TestRecord:
    def test_the_form_that_zenodo_answers_in(self) -> None:
        url = "https://zenodo.org/api/records/3723295"
        files = parse_record(RECORD.read_bytes(), url)
        assert sorted(files) == ["annotations.csv", "candidates_V2.zip", "evaluationScript.zip", "subset0.zip"]
        assert files["subset0.zip"] == RemoteFile(
            name="subset0.zip", url=f"{url}/files/subset0.zip/content", size_bytes=6811924508, md5="0" * 31 + "1"
        )
        # "content" before "self"; without links the address follows from the record's.
        assert files["annotations.csv"].url == f"{url}/files/annotations.csv/content"
        assert files["candidates_V2.zip"].url == f"{url}/files/candidates_V2.zip/content"

    def test_the_form_with_entries(self) -> None:
        entry = {"size": 3, "checksum": f"md5:{'a' * 32}", "links": {"content": "/here"}}
        files = parse_record(
            json.dumps({"files": {"entries": {"a.csv": entry}}}).encode(), "https://z.org/api/records/1"
        )
        assert files["a.csv"].url == "https://z.org/here"

    @pytest.mark.parametrize(
        "content",
        [
            *[b"<html>", b"", b"[]", b"null", b"{}", b"\xff", b"[" * 200_000, b'{"files":' * 100_000],
            *[b'{"files": 3}', b'{"files": [3]}', b'{"files": []}'],
            *[b'{"files": {"entries": {"a.csv": 3}}}', b'{"files": {"entries": []}}'],
        ],
    )
    def test_garbage_is_one_line(self, content: bytes) -> None:
        with pytest.raises(DownloadError, match="check the address"):
            parse_record(content, "https://z.org")

    @pytest.mark.parametrize(
        "change",
        [
            {"size": "3"},
            {"size": -1},
            {"size": True},
            {"size": 10**400},
            {"links": {"self": "file:///etc/passwd"}},
            {"links": {"self": "http://[::1"}},
            {"checksum": None},
            {"checksum": "md5:12"},
            {"key": ".."},
            {"key": "a b"},
        ],
    )
    def test_entries_that_cannot_be_proved_are_left_out(self, change: dict[str, Any]) -> None:
        good = {"key": "a.csv", "size": 3, "checksum": f"md5:{'a' * 32}"}
        content = json.dumps({"files": [good, {**good, "key": "b.csv", **change}]}).encode()
        assert list(parse_record(content, "https://z.org")) == ["a.csv"]

    def test_an_entry_that_is_none_leaves_the_others(self) -> None:
        good = {"key": "a.csv", "size": 3, "checksum": f"md5:{'a' * 32}"}
        content = json.dumps({"files": [7, None, "a", [], good]}).encode()
        assert list(parse_record(content, "https://z.org")) == ["a.csv"]

    @pytest.mark.parametrize("links", ["x", 5, [], {"self": 5}, {"content": None}])
    def test_without_usable_links_the_address_follows_from_the_records(self, links: Any) -> None:
        entry = {"key": "a.csv", "size": 3, "checksum": f"md5:{'a' * 32}", "links": links}
        url = "https://z.org/api/records/1"
        files = parse_record(json.dumps({"files": [entry]}).encode(), url)
        assert files["a.csv"].url == f"{url}/files/a.csv/content"

    def test_read_from_a_server(self, server: Loopback) -> None:
        server.tricks["record"] = [Trick(status=503), Trick(status=429)]
        with open_client(server.settings()) as client:
            assert read_record(client, server.settings(), "3723295")[NAME].md5 == md5(CONTENT)
            assert server.records_asked == 3
            with pytest.raises(DownloadError, match=r"/api/records/5: the server answers 404"):
                read_record(client, server.settings(), "5")
            server.record_body = gzip.compress(b"{}")
            with pytest.raises(DownloadError, match="no record with files"):
                read_record(client, server.settings(), "3723295")


class TestSettings:
    @pytest.mark.parametrize(
        "change",
        [
            {"zenodo_url": "ftp://zenodo.org"},
            {"zenodo_url": "zenodo.org"},
            {"lidc_xml_url": "/tmp/x"},
            {"zenodo_url": "https://zenodo.org/\r\nHost: other"},
            {"records": ()},
            {"records": ("../1",)},
            {"attempts": 0},
            {"parallel": 0},
            {"read_seconds": 0},
            {"backoff_seconds": -1},
            {"max_wait_seconds": float("nan")},
        ],
    )
    def test_what_cannot_be(self, change: dict[str, Any]) -> None:
        with pytest.raises(DownloadError, match="correct the setting"):
            DownloadSettings(**change)

    def test_a_password_in_an_address_is_refused_and_not_repeated(self) -> None:
        with pytest.raises(DownloadError, match="lidc_xml_url: holds a user or a password") as caught:
            DownloadSettings(lidc_xml_url="https://somebody:hunter2@example.org/xml.zip")
        assert "hunter2" not in str(caught.value)


class TestMeter:
    def test_totals_rate_and_time_left(self) -> None:
        told: list[Progress] = []
        meter = Meter(1000, told.append, every_seconds=0.0)
        meter.add(400, fetched=False)
        time.sleep(0.01)
        meter.add(100)
        assert (told[-1].bytes_done, told[-1].bytes_total) == (500, 1000)
        rate, seconds_left = told[-1].bytes_per_second, told[-1].seconds_left
        assert 0 < rate <= 100 / 0.01  # what was there before is no rate
        assert seconds_left == pytest.approx(500 / rate)
        meter.add(-500, fetched=False)
        assert told[-1].bytes_done == 0

    def test_tells_seldom_but_always_the_end(self) -> None:
        told: list[Progress] = []
        meter = Meter(100, told.append, every_seconds=60.0)
        for _ in range(100):
            meter.add(1)
        assert [progress.bytes_done for progress in told] == [1, 100]
        assert told[-1].seconds_left == 0

    def test_a_download_ends_at_its_total(self, server: Loopback, target: Path) -> None:
        told: list[Progress] = []
        server.tricks[NAME] = [Trick(break_after=100_000), Trick(ignore_range=True, break_after=60_000)]
        settings = server.settings()
        with open_client(settings) as client:
            fetch(client, remote(server), target, settings, meter=Meter(len(CONTENT), told.append))
        assert told[-1].bytes_done == told[-1].bytes_total == len(CONTENT)
