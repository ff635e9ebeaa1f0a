"""A job that somebody else put into the folder runs nothing of theirs."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lungml.devices import Hardware
from lungml.errors import TrainingError
from lungml.job import JOB, TrainingJob, run_job, write_job
from lungml.recipes import by_name


class Planted:
    """Unpickling it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def job() -> TrainingJob:
    return TrainingJob(
        stage="segmentation", settings=by_name("demo").segmentation, scans=(), seed=0, hardware=Hardware()
    )


def test_the_trap_would_work(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Planted(tmp_path / "mark")))
    assert (tmp_path / "mark").is_dir()


@pytest.mark.parametrize("name", [JOB, "job.pickle"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_planted_pickle_is_refused_and_does_nothing(tmp_path: Path, name: str, protocol: int) -> None:
    mark = tmp_path / "mark"
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / name).write_bytes(pickle.dumps(Planted(mark), protocol=protocol))
    with pytest.raises((TrainingError, FileNotFoundError)):
        run_job(folder, lambda *_, **__: None)
    assert not mark.exists()


def test_the_process_itself_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (tmp_path / JOB).write_bytes(pickle.dumps(Planted(mark)))
    # It lives no longer than its standard input, which `run` would close at once.
    with subprocess.Popen(
        [sys.executable, "-m", "lungml.job", str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        said, code = child.stdout.read(), child.wait()
    event = json.loads(said.splitlines()[-1])
    assert (code, event["event"], event["kind"]) == (1, "error", "TrainingError")
    assert "run the training again" in event["text"]
    assert not mark.exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("settings", {"record": "Popen", "args": ["id"]}),
        ("scans", [{"record": "PreparedScan"}]),
        ("hardware", {"record": "Hardware", "device": "cpu", "count": 0, "precision": "fp32"}),
        ("seed", "0; id"),
    ],
)
def test_a_job_that_was_changed_into_something_else_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    write_job(tmp_path, job())
    held = json.loads((tmp_path / JOB).read_text())
    (tmp_path / JOB).write_text(json.dumps({**held, field: value}))
    with pytest.raises(TrainingError, match=rf"{JOB}: not a TrainingJob: .*run the training again"):
        run_job(tmp_path, lambda *_, **__: None)
