"""How do the programs that `luna up` starts begin, come back when they die, and end with it?"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import psutil

from lungml.errors import LunaError
from lungml.files import write_text_atomic
from lungml.home import Home

START_TIMEOUT_S = 180.0  # a busy two-core machine takes most of a minute
STOP_TIMEOUT_S = 15.0  # what is still there then is killed
POLL_S = 0.5
TEND_S = 15.0
MAX_DEATHS, DEATHS_WITHIN_S = 5, 600.0
MAX_PAUSE_S = 30.0
MARK = "LUNA_SERVICE"  # in the environment of a service and of whatever it starts, in whatever session

Command = Callable[[], Sequence[str]]


class UpError(LunaError):
    """The services cannot start or cannot be kept alive; the message is one line."""


class StopAskedError(Exception):
    """Somebody asked `luna up` to end."""


@dataclass
class Service:
    """A child, through all its lives.

    Attributes:
        name: as a person knows it.
        command: what comes after `python -m`; asked anew for each life.
        log: its stdout and stderr.
        process: leader of its own session, in this life.
        mark: that this life and all it starts carry in the environment.
        deaths: when it died, monotonic seconds.
        due: not to be started again before, monotonic seconds; None while it lives.
        may_start: what it needs is there; until then it is not started again.
    """

    name: str
    command: Command
    log: Path
    process: subprocess.Popen[bytes]
    mark: str
    deaths: list[float] = field(default_factory=list)
    due: float | None = None
    may_start: Callable[[], bool] = lambda: True

    @property
    def alive(self) -> bool:
        """Whether it runs now."""
        return self.process.poll() is None


class Services:
    """The children, under one roof: on leaving the block none of them, nor of what they started, is left.

    Inside the block Ctrl-C, SIGTERM and SIGHUP raise nothing at once; they are answered between two steps, so that no
    child can be started and forgotten.
    """

    def __init__(self, home: Home, project: Path, env: Mapping[str, str], say: Callable[[str], None] = print) -> None:
        self._home, self._project, self._env, self._say = home, project, dict(env), say
        self._services: list[Service] = []
        self._stopping = False
        self._handlers: dict[signal.Signals, Any] = {}
        self._book = _book(home)

    def __enter__(self) -> Services:
        def on_signal(_number: int, _frame: FrameType | None) -> None:
            self._stopping = True

        self._home.logs.mkdir(parents=True, exist_ok=True)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._handlers[number] = signal.signal(number, on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            stop(self._services)
            self._book.unlink(missing_ok=True)
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def __getitem__(self, name: str) -> Service:
        return next(service for service in self._services if service.name == name)

    def start(self, name: str, command: Command | Sequence[str], may_start: Callable[[], bool] = lambda: True) -> None:
        """Run `python -m command` in the background, and again whenever it dies while `watch` looks."""
        again = command if callable(command) else lambda: command
        log = self._home.logs / f"{name.lower().replace(' ', '-')}.log"
        log.write_bytes(b"")
        process, mark = self._spawn(again(), log)
        self._services.append(Service(name, again, log, process, mark, may_start=may_start))
        self._note()

    def stop(self, name: str) -> None:
        """End one service ahead of the others, if it was started."""
        stop([service for service in self._services if service.name == name])

    def run(self, name: str, command: Sequence[str]) -> None:
        """Run `python -m command` to its end.

        Raises:
            UpError: it failed.
        """
        log = self._home.logs / f"{name}.log"
        log.write_bytes(b"")
        process, mark = self._spawn(command, log)
        try:
            while (status := process.poll()) is None:
                self.check()
                time.sleep(POLL_S / 5)
        finally:
            stop([Service(name, lambda: command, log, process, mark)])
        if status != 0:
            raise UpError(f"`{shlex.join(command)}` failed{last_words(log)}; its output: {log}")

    def wait(self, name: str, ready: Callable[[], bool]) -> None:
        """Wait until a service is ready.

        Raises:
            UpError: it takes too long, or a service ends.
        """
        end = time.monotonic() + START_TIMEOUT_S
        while not ready():
            self.check()
            if time.monotonic() > end:
                raise UpError(f"the {name} did not start within {START_TIMEOUT_S:.0f} s; its output: {self[name].log}")
            time.sleep(POLL_S)
        self.check()

    def watch(self, tend: Callable[[], None], every_s: float = TEND_S) -> NoReturn:
        """Start again what dies, and tend to the rest every so many seconds, until somebody ends `luna up`.

        Raises:
            StopAskedError: somebody did.
            UpError: a service died too often.
        """
        next_time = 0.0
        while True:
            if self._stopping:
                raise StopAskedError
            for service in self._services:
                self._keep_alive(service)
            if time.monotonic() >= next_time:
                tend()
                next_time = time.monotonic() + every_s
            time.sleep(POLL_S)

    def check(self) -> None:
        """Go on starting only while nobody has asked for the end and every service lives.

        Raises:
            StopAskedError: somebody asked.
            UpError: a service ended.
        """
        if self._stopping:
            raise StopAskedError
        for service in self._services:
            if not service.alive:
                raise UpError(f"the {service.name} ended{_how(service)}; its output: {service.log}")

    def _keep_alive(self, service: Service) -> None:
        if service.alive:
            return
        now = time.monotonic()
        if service.due is None:  # it died just now
            service.deaths = [*(death for death in service.deaths if death > now - DEATHS_WITHIN_S), now]
            what = f"the {service.name} ended{_how(service)}"
            if len(service.deaths) >= MAX_DEATHS:
                minutes = DEATHS_WITHIN_S / 60
                raise UpError(
                    f"{what}, for the {len(service.deaths)}th time within {minutes:.0f} min; its output: {service.log}"
                )
            pause_s = min(2.0 ** (len(service.deaths) - 1), MAX_PAUSE_S)
            service.due = now + pause_s
            self._say(f"{what}: started again in {pause_s:.0f} s; its output: {service.log}")
            stop([service])  # what it started has nobody left to report to
        elif now >= service.due and service.may_start():
            service.process, service.mark = self._spawn(service.command(), service.log)
            service.due = None
            with suppress(OSError):  # a full disk; only one who finds `luna up` killed would look for it
                self._note()

    def _note(self) -> None:
        lives = []
        for service in self._services:
            with suppress(psutil.NoSuchProcess):
                started = psutil.Process(service.process.pid).create_time()
                lives.append([service.process.pid, started, service.mark])
        write_text_atomic(self._book, json.dumps(lives))

    def _spawn(self, command: Sequence[str], log: Path) -> tuple[subprocess.Popen[bytes], str]:
        mark = secrets.token_hex(8)
        with log.open("ab") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=self._project,
                env={**self._env, MARK: mark},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches `luna up` alone, which then stops them in order
            )
        return process, mark


def end_orphans(home: Home) -> None:
    """End what a killed `luna up` could not end itself."""
    book, left = _book(home), []
    for pid, started, mark in json.loads(book.read_text()) if book.exists() else []:
        family = _family(pid, mark)
        # Another program may have the number now.
        ours = all(process.pid != pid or process.create_time() == started for process in family)
        left += family if ours else _family(None, mark)
    _end(left)
    book.unlink(missing_ok=True)


def stop(services: Sequence[Service]) -> None:
    """End services and all they started: politely, the last first, and by force what is left after a while."""
    families = [process for service in services for process in _family(service.process.pid, service.mark)]
    for service in reversed(services):
        if service.alive:
            service.process.terminate()
            try:
                service.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                service.process.kill()
    _, left = psutil.wait_procs(families, timeout=1.0)
    _end(left)
    for service in services:
        service.process.wait()


def last_words(log: Path) -> str:
    """The last line of a log, after a colon; empty where there is none."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f": {lines[-1][:200]}" if lines else ""


def _book(home: Home) -> Path:
    """(pid, start time, mark) of each service."""
    return home.logs / "services.json"


def _how(service: Service) -> str:
    status = service.process.poll()
    if status is not None and status < 0:
        return f" ({signal.Signals(-status).name})"
    return f" (exit status {status}){last_words(service.log)}"


def _end(processes: Sequence[psutil.Process]) -> None:
    for act in (psutil.Process.terminate, psutil.Process.kill):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                act(process)
        _, processes = psutil.wait_procs(processes, timeout=STOP_TIMEOUT_S)


def _family(leader: int | None, mark: str) -> list[psutil.Process]:
    """A session's leader with its descendants, those of its session, and those of its mark, which have none of both.

    A flow run is a session of its own; when the worker is killed only the mark tells whose it was.
    """
    family = set()
    if leader is not None:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(leader)
            family = {process, *process.children(recursive=True)}
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == leader or process.environ().get(MARK) == mark:
                family.add(process)
    return list(family)
