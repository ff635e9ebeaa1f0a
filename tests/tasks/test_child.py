"""Trainings in processes of their own: toy ones, which a module put in the place of `lungml.job` plays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from lungml.checkpoint import CheckpointError
from lungml.errors import TrainingError
from tasks import child
from tasks.child import ChildDied, TrainingStopped, children_ended, run_child

Play = Callable[[str], None]


@pytest.fixture(autouse=True)
def nothing_was_ended() -> None:
    """What ended the flow of another test is over."""
    child._stopping.clear()


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Let the child be a script."""
    popen = subprocess.Popen

    def put(script: str) -> None:
        file = tmp_path / "script.py"
        file.write_text(f"import json, os, signal, sys, time\nfolder = sys.argv[1]\n{script}")

        def start(command: list[str], **options: Any) -> subprocess.Popen[str]:
            return popen([sys.executable, str(file), command[-1]], **options)

        monkeypatch.setattr(child.subprocess, "Popen", start)

    monkeypatch.setattr(child, "GRACE_S", 0.5)
    return put


def test_events_come_in_order_and_talk_is_left_out(play: Play, tmp_path: Path) -> None:
    play('print("some library talks"); print(json.dumps({"event": "epoch", "epoch": 1})); print("{broken"); '
         'print(json.dumps({"event": "epoch", "epoch": 2}))')  # fmt: skip
    events: list[Any] = []
    run_child(tmp_path, events.append)
    assert [event["epoch"] for event in events] == [1, 2]


@pytest.mark.parametrize(
    ("line", "kind", "said"),
    [
        ('{"kind": "TrainingError", "text": "the loss is nan"}', TrainingError, "the loss is nan"),
        ('{"kind": "CheckpointError", "text": "of another"}', CheckpointError, "of another"),
        ('{"kind": "StoreError", "text": "crops gone"}', ValueError, "crops gone"),
        ('{"kind": "OSError", "errno": 28, "text": "No space left", "file": "/x/last.pt"}', OSError, "No space left"),
    ],
)  # fmt: skip
def test_the_childs_error_is_ours(play: Play, tmp_path: Path, line: str, kind: type[Exception], said: str) -> None:
    play(f"print(json.dumps({{'event': 'error', **json.loads({line!r})}})); sys.exit(1)")
    with pytest.raises(kind, match=said) as caught:
        run_child(tmp_path, lambda event: None)
    if isinstance(caught.value, OSError):
        assert caught.value.filename == "/x/last.pt"


def test_a_child_that_is_killed_may_be_tried_again(play: Play, tmp_path: Path) -> None:
    play("print('last words', flush=True); os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(ChildDied, match="ended with SIGKILL; last words"):
        run_child(tmp_path, lambda event: None)
    play("sys.exit(3)")
    with pytest.raises(ChildDied, match="exit status 3"):
        run_child(tmp_path, lambda event: None)


def test_the_time_limit_ends_it(play: Play, tmp_path: Path) -> None:
    play("open(folder + '/pid', 'w').write(str(os.getpid())); time.sleep(60)")
    started = time.monotonic()
    with pytest.raises(TrainingError, match=r"took more than .* h and was ended; its checkpoint stays"):
        run_child(tmp_path, lambda event: None, time_limit_s=4)
    assert time.monotonic() - started < 40
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_a_child_that_is_stopped_dead_is_ended_and_may_be_tried_again(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGSTOP: it lives and neither works nor hears SIGTERM, as one that waits for a disk for ever."""
    play(
        "open(folder + '/pid', 'w').write(str(os.getpid()))\n"
        "print(json.dumps({'event': 'epoch'}), flush=True); os.kill(os.getpid(), signal.SIGSTOP)"
    )
    monkeypatch.setenv("LUNA_STALL_S", "4")
    started, events = time.monotonic(), []
    with pytest.raises(ChildDied, match=r"got nowhere for .* min and was ended; another try goes on from its last"):
        run_child(tmp_path, events.append)
    assert 4 <= time.monotonic() - started < 40
    assert events == [{"event": "epoch"}]
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_a_word_now_and_then_is_enough(play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play("for _ in range(15): time.sleep(0.4); print(json.dumps({'event': 'alive'}), flush=True)")
    monkeypatch.setenv("LUNA_STALL_S", "5")
    events: list[Any] = []
    run_child(tmp_path, events.append)
    assert len(events) == 15


def test_a_listener_that_takes_its_time_is_no_stall(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play("print(json.dumps({'event': 'epoch'}), flush=True); time.sleep(4.5)")
    monkeypatch.setenv("LUNA_STALL_S", "4")
    run_child(tmp_path, lambda event: time.sleep(4.2))


@pytest.mark.parametrize("said", ["soon", "0", "-5", "nan"])
def test_a_limit_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("LUNA_STALL_S", said)
    with pytest.raises(TrainingError, match=f"LUNA_STALL_S is '{said}'; give the seconds"):
        run_child(tmp_path, lambda event: None)


def test_what_is_given_joins_the_childs_environment(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUNA_OURS", "kept")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    play("print(json.dumps({'event': 'epoch', 'it': [os.environ[n] for n in ('LUNA_OURS', 'CUDA_VISIBLE_DEVICES')]}))")
    events: list[Any] = []
    run_child(tmp_path, events.append, environment={"CUDA_VISIBLE_DEVICES": "GPU-b"})
    assert events[0]["it"] == ["kept", "GPU-b"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


def test_an_error_while_listening_ends_it(play: Play, tmp_path: Path) -> None:
    play(
        "open(folder + '/pid', 'w').write(str(os.getpid()))\n"
        "print(json.dumps({'event': 'epoch'}), flush=True); time.sleep(60)"
    )

    def fail(event: Any) -> None:
        raise RuntimeError("MLflow is down")

    with pytest.raises(RuntimeError, match="MLflow is down"):
        run_child(tmp_path, fail)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_what_ends_the_flow_ends_its_trainings(play: Play, tmp_path: Path) -> None:
    """One that does not hear SIGTERM, and the process that it started, too."""
    play(
        "import subprocess; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(json.dumps({'event': 'epoch', 'pids': [os.getpid(), other.pid]}), flush=True); time.sleep(60)"
    )
    pids: list[int] = []
    heard, raised = threading.Event(), []

    def listen(event: Any) -> None:
        pids.extend(event["pids"])
        heard.set()

    def train() -> None:
        try:
            run_child(tmp_path, listen)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=train)

    def flow() -> None:
        with children_ended():
            thread.start()
            assert heard.wait(30)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        flow()
    thread.join(60)
    assert [type(error) for error in raised] == [TrainingStopped]
    deadline = time.monotonic() + 60  # the second is buried by whoever inherits it
    while any(_runs(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_runs(pid) for pid in pids)


def test_a_dead_child_is_not_waited_for_though_its_pipe_is_held(play: Play, tmp_path: Path) -> None:
    """Of several processes the first may die while another waits for it."""
    play(
        "import subprocess\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(90)'])\n"
        "print(json.dumps({'event': 'error', 'kind': 'OSError', 'errno': 28, 'text': 'No space left', 'file': 'x'}),"
        " flush=True); sys.exit(1)"
    )
    started = time.monotonic()
    with pytest.raises(OSError, match="No space left"):
        run_child(tmp_path, lambda event: None)
    assert time.monotonic() - started < 45


def test_bytes_that_are_no_text_are_talk(play: Play, tmp_path: Path) -> None:
    play("sys.stdout.buffer.write(b'\\xff\\xfe\\n'); sys.stdout.flush(); print(json.dumps({'event': 'epoch'}))")
    events: list[Any] = []
    run_child(tmp_path, events.append)
    assert events == [{"event": "epoch"}]


def test_a_flow_that_was_ended_starts_no_training(play: Play, tmp_path: Path) -> None:
    play("time.sleep(60)")
    started = time.monotonic()

    def flow() -> None:
        with children_ended():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        flow()
    with pytest.raises(TrainingStopped):
        run_child(tmp_path, lambda event: None)  # in a task that had not come to it yet
    with pytest.raises(TrainingStopped), child.one_at_a_time(tmp_path / "model"):
        pass
    assert time.monotonic() - started < 45
    with children_ended(), child.one_at_a_time(tmp_path / "model"):  # the next flow of this process is free
        pass


def test_a_training_never_outlives_who_started_it(tmp_path: Path) -> None:
    """kill -9 of the parent: nobody is left to tell the child, but its standard input ends."""
    parent = (
        "import subprocess, sys, time\n"
        "code = 'import os; from lungml.job import _end_with_standard_input as e; e(); print(os.getpid(), flush=True);"
        " import time; time.sleep(100)'\n"
        "p = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, start_new_session=True)\n"
        "time.sleep(100)"
    )
    started = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    pid = int(started.stdout.readline())
    assert _runs(pid)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    deadline = time.monotonic() + 60
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
