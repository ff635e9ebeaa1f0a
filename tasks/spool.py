"""Where does what a run logs wait while MLflow is away, and how does it get there later?

A run's spool is `<home>/spool/<run_id>.jsonl`, one record a line, in the order in which they were logged; the files
that records speak of are in the folder `<run_id>` beside. Every record may be sent twice and counts once: MLflow knows
a metric's point by name, step, time and value, and all else is set, not added. So a process that dies while it sends
loses nothing. What cannot be sent for good is put into `<home>/spool/aside`, and said.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException

from lungml.files import naming, write_text_atomic
from lungml.home import Home
from tasks.connection import plain, shown_uri
from tasks.reachable import REFUSALS, first_line, is_away
from tasks.spooled import KINDS, Record, merged, send

log = logging.getLogger(__name__)

ASIDE = "aside"
RUN_FILE = re.compile(r"([0-9a-f]{32})\.jsonl")
FULL = "database or disk is full"  # as SQLite says it


def spool_file(home: Home, run_id: str) -> Path:
    """Where a run's records wait."""
    return home.spool / f"{run_id}.jsonl"


def waiting(home: Home, run_id: str) -> list[Record]:
    """The records of a run that wait for the MLflow in use."""
    path = spool_file(home, run_id)
    records = _read(path, run_id)[0] if path.exists() else []
    return [record for record in records if record.server == _server(home)]


def append(home: Home, run_id: str, record: Mapping[str, Any]) -> None:
    """Put a record at the end of a run's spool; it is on disk when this returns.

    Raises:
        OSError: it cannot be written; the error names the spool.
    """
    path = spool_file(home, run_id)
    line = json.dumps({"run": run_id, "server": _server(home), **record})
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _held(path) as handle:
            end = handle.seek(0, os.SEEK_END)
            if end:
                handle.seek(end - 1)
                line = line if handle.read(1) == b"\n" else "\n" + line  # behind the half line of one who died
            handle.write(line.encode() + b"\n")
            handle.flush()
            os.fsync(handle.fileno())


def send_spooled(home: Home, client: MlflowClient) -> None:
    """Send what earlier runs could not; one that another process sends at this moment is waited for.

    It ends where MLflow goes away again. Nothing here stops a run but a disk that cannot be written.
    """
    if not home.spool.is_dir():
        return
    for path in sorted(home.spool.iterdir()):
        if path.is_dir() or path.name.startswith("."):
            continue
        match = RUN_FILE.fullmatch(path.name)
        if match is None:
            _set_aside(home, path, "is no spool of ours")
        elif not send_run(plain(client), home, match[1]):
            return


def send_run(client: MlflowClient, home: Home, run_id: str) -> bool:
    """Send what waits of one run; False when MLflow went away before its end, and the rest still waits."""
    path = spool_file(home, run_id)
    if not path.exists():
        return True
    with _held(path):
        records, bad = _read(path, run_id)
        _keep_aside(home, run_id, bad, "cannot be read")
        elsewhere = [record for record in records if record.server != _server(home)]
        ours = [record for record in records if record.server == _server(home)]
        sent = 0
        for group in merged(ours):
            why = _send_group(client, home, run_id, group)
            if why is None:
                sent += len(group)
                continue
            if why:  # MLflow is there and the run is not
                _keep_aside(home, run_id, [record.line for record in ours[sent:]], why)
                _move_files(home, run_id)
                sent = len(ours)
                break
            _rewrite(path, [*elsewhere, *ours[sent:]])
            return False
        if sent:
            log.warning("MLflow answers: %d records of the run %s that waited are done with", sent, run_id)
        if elsewhere:
            log.info("the run %s has %d records for %s, which wait on", run_id, len(elsewhere), elsewhere[0].server)
            _rewrite(path, elsewhere)
            return True
        path.unlink()
        shutil.rmtree(home.spool / run_id, ignore_errors=True)
    return True


def _send_group(client: MlflowClient, home: Home, run_id: str, group: Sequence[Record]) -> str | None:
    """Send records that make one request: None when they are done with, "" when MLflow is away, else why none can."""
    record = group[0].content
    if len(group) > 1:
        record = {**record, "points": [point for one in group for point in one.points]}
    try:
        send(client, run_id, record, home.spool / run_id)
    except Exception as error:
        if may_pass(error) or FULL in str(error) or _of_the_disk(error):
            log.info("the run %s: what waits cannot be sent yet (%s)", run_id, first_line(error))
            return ""
        gone = _run_is_gone(client, run_id)
        if gone is None or gone:
            return gone or ""
        if len(group) > 1:  # which of them is it?
            for one in group:
                if _send_group(client, home, run_id, [one]) == "":
                    return ""
            return None
        _keep_aside(home, run_id, [group[0].line], f"is refused ({first_line(error)})")
    return None


def _of_the_disk(error: Exception) -> bool:
    """Whether the disk did not take what was to be sent; a file of ours that is gone does not come back."""
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError)


def _server(home: Home) -> str:
    """Which MLflow a record is for; a home that is moved takes its own with it."""
    return shown_uri(home).replace(str(home.root), "HOME")


def may_pass(error: Exception) -> bool:
    """Whether it is worth keeping what could not be sent; a password can be mended too."""
    return is_away(error) or getattr(error, "error_code", "") in REFUSALS


def _run_is_gone(client: MlflowClient, run_id: str) -> str | None:
    """What became of a run, empty when it is there; None when MLflow does not say."""
    try:
        stage = client.get_run(run_id).info.lifecycle_stage
    except MlflowException as error:
        return "belongs to a run that MLflow does not have" if error.error_code == "RESOURCE_DOES_NOT_EXIST" else None
    return "" if stage == LifecycleStage.ACTIVE else "belongs to a run that was deleted"


def _read(path: Path, run_id: str) -> tuple[list[Record], list[str]]:
    """A spool's records, and its lines that are none."""
    records, bad = [], []
    for line in path.read_bytes().split(b"\n"):
        text = line.decode("utf-8", errors="backslashreplace")
        if not text.strip():
            continue
        try:
            content = json.loads(text)
            ours = content["run"] == run_id and content["kind"] in KINDS and isinstance(content["server"], str)
        except (ValueError, TypeError, KeyError):
            ours = False
        if ours:
            records.append(Record(line=text, server=content["server"], content=content))
        else:
            bad.append(text)
    return records, bad


def _rewrite(path: Path, records: Sequence[Record]) -> None:
    write_text_atomic(path, "".join(f"{record.line}\n" for record in records))


def _keep_aside(home: Home, run_id: str, lines: Sequence[str], why: str) -> None:
    """Put lines of a spool where they do no harm and can be looked at."""
    if not lines:
        return
    kept = home.spool / ASIDE / f"{run_id}.jsonl"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with naming(kept), kept.open("a", encoding="utf-8") as handle:
        handle.writelines(f"{line}\n" for line in lines)
        handle.flush()
        os.fsync(handle.fileno())
    log.warning(
        "what waited for MLflow of the run %s %s: %d records are kept in %s/%s/%s",
        run_id,
        why,
        len(lines),
        home.spool.name,
        ASIDE,
        kept.name,
    )


def _move_files(home: Home, run_id: str) -> None:
    files = home.spool / run_id
    if files.is_dir():
        files.replace(_free_name(home.spool / ASIDE / run_id))


def _set_aside(home: Home, path: Path, why: str) -> None:
    kept = _free_name(home.spool / ASIDE / path.name)
    try:
        path.replace(kept)
    except FileNotFoundError:  # another process was faster
        return
    log.warning("%s/%s %s: kept as %s/%s", home.spool.name, path.name, why, ASIDE, kept.name)


def _free_name(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path if not path.exists() else path.with_name(f"{path.name}.{time.time_ns()}")


@contextmanager
def _held(path: Path) -> Iterator[IO[bytes]]:
    """A spool, made when there is none, that nobody else reads or writes meanwhile."""
    while True:
        with path.open("a+b") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            # Whoever held it before may have sent it all and removed it, or put another in its place.
            if _is_at(path, handle):
                yield handle
                return


def _is_at(path: Path, handle: IO[bytes]) -> bool:
    try:
        return os.fstat(handle.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
