"""How does a large file come over a bad line, once, and provably whole?"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urljoin, urlsplit

import httpx

from lungml.errors import FileError, one_line
from lungml.files import naming, write_text_atomic

CHUNK_BYTES = 1 << 20
# A try that brought this much more than any before it does not count as failed: a 7 GB archive may take many breaks.
GAIN_BYTES = 1 << 20
CHECKSUM_TRIES = 2  # a whole file that is wrong twice is wrong at its source
MAX_RECORD_BYTES = 16 << 20  # a record's JSON is a few kB
MAX_FILE_BYTES = 1 << 63  # of what a file system can hold
RETRIED_STATUSES = {408, 425, 429, 500, 502, 503, 504}
WAITING_STATUSES = {429, 503}  # those that may carry Retry-After
METER_SECONDS = 30.0  # the rate is that of the last half minute
RESUME_ADVICE = "run it again: it goes on where it stopped"


class DownloadError(FileError):
    """A file that cannot be fetched; its text is one line: address or file, what is wrong, what to do."""


class ChecksumError(DownloadError):
    """A file came whole, more than once, with another checksum than was published."""


class Stopped(DownloadError):
    """Another file's failure, or a person, ended this one's download."""


@dataclass(frozen=True, kw_only=True)
class DownloadSettings:
    """Where LUNA16 comes from, and how patiently.

    Attributes:
        records: Zenodo's record ids of LUNA16, part 1 (subsets 0..6, tables) and part 2 (subsets 7..9).
        lidc_xml_url: a zip file of LIDC's annotations, fetched too when given. TCIA's is
            https://www.cancerimagingarchive.net/wp-content/uploads/LIDC-XML-only.zip (9 MB). It publishes no checksum,
            so only the server says how long it is.
        attempts: how many tries in a row may fail without bringing more of the file.
        connect_seconds, read_seconds: how long to wait for a connection, and for the next bytes.
        backoff_seconds: wait after the first failed try; it doubles with each.
        max_wait_seconds: the longest wait between two tries, also when the server asks for more.
        parallel: archives at once.
        keep_archives: False drops an archive as soon as all of it is unpacked and proved.
    """

    zenodo_url: str = "https://zenodo.org"
    records: tuple[str, ...] = ("3723295", "4121926")
    lidc_xml_url: str | None = None
    attempts: int = 10
    connect_seconds: float = 10.0
    read_seconds: float = 60.0
    backoff_seconds: float = 2.0
    max_wait_seconds: float = 300.0
    parallel: int = 2
    keep_archives: bool = True

    def __post_init__(self) -> None:
        for name in ("zenodo_url", "lidc_xml_url"):
            url = getattr(self, name)
            if url is not None and not _is_address(url):
                raise DownloadError(repr(url), f"{name} is no http(s) address", "correct the setting")
            if url is not None and "@" in urlsplit(url).netloc:  # settings are shown as a flow's parameters
                raise DownloadError(name, "holds a user or a password", "name a server that asks for none")
        if not self.records or not all(re.fullmatch(r"\d+", record) for record in self.records):
            raise DownloadError(repr(self.records), "records are not numbers", "correct the setting")
        for name in ("attempts", "parallel", "connect_seconds", "read_seconds"):
            if not getattr(self, name) > 0:
                raise DownloadError(name, f"is {getattr(self, name)}, not more than 0", "correct the setting")
        for name in ("backoff_seconds", "max_wait_seconds"):
            if not getattr(self, name) >= 0:
                raise DownloadError(name, f"is {getattr(self, name)}, less than 0", "correct the setting")


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file as it is published; size and md5 are None where nobody says."""

    name: str
    url: str
    size_bytes: int | None
    md5: str | None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far all downloads are together; `seconds_left` is None while there is no rate yet."""

    bytes_done: int
    bytes_total: int
    bytes_per_second: float
    seconds_left: float | None


class Meter:
    """Adds up what several threads fetch, and tells a callback, at most every `every_seconds`."""

    def __init__(
        self, bytes_total: int, tell: Callable[[Progress], None] | None = None, every_seconds: float = 1.0
    ) -> None:
        self._total = bytes_total
        self._tell = tell
        self._every = every_seconds
        self._lock = threading.Lock()
        self._done = 0
        self._told = 0.0
        self._fetched = 0
        self._recent: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def add(self, size_bytes: int, *, fetched: bool = True) -> None:
        """Count bytes that are there now; negative ones are lost again. Only `fetched` ones make the rate."""
        now = time.monotonic()
        with self._lock:
            self._done += size_bytes
            if fetched and size_bytes > 0:
                self._fetched += size_bytes
            if now - self._told < self._every and self._done != self._total:
                return
            self._told = now
            while len(self._recent) > 1 and self._recent[0][0] < now - METER_SECONDS:
                self._recent.popleft()
            since, before = self._recent[0]
            rate = (self._fetched - before) / (now - since) if now > since else 0.0
            self._recent.append((now, self._fetched))
            left = max(self._total - self._done, 0)
            progress = Progress(
                bytes_done=self._done,
                bytes_total=self._total,
                bytes_per_second=rate,
                seconds_left=left / rate if rate else None,
            )
            if self._tell:
                self._tell(progress)


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a half-fetched file belongs to: written beside it."""

    name: str
    size_bytes: int | None
    md5: str | None
    etag: str | None


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A file that came whole: while size and time are these, it is neither fetched nor read again."""

    size_bytes: int
    mtime_ns: int
    md5: str


def open_client(settings: DownloadSettings) -> httpx.Client:
    """A client with the settings' timeouts, safe to share between threads; close it."""
    return httpx.Client(
        verify=_tls(),
        timeout=httpx.Timeout(settings.read_seconds, connect=settings.connect_seconds),
        follow_redirects=True,
        # Compressed on the way, lengths and ranges would count other bytes than the record does.
        headers={"Accept-Encoding": "identity", "User-Agent": "luna-pipeline"},
    )


@cache
def _tls() -> ssl.SSLContext:
    """Who is trusted; reading that takes longer than a small file, so once."""
    return httpx.create_ssl_context()


def read_record(
    client: httpx.Client,
    settings: DownloadSettings,
    record: str,
    stop: threading.Event | None = None,
    *,
    say: Callable[[str], None] | None = None,
) -> dict[str, RemoteFile]:
    """Read which files a Zenodo record has, with sizes and checksums; `say` as in `fetch`.

    Raises:
        DownloadError: no such record, no answer after all tries, or an answer that is no record.
    """
    url = f"{settings.zenodo_url.rstrip('/')}/api/records/{record}"
    tries = _Tries(settings, stop or threading.Event(), say)
    while True:
        try:
            with _failures_named(url), client.stream("GET", url, headers={"Accept": "application/json"}) as response:
                _check_status(url, response)
                content = bytearray()
                for chunk in response.iter_raw():
                    content += chunk
                    if len(content) > MAX_RECORD_BYTES:
                        raise _Failed(url, f"the answer is over {MAX_RECORD_BYTES} bytes long")
            return parse_record(bytes(content), url)
        except _Failed as failure:
            tries.wait_after(failure)


def parse_record(content: bytes, url: str) -> dict[str, RemoteFile]:
    """The files in a record's JSON: `files: [{key, size, checksum: "md5:..", links: {content or self}}]`.

    Files without a plain name, a size or an md5 are left out, the others count; further fields do not matter.
    `files` may also be `{"entries": {name: {...}}}`, the form of the software under Zenodo.

    Raises:
        DownloadError: not JSON, or no files in it.
    """
    advice = "check the address and the record id in the settings"
    try:
        files = json.loads(content)["files"]
        if isinstance(files, dict):
            files = [{"key": name, **entry} for name, entry in files["entries"].items() if isinstance(entry, dict)]
        found = [_remote_file(entry, url) for entry in files]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DownloadError(url, "the answer is no record with files", advice) from error
    named = {file.name: file for file in found if file}
    if not named:
        raise DownloadError(url, "the record lists no files with size and md5", advice)
    return named


def is_fetched(target: Path, remote: RemoteFile, stop: threading.Event | None = None) -> bool:
    """Whether a file is there whole, by its marker: unchanged in size and time since it was proved.

    Without a marker that fits, a file of the right size is read once, and marked when its md5 is right.
    """
    try:
        found = target.stat()
    except OSError:
        return False
    if remote.size_bytes is not None and found.st_size != remote.size_bytes:
        return False
    marked = _read_json(_marker(target), Fetched)
    unchanged = marked and (marked.size_bytes, marked.mtime_ns) == (found.st_size, found.st_mtime_ns)
    if marked and unchanged:
        return remote.md5 is None or marked.md5 == remote.md5
    if remote.md5 is None or _md5(target, stop).hexdigest() != remote.md5:
        return False
    _write_json(_marker(target), Fetched(size_bytes=found.st_size, mtime_ns=found.st_mtime_ns, md5=remote.md5))
    return True


def bytes_fetched(target: Path, remote: RemoteFile) -> int:
    """How much of a file need not be fetched any more; nothing is read."""
    for path in (target, part_path(target)):
        if path.exists() and (path == target or _resumable(path, remote)):
            return min(path.stat().st_size, remote.size_bytes or 0)
    return 0


def fetch(
    client: httpx.Client,
    remote: RemoteFile,
    target: Path,
    settings: DownloadSettings,
    *,
    meter: Meter | None = None,
    stop: threading.Event | None = None,
    say: Callable[[str], None] | None = None,
) -> bool:
    """Fetch a file, which appears whole and proved or not at all; hold its lock meanwhile (`lungml.files.locked`).

    What came before a break stays in `<name>.part` and is asked for no second time, if the server can send the rest.

    Args:
        meter: told of every piece that comes.
        stop: when set, the download ends at the next piece, and at once where it waits.
        say: told in one line why a try failed, and how long it waits before the next: that may be minutes.

    Returns:
        whether it was fetched; False when it was there already.

    Raises:
        ChecksumError: the whole file came twice with another md5 than published; nothing of it is kept.
        DownloadError: refused, or no progress after all tries; what came is kept for the next run.
        OSError: a full disk, no permission; it names the file.
    """
    meter = meter or Meter(remote.size_bytes or 0)
    stop = stop or threading.Event()
    if is_fetched(target, remote, stop):
        meter.add(target.stat().st_size, fetched=False)
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    part = part_path(target)
    tries = _Tries(settings, stop, say)
    wrong = 0
    with naming(part), _Partial.opened(part, remote, meter, stop) as partial:
        tries.best = partial.size
        while True:
            try:
                if partial.size != partial.remote.size_bytes:
                    _fetch_rest(client, partial)
                got = partial.digest.hexdigest()
                if remote.md5 in (None, got):
                    partial.handle.flush()
                    os.fsync(partial.handle.fileno())
                    break
                wrong += 1
                partial.restart()
                problem = f"md5 is {got}, expected {remote.md5}"
                if wrong >= CHECKSUM_TRIES:
                    raise ChecksumError(
                        remote.url, f"{problem}, after {wrong} downloads", "try later, or use another source"
                    )
                tries.best = 0
                raise _Failed(remote.url, problem)
            except _Failed as failure:
                tries.wait_after(failure, partial.size)
        # The marker first: a name without its marker would cost a reading, a marker without its name costs nothing.
        mtime_ns = os.fstat(partial.handle.fileno()).st_mtime_ns
        _write_json(_marker(target), Fetched(size_bytes=partial.size, mtime_ns=mtime_ns, md5=got))
        part.replace(target)
    _sidecar(part).unlink(missing_ok=True)
    return True


def doubt(target: Path) -> None:
    """Have a fetched file read and proved again at the next run: using it gave reason to."""
    _marker(target).unlink(missing_ok=True)


def drop(target: Path) -> None:
    """Delete a fetched file and its marker."""
    for path in (target, _marker(target), part_path(target), _sidecar(part_path(target))):
        path.unlink(missing_ok=True)


def part_path(target: Path) -> Path:
    """Where a file lies while it is fetched."""
    return target.with_name(f"{target.name}.part")


class _Failed(Exception):
    """A try that failed in a way that another may mend."""

    def __init__(self, url: str, problem: str, wait_seconds: float | None = None) -> None:
        super().__init__(url, problem)
        self.url, self.problem, self.wait_seconds = url, problem, wait_seconds


class _Tries:
    """Counts failed tries in a row, and waits after each, longer and longer."""

    def __init__(
        self, settings: DownloadSettings, stop: threading.Event, say: Callable[[str], None] | None = None
    ) -> None:
        self._settings = settings
        self._stop = stop
        self._say = say
        self._failed = 0
        self.best = 0  # the most bytes that any try reached

    def wait_after(self, failure: _Failed, size_bytes: int = 0) -> None:
        """Wait as the server asks or the settings say; raise DownloadError when there were tries enough."""
        if size_bytes >= self.best + GAIN_BYTES:
            self._failed = 0
        self.best = max(self.best, size_bytes)
        self._failed += 1
        if self._failed >= self._settings.attempts:
            times = "1 try" if self._failed == 1 else f"{self._failed} tries"
            raise DownloadError(failure.url, f"{failure.problem}, after {times}", RESUME_ADVICE) from failure
        wait = failure.wait_seconds
        if wait is None:
            # Half to one and a half times as long, so that downloads that broke together do not return together.
            wait = self._settings.backoff_seconds * 2 ** (self._failed - 1) * random.uniform(0.5, 1.5)
        wait = min(wait, self._settings.max_wait_seconds)
        if self._say:
            self._say(one_line(f"{failure.url}: {failure.problem}; tried again in {wait:.0f} s"))
        if self._stop.wait(wait):
            raise Stopped(failure.url, "the download was stopped", RESUME_ADVICE)


@dataclass(kw_only=True)
class _Partial:
    """A half-fetched file with the md5 of what is there."""

    path: Path
    remote: RemoteFile
    handle: BinaryIO
    meter: Meter
    stop: threading.Event
    etag: str | None
    size: int = 0
    digest: Any = field(default_factory=lambda: hashlib.md5(usedforsecurity=False))

    @classmethod
    @contextmanager
    def opened(cls, path: Path, remote: RemoteFile, meter: Meter, stop: threading.Event) -> Iterator[_Partial]:
        """Open `<name>.part`, emptied unless it belongs to this very file; what it holds is hashed once."""
        before = _resumable(path, remote)
        with path.open("ab") as handle:
            if before is None:
                handle.truncate(0)
            partial = cls(
                path=path,
                remote=remote,
                handle=handle,
                meter=meter,
                stop=stop,
                etag=_strong_etag(before.etag) if before else None,
            )
            partial.size = os.fstat(handle.fileno()).st_size
            if partial.size > (remote.size_bytes or partial.size):
                partial.restart()
            if partial.size:
                partial.digest = _md5(path, stop)
                meter.add(partial.size, fetched=False)
            yield partial

    def describe(self, etag: str | None) -> None:
        """Note what the bytes belong to, before the first of them is written."""
        self.etag = etag
        _write_json(
            _sidecar(self.path),
            Part(name=self.remote.name, size_bytes=self.remote.size_bytes, md5=self.remote.md5, etag=etag),
        )

    def restart(self) -> None:
        """Drop what is there."""
        self.handle.truncate(0)
        self.meter.add(-self.size, fetched=False)
        self.size = 0
        self.etag = None
        self.digest = hashlib.md5(usedforsecurity=False)

    def write(self, chunk: bytes) -> None:
        # What came is on disk before it is asked for: a part of a file may only ever be too short.
        self.handle.write(chunk)
        self.handle.flush()
        self.digest.update(chunk)
        self.size += len(chunk)
        self.meter.add(len(chunk))


def _fetch_rest(client: httpx.Client, partial: _Partial) -> None:
    """One try for what is missing; on return the file has its full size."""
    remote = partial.remote
    headers = {}
    if partial.size:
        headers["Range"] = f"bytes={partial.size}-"
        if partial.etag:
            headers["If-Range"] = partial.etag
    with _failures_named(remote.url), client.stream("GET", remote.url, headers=headers) as response:
        if partial.size and response.status_code == 416:
            if remote.size_bytes is None and response.headers.get("Content-Range") == f"bytes */{partial.size}":
                return  # all of it came, and the run was killed before it had its name; If-Range says: of this file
            partial.restart()
            raise _Failed(remote.url, "the server has nothing behind what is here")
        _check_status(remote.url, response)
        whole = _check_lengths(partial, response)
        if response.status_code != 206:
            if partial.size:
                partial.restart()
            partial.describe(_strong_etag(response.headers.get("ETag")))
        for chunk in response.iter_raw():  # as they come: gathered into larger ones, the last would be lost in a break
            if partial.stop.is_set():
                raise Stopped(remote.url, "the download was stopped", RESUME_ADVICE)
            if whole is not None and partial.size + len(chunk) > whole:
                partial.restart()
                raise _Failed(remote.url, f"the server sent more than the {whole} bytes it should")
            partial.write(chunk)
    if whole is not None and partial.size < whole:
        raise _Failed(remote.url, f"the connection ended after {partial.size} of {whole} bytes")


def _check_lengths(partial: _Partial, response: httpx.Response) -> int | None:
    """The whole file's size, from the record or else the answer; what is here is dropped where they disagree."""
    remote, headers = partial.remote, response.headers
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise _Failed(remote.url, f"the server packs it on the way ({headers['Content-Encoding']}), unasked")
    whole = remote.size_bytes
    if response.status_code == 206:
        number = "([0-9]{1,18})"
        ranged = re.fullmatch(rf"bytes {number}-{number}/(\*|[0-9]{{1,18}})", headers.get("Content-Range", "").strip())
        if ranged and whole is None and ranged[3] != "*":
            whole = int(ranged[3])
        # A server that does not know If-Range may send the end of a newer file: its ETag tells.
        changed = partial.etag and headers.get("ETag", partial.etag) != partial.etag
        if changed or not ranged or int(ranged[1]) != partial.size or ranged[3] not in ("*", str(whole)):
            partial.restart()
            raise _Failed(
                remote.url, f"the server sent another part than asked for ({headers.get('Content-Range', 'unnamed')})"
            )
    elif re.fullmatch(r"[0-9]{1,18}", headers.get("Content-Length", "")):
        length = int(headers["Content-Length"])
        if whole is not None and length != whole:
            raise _Failed(remote.url, f"the server has {length} bytes, the record says {whole}")
        whole = length
    return whole


def _check_status(url: str, response: httpx.Response) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    problem = f"the server answers {status} {response.reason_phrase}".rstrip()
    if status in RETRIED_STATUSES:
        wait = _retry_after(response) if status in WAITING_STATUSES else None
        raise _Failed(url, problem, wait)
    advice = {
        401: "it asks for a login: use another source",
        403: "it is not allowed from here: try later, or use another source",
        404: "check the address and the record id in the settings",
        410: "it was taken back: use another source",
    }
    raise DownloadError(url, problem, advice.get(status, "check the address in the settings"))


@contextmanager
def _failures_named(url: str) -> Iterator[None]:
    """Everything a line can do wrong, as one kind."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise _Failed(url, "the server is silent") from error
    except (httpx.UnsupportedProtocol, httpx.TooManyRedirects, httpx.InvalidURL) as error:
        raise DownloadError(url, f"it leads nowhere ({error})", "check the address in the settings") from error
    except httpx.HTTPError as error:
        if _is_distrust(error):  # waiting mends no certificate
            advice = "check the address, this machine's clock and its certificates (SSL_CERT_FILE)"
            raise DownloadError(url, f"the server cannot prove who it is ({error})", advice) from error
        raise _Failed(url, f"the connection broke ({str(error) or type(error).__name__})") from error


def _is_distrust(error: BaseException | None) -> bool:
    """Whether a certificate that nobody vouches for is at the bottom of an error."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _strong_etag(etag: Any) -> str | None:
    """An ETag that may be sent back in If-Range; None for any other.

    A weak one ("W/..") does not promise the same bytes (RFC 9110 13.1.5), one that is not ASCII cannot be sent.
    """
    return etag if isinstance(etag, str) and re.fullmatch(r'"[\x21\x23-\x7e]*"', etag) else None


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds, from a number or a date; None when there is neither (RFC 9110 10.2.3)."""
    value = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,18}", value):
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return max((when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds(), 0.0)


def _remote_file(entry: Any, record_url: str) -> RemoteFile | None:
    """One entry of a record; None when it lacks what is needed to prove the file."""
    if not isinstance(entry, dict):
        return None
    name = str(entry.get("key") or entry.get("filename") or "")
    size = entry.get("size", entry.get("filesize"))
    md5 = str(entry.get("checksum") or "").lower().removeprefix("md5:")
    if not re.fullmatch(r"[\w\-][\w.\-]*", name) or not re.fullmatch(r"[0-9a-f]{32}", md5):
        return None
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < MAX_FILE_BYTES:
        return None
    links = entry.get("links")
    found = [links.get(name) for name in ("content", "self", "download")] if isinstance(links, dict) else []
    link = next((link for link in found if isinstance(link, str) and link), None)
    try:
        url = urljoin(record_url, link or f"{record_url}/files/{quote(name)}/content")
    except ValueError:  # half an IPv6 address
        return None
    return RemoteFile(name=name, url=url, size_bytes=size, md5=md5) if _is_address(url) else None


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable()


def _resumable(part: Path, remote: RemoteFile) -> Part | None:
    """What is known of a half-fetched file, when it is a part of just this one."""
    known = _read_json(_sidecar(part), Part)
    if not part.exists() or known is None:
        return None
    same = (known.name, known.size_bytes, known.md5) == (remote.name, remote.size_bytes, remote.md5)
    # Without a checksum to find a mixture, only an ETag says that the rest is of the same file.
    return known if same and (remote.md5 or _strong_etag(known.etag)) else None


def _md5(path: Path, stop: threading.Event | None = None) -> Any:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as handle:
        while piece := handle.read(CHUNK_BYTES):
            if stop and stop.is_set():
                raise Stopped(path, "the download was stopped", RESUME_ADVICE)
            digest.update(piece)
    return digest


def _marker(target: Path) -> Path:
    return target.with_name(f"{target.name}.fetched.json")


def _sidecar(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _write_json(path: Path, record: Any) -> None:
    write_text_atomic(path, json.dumps(asdict(record), indent=1) + "\n")


def _read_json(path: Path, kind: type[Any]) -> Any:
    """A record; None when there is none, or it is damaged."""
    try:
        return kind(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
