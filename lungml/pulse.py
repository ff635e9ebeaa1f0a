"""Is the main thread getting anywhere, or does it hang?

A validation over whole scans or the drawing of figures may take minutes in which a training has nothing to report. So
another thread looks at the main one's stack now and then, and says "alive" while it changes. A thread that reads from
a disk that does not answer, waits for a process that is gone or for a GPU that hangs stays where it is, and nothing is
said. A single call that takes long, such as one large array operation, looks the same: whoever listens must be patient
for longer than the longest of them. Looking changes no result.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOOK_S = 1.0
BEAT_S = 5.0  # between two beats at the least


@contextmanager
def pulse(beat: Callable[[], None], *, look_s: float = LOOK_S, beat_s: float = BEAT_S) -> Iterator[None]:
    """Call `beat` now and then, in another thread, while the block's main thread gets anywhere.

    Args:
        beat: what it raises ends the beating, and nothing else.
        look_s: seconds between two looks at the stack.
        beat_s: seconds between two beats; when the thread moved in between, there is one.
    """
    done = threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def watch() -> None:
        last, moved, waited_s = _place(main), False, 0.0
        while not done.wait(look_s):
            place, waited_s = _place(main), waited_s + look_s
            moved, last = moved or place != last, place
            if moved and waited_s >= beat_s:
                beat()
                moved, waited_s = False, 0.0

    watcher = threading.Thread(target=watch, daemon=True, name="pulse")
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join(look_s)


def _place(thread: int) -> tuple[tuple[int, int], ...]:
    """Where a thread is: each of its frames, and the instruction in it."""
    frame, found = sys._current_frames().get(thread), []
    while frame is not None:
        found.append((id(frame), frame.f_lasti))
        frame = frame.f_back
    return tuple(found)
