"""How does a drill start, stop, kill and find the processes of what it tests?"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

MARK = "LUNA_DRILLS"  # in the environment of every process of a drill, and of their children
POLL_S = 0.005  # some moments last hundredths of a second
PATIENCE_S = 900.0  # a minute's work on a quiet machine takes ten on a busy one
GONE_S = 30.0  # what outlives a kill ends by itself within it


class DrillError(AssertionError):
    """A drill did not go as it should; the message says what was seen instead."""


class CannotRun(Exception):
    """This machine does not allow what the drill needs; the message says what."""


class Program:
    """A process in a session of its own, its output in a file.

    Args:
        name: as the drill calls it.
        command: what to run.
        env: all of its environment.
        cwd: where it runs.
        log: file that its output goes to.
    """

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path) -> None:
        self.name, self.log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                command,
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        """What it has said so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def last_words(self) -> str:
        """Its last line that says anything, cut to a sentence's length."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip(" ─╯╰│")]
        return lines[-1][:300] if lines else "nothing"

    @property
    def ended(self) -> bool:
        """Whether it is gone."""
        return self.process.poll() is not None

    def until(self, moment: Callable[[], object], what: str, seconds: float = PATIENCE_S) -> None:
        """Wait for a moment of its life.

        Raises:
            DrillError: it ended before, or the moment did not come in time.
        """
        end = time.monotonic() + seconds
        while not moment():
            if self.ended:
                raise DrillError(f"{self.name} ended before it was {what}: {self.last_words}")
            if time.monotonic() > end:
                raise DrillError(f"{self.name} was not {what} within {seconds:.0f} s: {self.last_words}")
            time.sleep(POLL_S)

    def finish(self, seconds: float = PATIENCE_S) -> int:
        """Wait for its end; returns the exit status.

        Raises:
            DrillError: it did not end in time.
        """
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise DrillError(f"{self.name} did not end within {seconds:.0f} s: {self.last_words}") from None

    def succeed(self, seconds: float = PATIENCE_S) -> None:
        """Wait for its good end.

        Raises:
            DrillError: it failed, or did not end in time.
        """
        status = self.finish(seconds)
        if status:
            raise DrillError(f"{self.name} ended with status {status}: {self.last_words}")

    def kill(self) -> None:
        """`kill -9` of this process alone."""
        self.process.kill()
        self.process.wait()

    def kill_session(self) -> None:
        """`kill -9` of this process and all of its session."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let it and its children stand still in the block."""
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        try:
            yield
        finally:
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.resume()


def living(mark: str) -> list[psutil.Process]:
    """All processes that bear a mark in their environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                found.append(process)
    return found


def end_all(mark: str) -> None:
    """`kill -9` of every process that bears a mark, all at once: what a power cut does."""
    processes = living(mark)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGSTOP)  # so that none sees another go
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=GONE_S)


def wait_until(true: Callable[[], object], what: str, seconds: float, every_s: float = 0.2) -> float:
    """Wait for something to become true; returns the seconds it took.

    Raises:
        DrillError: it did not.
    """
    start = time.monotonic()
    while not true():
        if time.monotonic() - start > seconds:
            raise DrillError(f"not within {seconds:.0f} s: {what}")
        time.sleep(every_s)
    return time.monotonic() - start


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without anything that Prefect, MLflow or luna would read, and one thread a process."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "LUNA_"))}
    quiet = {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONUNBUFFERED": "1"}
    return {**kept, **quiet, "OMP_NUM_THREADS": "1", **more}


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    """Whether a server says yes."""
    try:
        return httpx.get(url, timeout=2.0).is_success
    except httpx.HTTPError:
        return False
