"""How does a training run in a process of its own, and end with whoever wanted it?"""

from __future__ import annotations

import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lungml.checkpoint import CheckpointError
from lungml.errors import LunaError, TrainingError
from lungml.files import try_lock

STALL_S = 1800.0  # a training that gets anywhere says so every few seconds, see `lungml.pulse`
START_S = 300.0  # a child is given this long, at the least, for its first word: it reads a lot of code
GRACE_S = 10.0  # between asking a child to end and making it
POLL_S = 0.5
TALK_LINES = 20  # of what a child said before it died, kept for the error

_stopping = threading.Event()
_running: set[subprocess.Popen[str]] = set()


class ChildDied(RuntimeError):
    """A training process ended without a word; another try goes on from its last checkpoint."""


class TrainingStopped(BaseException):
    """Somebody ended the training; nothing is wrong with it."""


def stall_limit_s() -> float:
    """For how long a training may be silent: $LUNA_STALL_S in seconds, else half an hour.

    Raises:
        TrainingError: it is no positive number.
    """
    said = os.environ.get("LUNA_STALL_S") or str(STALL_S)
    try:
        limit = float(said)
    except ValueError:
        limit = math.nan
    if not limit > 0:
        raise TrainingError(f"LUNA_STALL_S is {said!r}; give the seconds that a training may be silent, such as 1800")
    return limit


def run_child(
    folder: Path,
    on_event: Callable[[Mapping[str, Any]], None],
    *,
    time_limit_s: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run the training job that lies in a folder to its end.

    Args:
        folder: see `lungml.job`.
        on_event: called with each event, in this thread.
        time_limit_s: the child is ended after it; its checkpoint stays.
        environment: what of the child's environment differs from ours.

    Raises:
        LunaError: what the child could not do and a person can mend.
        OSError: what the child could not write.
        ChildDied: it was killed, or crashed, or hung and was ended, see `stall_limit_s`.
        TrainingStopped: `end_children` was called.
    """
    stall_s = stall_limit_s()
    patience_s = max(stall_s, START_S)
    child = subprocess.Popen(
        [sys.executable, "-m", "lungml.job", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",  # of a library's talk; our own lines are ASCII
        env={**os.environ, **(environment or {})},
        start_new_session=True,  # Ctrl-C is for us to pass on; and its own children are ended with it
    )
    _running.add(child)
    if _stopping.is_set():  # between two trainings nobody could be told
        end_children()
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read_lines, args=(child, lines), daemon=True).start()
    started = heard = time.monotonic()
    failure: Mapping[str, Any] | None = None
    talk: list[str] = []
    try:
        while True:
            try:
                line = lines.get(timeout=POLL_S)
            except queue.Empty:
                if child.poll() is not None:  # dead, though another of its processes may still hold the pipe
                    break
                line = ""
                if time.monotonic() - heard > patience_s:
                    raise ChildDied(_stalled(folder, patience_s)) from None
            if line is None:
                break
            event = _event(line)
            if event is None:
                talk = [*talk, line.rstrip()][-TALK_LINES:] if line.strip() else talk
            elif event["event"] == "error":
                failure = failure or event  # the first says what happened, the others that it did
            else:
                on_event(event)
            if line:
                # After we have listened, which may take long where MLflow is slow.
                heard, patience_s = time.monotonic(), stall_s
            if time_limit_s is not None and time.monotonic() - started > time_limit_s:
                raise TrainingError(
                    f"{folder}: the training took more than {time_limit_s / 3600:g} h and was ended; "
                    "its checkpoint stays: allow it more time and it goes on"
                )
        code = child.wait()
    finally:
        stopped = child not in _running
        _running.discard(child)
        _end(child)
    if stopped:
        raise TrainingStopped(f"{folder}: stopped; it goes on when it is wanted again")
    if failure is not None:
        raise _error(failure)
    if code:
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        raise ChildDied(
            f"{folder}: the training process ended with {how}; {' | '.join(talk[-5:]) or 'it said nothing'}"
        )


@contextmanager
def children_ended() -> Iterator[None]:
    """Whatever ends the block from outside (Ctrl-C, a cancelled flow run) ends the trainings this process runs."""
    _stopping.clear()
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception):
            _stopping.set()
            end_children()
        raise


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Hold the lock of `path` as `files.locked` does, but stop waiting for it when the flow is ended."""
    while not _stopping.is_set():
        with try_lock(path) as ours:
            if ours:
                yield
                return
        time.sleep(POLL_S)
    raise TrainingStopped(f"{path}: stopped while another run trained the same")


def check_stopping(doing: str) -> None:
    """Go on only while nobody has ended the flow.

    Raises:
        TrainingStopped: somebody has, `doing` this.
    """
    if _stopping.is_set():
        raise TrainingStopped(f"stopped {doing}")


def pause(seconds: float) -> None:
    """Sleep, but not on when the flow is ended.

    Raises:
        TrainingStopped: it is.
    """
    if _stopping.wait(seconds):
        raise TrainingStopped("stopped while it waited")


def end_children() -> None:
    """End every training that this process runs; their callers get `TrainingStopped`."""
    for child in list(_running):
        _running.discard(child)
        _end(child)


def _stalled(folder: Path, stall_s: float) -> str:
    return (
        f"{folder}: the training got nowhere for {stall_s / 60:g} min and was ended; another try goes on from its last "
        "checkpoint (LUNA_STALL_S allows more)"
    )


def _read_lines(child: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert child.stdout is not None
    try:
        for line in child.stdout:
            lines.put(line)
    finally:
        lines.put(None)


def _event(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _end(child: subprocess.Popen[str]) -> None:
    """End a child and its own children; does nothing to one that has ended."""
    if child.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if child.stdin:
        with suppress(OSError):
            child.stdin.close()


def _error(failure: Mapping[str, Any]) -> Exception:
    """The child's error as this process knows it."""
    if failure["kind"] == "OSError":
        return OSError(failure["errno"], failure["text"], failure["file"])
    kinds: dict[str, type[LunaError]] = {"CheckpointError": CheckpointError, "TrainingError": TrainingError}
    return kinds.get(failure["kind"], LunaError)(failure["text"])
