"""A run of a process that is gone is ended; one of a living process, or of another machine, is not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from lungml.files import this_machine
from lungml.home import Home
from tasks import tracking
from tasks.orphans import OPENED_BY_TAG, end_orphans, this_process

KILLED = """
import os, signal, sys
from pathlib import Path
from lungml.home import Home
from tasks import tracking
with tracking.open_run(Home(Path(sys.argv[1])), "end-to-end", name="luna-1", sample_every_s=None):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def client(tmp_path: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")


def test_only_what_a_process_of_this_machine_left_is_ended(client: MlflowClient) -> None:
    experiment = client.create_experiment("x")
    pid, began = os.getpid(), round(psutil.Process().create_time())
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    opened_by = {
        "ours": this_process(),
        "of a process that ended": f"{this_machine()}-{ended.pid}-{began}",
        "of an earlier process of our number": f"{this_machine()}-{pid}-{began - 1000}",
        "of another machine": f"{'0' * 6}-{ended.pid}-{began}",
        "of somebody else": "",
        "of a liar": f"{this_machine()}-x-{began}",
    }
    runs = {
        name: client.create_run(experiment, run_name=name, tags={OPENED_BY_TAG: who}).info.run_id
        for name, who in opened_by.items()
    }
    ended_runs = end_orphans(client, experiment)
    gone = ["of a process that ended", "of an earlier process of our number"]
    assert sorted(ended_runs) == sorted(runs[name] for name in gone)
    for name, run_id in runs.items():
        assert client.get_run(run_id).info.status == ("KILLED" if name in gone else "RUNNING"), name
    assert end_orphans(client, experiment) == []


def test_the_next_run_ends_that_of_a_killed_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = Home(tmp_path)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, cwd=Path(__file__).parents[2])
    assert killed.returncode == -9
    client = tracking.client_of(home)
    (left,) = client.search_runs([tracking.experiment_id_of(home, "end-to-end")])
    assert left.info.status == "RUNNING"
    with tracking.open_run(home, "end-to-end", name="luna-2", sample_every_s=None) as run:
        assert client.get_run(left.info.run_id).info.status == "KILLED"
        assert client.get_run(run.run_id).info.status == "RUNNING"
    # A training that was killed goes on in its run, which is ours then.
    with tracking.open_run(home, "end-to-end", name="luna-1", run_id=left.info.run_id, sample_every_s=None):
        assert client.get_run(left.info.run_id).data.tags[OPENED_BY_TAG] == this_process()
        assert end_orphans(client, left.info.experiment_id) == []


def test_a_run_that_goes_on_is_ours_at_once(
    tmp_path: Path, new_home: Callable[[Path], Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = new_home(tmp_path)
    client = tracking.client_of(home)
    with tracking.open_run(home, "segmentation", name="x", sample_every_s=None) as run:
        pass
    client.set_tag(run.run_id, OPENED_BY_TAG, f"{this_machine()}-{2**22 + 1}-1")  # no process has that number
    monkeypatch.setattr("tasks.outbox.answers", lambda _: False)  # what the run logs waits, its tags too
    with tracking.open_run(home, "segmentation", name="x", sample_every_s=None, run_id=run.run_id):
        assert end_orphans(client, run.experiment_id) == []
        assert client.get_run(run.run_id).info.status == "RUNNING"
