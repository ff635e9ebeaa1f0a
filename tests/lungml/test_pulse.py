"""A thread that hangs has no pulse, one that works has, also in the same loop for ever."""

from __future__ import annotations

import os
import threading
import time
from itertools import pairwise

from lungml.pulse import pulse


def beats_while(work: object, seconds: float) -> list[float]:
    beats: list[float] = []
    with pulse(lambda: beats.append(time.monotonic()), look_s=0.02, beat_s=0.1):
        work(time.monotonic() + seconds)  # type: ignore[operator]
    return beats


def test_work_has_a_pulse() -> None:
    def count(end: float) -> None:
        while time.monotonic() < end:
            sum(range(100))

    beats = beats_while(count, 1.5)
    assert len(beats) >= 3
    assert all(later - earlier >= 0.09 for earlier, later in pairwise(beats))


def test_a_read_that_never_ends_has_none() -> None:
    reader, writer = os.pipe()

    def hang(end: float) -> None:
        timer = threading.Timer(end - time.monotonic(), os.write, (writer, b"x"))
        timer.start()
        os.read(reader, 1)
        timer.join()

    beats = beats_while(hang, 1.5)
    os.close(reader)
    os.close(writer)
    # Getting into the read, and out of it, are moves; the second and more between them are none.
    assert len(beats) <= 2


def test_another_thread_at_work_is_no_pulse() -> None:
    done = threading.Event()

    def spin() -> None:
        while not done.is_set():
            sum(range(100))

    other = threading.Thread(target=spin)
    other.start()
    lock = threading.Lock()
    lock.acquire()
    beats: list[float] = []
    with pulse(lambda: beats.append(time.monotonic()), look_s=0.02, beat_s=0.1):
        lock.acquire(timeout=1.5)  # one call, as a wait for a process that is gone is
        count = len(beats)
    done.set()
    other.join()
    assert count <= 1


def test_it_ends_with_its_block() -> None:
    beats_while(lambda end: time.sleep(0.01), 0)
    assert "pulse" not in {thread.name for thread in threading.enumerate()}
