"""A program is watched, killed, paused and found by its mark."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from tests.drills.programs import MARK, DrillError, Program, clean_environment, end_all, living, wait_until

SLEEP = "import time; print('here', flush=True); time.sleep(60)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '''{SLEEP}'''], start_new_session=True)"


@pytest.fixture
def mark(tmp_path: Path) -> str:
    return str(tmp_path)


def program(script: str, mark: str) -> Program:
    env = clean_environment(**{MARK: mark})
    return Program("it", [sys.executable, "-c", script], env, Path(mark), Path(mark) / "it.log")


def test_a_moment_is_waited_for_and_a_kill_is_a_kill(mark: str) -> None:
    one = program(SLEEP, mark)
    one.until(lambda: "here" in one.text, "there", 30)
    assert not one.ended
    one.kill()
    assert one.ended
    assert one.finish() == -9


def test_an_end_before_the_moment_is_told_with_its_last_words(mark: str) -> None:
    one = program("print('first'); print('no room'); raise SystemExit(3)", mark)
    with pytest.raises(DrillError, match="it ended before it was busy: no room"):
        one.until(lambda: False, "busy", 30)
    with pytest.raises(DrillError, match="it ended with status 3: no room"):
        one.succeed()


def test_a_moment_that_never_comes_is_told(mark: str) -> None:
    one = program(SLEEP, mark)
    with pytest.raises(DrillError, match="was not busy within 0 s"):
        one.until(lambda: False, "busy", 0.1)
    with pytest.raises(DrillError, match="did not end within 0 s"):
        one.finish(0.1)
    one.kill()


def test_all_of_a_mark_are_found_and_ended_whatever_their_session(mark: str) -> None:
    one, other = program(PARENT, mark), program(SLEEP, f"{mark} of another")
    try:
        one.until(lambda: len(living(mark)) == 2, "a parent", 30)
        end_all(mark)
        wait_until(lambda: not living(mark), "all gone", 10)
        assert not other.ended
    finally:
        end_all(f"{mark} of another")


def test_a_paused_program_stands_still(mark: str) -> None:
    one = program(SLEEP, mark)
    one.until(lambda: "here" in one.text, "there", 30)
    with one.paused():
        wait_until(lambda: psutil.Process(one.process.pid).status() == psutil.STATUS_STOPPED, "stopped", 5, 0.01)
    wait_until(lambda: psutil.Process(one.process.pid).status() != psutil.STATUS_STOPPED, "going on", 5, 0.01)
    one.kill()


def test_what_others_configured_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "LUNA_HOME", "KEPT"):
        monkeypatch.setenv(name, "x")
    env = clean_environment(LUNA_SCANS="y")
    assert [name for name, value in sorted(env.items()) if value in ("x", "y")] == ["KEPT", "LUNA_SCANS"]
