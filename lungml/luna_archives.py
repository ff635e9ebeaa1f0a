"""Which of LUNA16's archives are needed, and where do their members go?

    <luna_dir>/annotations.csv, annotations_excluded.csv, candidates_V2.csv, seriesuids.csv
    <luna_dir>/subset0/<series_uid>.mhd, .raw
    <luna_dir>/lidc_xml.zip             when an address for it is set
    <luna_dir>/archives/subset0.zip     while it is needed, or kept; beside it what is known of it

The tables always come, whole: the split is made from seriesuids.csv, so a partial download moves no scan.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import httpx

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
from lungml.download import (
    DownloadError,
    DownloadSettings,
    Meter,
    Progress,
    RemoteFile,
    bytes_fetched,
    doubt,
    drop,
    fetch,
    open_client,
    read_record,
)
from lungml.files import locked, write_text_atomic

SUBSETS = 10
ARCHIVES_FOLDER = "archives"
ANNOTATIONS = "annotations.csv"
LIDC_XML = "lidc_xml.zip"
PACKED_TABLES = {
    "evaluationScript.zip": ("annotations_excluded.csv", "seriesuids.csv"),
    "candidates_V2.zip": ("candidates_V2.csv",),
}
SCAN_SUFFIXES = (".mhd", ".raw", ".zraw")
# How much larger than their archives unpacked files are taken to be, before an archive is there to ask: LUNA16's
# 67 GB of subsets become about 120 GB, its tables shrink more when packed.
SCANS_FACTOR, TABLES_FACTOR = 2.0, 8.0


@dataclass(frozen=True, kw_only=True)
class Downloaded:
    """What a download brought.

    Attributes:
        subsets: those that are there whole now and were asked for.
        fetched: names of the archives and tables that came over the network in this run.
        unpacked: how many files were written in this run.
        notes: what a person should be told once.
    """

    luna_dir: Path
    subsets: tuple[int, ...]
    fetched: tuple[str, ...]
    unpacked: int
    notes: tuple[str, ...]

    @property
    def kept(self) -> bool:
        """Whether there was nothing to do."""
        return not self.fetched and not self.unpacked


def parse_subsets(text: str) -> tuple[int, ...]:
    """Read which subsets are meant: "0,3,5-7" is (0, 3, 5, 6, 7), sorted, each once.

    Raises:
        DownloadError: not numbers and ranges of 0..9.
    """
    advice = f"give numbers of 0..{SUBSETS - 1}, such as 0,3,5-7"
    chosen: set[int] = set()
    for part in text.split(","):
        matched = re.fullmatch(r"\s*([0-9]{1,4})\s*(?:-\s*([0-9]{1,4})\s*)?", part)
        if not matched:
            raise DownloadError(f"subsets {text!r}", f"{part!r} is neither a number nor a range", advice)
        first = int(matched[1])
        last = first if matched[2] is None else int(matched[2])
        if last < first:
            raise DownloadError(f"subsets {text!r}", f"{part.strip()!r} ends before it begins", advice)
        if last >= SUBSETS:
            raise DownloadError(f"subsets {text!r}", f"LUNA16 has no subset {last}", advice)
        chosen.update(range(first, last + 1))
    return tuple(sorted(chosen))


def download_luna(
    luna_dir: Path,
    settings: DownloadSettings,
    subsets: Sequence[int] | None = None,
    *,
    progress: Callable[[Progress], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Downloaded:
    """Bring LUNA16's tables and subsets into a folder; what is there whole is neither fetched nor unpacked again.

    A run that was killed goes on behind its last byte and its last file. Several runs at once share the work. When
    all is there, nothing is asked of the network. Tables that a person changed stay as they are.

    Args:
        subsets: numbers 0..9; all ten when not given. The tables come with any.
        progress: told about once a second, from the threads that fetch.
        say: told what is done, in a few lines, from the same threads.

    Raises:
        DownloadError: too little disk, no such subset, or as `lungml.download.fetch`.
        ArchiveError: as `lungml.archives.read_members` and `unpack`, or an archive lacks what it is fetched for.
        OSError: a full disk, no permission; it names the file.
    """
    chosen = tuple(range(SUBSETS)) if subsets is None else parse_subsets(",".join(map(str, subsets)))
    names = wanted_files(chosen, settings)
    folder = luna_dir / ARCHIVES_FOLDER
    remembered = _remembered(folder, settings)
    if remembered.keys() >= set(names) and all(
        _is_finished(luna_dir, remembered[name]) and _leftover_is_wanted(folder / name, settings) for name in names
    ):
        return Downloaded(luna_dir=luna_dir, subsets=chosen, fetched=(), unpacked=0, notes=())
    folder.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    with open_client(settings) as client:
        files = _published(client, settings, names, say)
        _remember(folder, settings, files)
        wanted = [files[name] for name in names]
        check_disk(luna_dir, wanted, settings)
        meter = Meter(sum(file.size_bytes or 0 for file in wanted), progress)
        one = _Work(luna_dir=luna_dir, settings=settings, client=client, meter=meter, stop=stop, say=say or _silent)
        done = _run_all(one.bring, wanted, settings.parallel, stop)
    return Downloaded(
        luna_dir=luna_dir,
        subsets=chosen,
        fetched=tuple(file.name for file in wanted if done[file.name].fetched),
        unpacked=sum(brought.unpacked for brought in done.values()),
        notes=tuple(note for file in wanted for note in done[file.name].notes),
    )


def wanted_files(subsets: Iterable[int], settings: DownloadSettings) -> tuple[str, ...]:
    """The names of the files to fetch: the tables first."""
    lidc = (LIDC_XML,) if settings.lidc_xml_url else ()
    return (ANNOTATIONS, *PACKED_TABLES, *lidc, *(f"subset{subset}.zip" for subset in subsets))


def check_disk(luna_dir: Path, wanted: Iterable[RemoteFile], settings: DownloadSettings) -> None:
    """See that what is still to come fits, packed and unpacked.

    Unpacked sizes are not published: until an archive is there to ask, scans are taken as 2 x it, tables as 8 x.
    With `keep_archives` off no more than `parallel` archives lie there at once.

    Raises:
        DownloadError: one line with what is needed and what is there.
    """
    to_fetch = []
    to_unpack = 0
    for file in wanted:
        if _is_finished(luna_dir, file):
            continue
        target, size_bytes = luna_dir / ARCHIVES_FOLDER / file.name, file.size_bytes or 0
        to_fetch.append(size_bytes - bytes_fetched(target, file))
        there = bytes_there(luna_dir, _journal(luna_dir, file), _source(file))
        to_unpack += max(_unpacked_bytes(target, file) - there, 0)
    if not settings.keep_archives:
        to_fetch = sorted(to_fetch, reverse=True)[: settings.parallel]
    needed, free = sum(to_fetch) + to_unpack, shutil.disk_usage(luna_dir).free
    if needed > free:
        ways = "free some, or choose fewer subsets" + (", or drop archives once unpacked" * settings.keep_archives)
        raise DownloadError(
            luna_dir,
            f"{_gigabytes(needed)} are needed ({_gigabytes(sum(to_fetch))} of archives and {_gigabytes(to_unpack)} "
            f"unpacked, taken as {SCANS_FACTOR:g} x the archives), {_gigabytes(free)} are free",
            ways,
        )


@dataclass(frozen=True, kw_only=True)
class _Brought:
    """What was done for one archive."""

    fetched: bool
    unpacked: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What all threads share."""

    luna_dir: Path
    settings: DownloadSettings
    client: httpx.Client
    meter: Meter
    stop: threading.Event
    say: Callable[[str], None]

    def bring(self, file: RemoteFile) -> _Brought:
        """Fetch one archive, unpack it, and drop it if it is not to be kept; a second run at once waits."""
        target = self.luna_dir / ARCHIVES_FOLDER / file.name
        with locked(target):
            if _is_finished(self.luna_dir, file, self.stop):
                if not _leftover_is_wanted(target, self.settings):
                    drop(target)
                self.meter.add(file.size_bytes or 0, fetched=False)
                return _Brought(fetched=False, unpacked=0)
            fetched = self._fetch(file, target)
            try:
                brought = self._unpack(file, target, fetched)
            except UnpackingStopped:
                raise
            except ArchiveError:
                doubt(target)
                raise
            if not (self.settings.keep_archives and file.name.endswith(".zip") and file.name != LIDC_XML):
                drop(target)
        return brought

    def _fetch(self, file: RemoteFile, target: Path) -> bool:
        meter = self.meter if file.size_bytes is not None else None
        if not fetch(self.client, file, target, self.settings, meter=meter, stop=self.stop, say=self.say):
            return False
        self.say(f"{file.name}: {_gigabytes(target.stat().st_size)} fetched and proved")
        return True

    def _unpack(self, file: RemoteFile, target: Path, fetched: bool) -> _Brought:
        targets = _targets(target, self.stop)
        journal, source = _journal(self.luna_dir, file), _source(file)
        is_table = not file.name.startswith("subset")
        fresh = unpack(target, targets, self.luna_dir, journal, source, edits_stay=is_table, stop=self.stop)
        self.say(f"{file.name}: {len(fresh)} of {len(targets)} files unpacked, the others were there")
        written = read_journal(journal, source)
        notes = tuple(
            f"{self.luna_dir / path} is not the published one and stays; delete it to get that"
            for path, member in targets.items()
            if written and written.written[path].crc32 != member.crc32
        )
        return _Brought(fetched=fetched, unpacked=len(fresh), notes=notes)


def _targets(archive: Path, stop: threading.Event) -> dict[str, Member]:
    """Where an archive's members go, relative to the LUNA16 folder."""
    name = archive.name
    if name == LIDC_XML and not zipfile.is_zipfile(archive):  # no checksum says so, and a page with 200 is one too
        raise ArchiveError(archive, "not a zip file, or cut off", "check lidc_xml_url in the settings")
    if name in (ANNOTATIONS, LIDC_XML):
        return {name: plain_member(archive, stop)}
    members = read_members(archive)
    if name in PACKED_TABLES:
        return {table: _table(archive, members, table) for table in PACKED_TABLES[name]}
    targets: dict[str, Member] = {}
    for member in members:
        base = PurePosixPath(member.name).name
        # A series_uid becomes file names all over: letters, digits, dots, dashes. Hidden names are no scans.
        if not base.endswith(SCAN_SUFFIXES) or not re.fullmatch(r"[A-Za-z0-9_\-][A-Za-z0-9_.\-]*", base):
            continue
        path = f"{archive.stem}/{base}"
        if path in targets:
            raise ArchiveError(archive, f"{base} is in it twice", "do not unpack it")
        targets[path] = member
    if not any(path.endswith(".mhd") for path in targets):
        raise ArchiveError(archive, "it holds no scan (.mhd)", "check the record ids in the settings")
    return targets


def _table(archive: Path, members: Iterable[Member], table: str) -> Member:
    """The member with a table's name, in whatever folder."""
    found = [member for member in members if PurePosixPath(member.name).name == table]
    if not found:
        raise ArchiveError(archive, f"it holds no {table}", "check the record ids in the settings")
    if len({(member.size_bytes, member.crc32) for member in found}) > 1:
        raise ArchiveError(archive, f"it holds several {table}, which differ", "unpack the right one by hand")
    return found[0]


def _run_all(
    bring: Callable[[RemoteFile], _Brought], wanted: Iterable[RemoteFile], parallel: int, stop: threading.Event
) -> dict[str, _Brought]:
    """Bring files on a few threads; the first failure ends the others, whose work is not lost."""
    with ThreadPoolExecutor(parallel, thread_name_prefix="download") as pool:
        names = {pool.submit(bring, file): file.name for file in wanted}
        try:
            return {names[finished]: finished.result() for finished in as_completed(names)}
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _published(
    client: httpx.Client, settings: DownloadSettings, names: Iterable[str], say: Callable[[str], None] | None
) -> dict[str, RemoteFile]:
    """The wanted files as the records have them."""
    files: dict[str, RemoteFile] = {}
    for record in settings.records:
        if set(names) <= files.keys() | {LIDC_XML}:
            break
        files = {**read_record(client, settings, record, say=say), **files}
    if settings.lidc_xml_url:
        files[LIDC_XML] = RemoteFile(name=LIDC_XML, url=settings.lidc_xml_url, size_bytes=None, md5=None)
    missing = [name for name in names if name not in files]
    if missing:
        raise DownloadError(
            settings.zenodo_url,
            f"records {', '.join(settings.records)} have no {', '.join(missing)}",
            "check the record ids in the settings",
        )
    return files


def _remembered(folder: Path, settings: DownloadSettings) -> dict[str, RemoteFile]:
    """The files of the same records, as they were when last asked for; empty when nobody asked yet."""
    try:
        content = json.loads((folder / "records.json").read_text(encoding="utf-8"))
        if content["asked"] != _asked(settings):
            return {}
        files = {name: RemoteFile(**file) for name, file in content["files"].items()}
        # Whoever asks for the XML at another address does not mean what was fetched from this one.
        return {n: file for n, file in files.items() if n != LIDC_XML or file.url == settings.lidc_xml_url}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _remember(folder: Path, settings: DownloadSettings, files: Mapping[str, RemoteFile]) -> None:
    known = {**_remembered(folder, settings), **files}
    content = {"asked": _asked(settings), "files": {name: asdict(file) for name, file in known.items()}}
    write_text_atomic(folder / "records.json", json.dumps(content, indent=1) + "\n")


def _asked(settings: DownloadSettings) -> list[str | None]:
    return [settings.zenodo_url, *settings.records]


def _is_finished(luna_dir: Path, file: RemoteFile, stop: threading.Event | None = None) -> bool:
    is_table = not file.name.startswith("subset")
    return is_unpacked(luna_dir, _journal(luna_dir, file), _source(file), edits_stay=is_table, stop=stop)


def _leftover_is_wanted(target: Path, settings: DownloadSettings) -> bool:
    """Whether an archive that was unpacked lies there although it should not."""
    return settings.keep_archives or not target.exists()


def _journal(luna_dir: Path, file: RemoteFile) -> Path:
    return luna_dir / ARCHIVES_FOLDER / f"{file.name}.unpacked.json"


def _source(file: RemoteFile) -> Source:
    # A file without a checksum is known by its address: another address, another file.
    return Source(name=file.name, size_bytes=file.size_bytes or 0, md5=file.md5 or file.url)


def _unpacked_bytes(target: Path, file: RemoteFile) -> int:
    """What a file unpacks to: at most what its members declare where it is there, else by its kind."""
    size_bytes = file.size_bytes or 0
    if file.name.endswith(".zip") and file.name != LIDC_XML and target.exists() and target.stat().st_size == size_bytes:
        try:
            return sum(member.size_bytes for member in read_members(target))
        except ArchiveError:
            pass  # it will be told of when it is unpacked
    return round(size_bytes * _factor(file.name))


def _factor(name: str) -> float:
    if name in (ANNOTATIONS, LIDC_XML):
        return 1.0
    return TABLES_FACTOR if name in PACKED_TABLES else SCANS_FACTOR


def _gigabytes(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e8 else f"{size_bytes / 1e6:.1f} MB"


def _silent(_: str) -> None:
    """Where nobody listens."""
