"""MLflow goes away and comes back: a server of its own on a free port is killed with SIGKILL and started again."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from torch import nn

from lungml.errors import LunaError
from lungml.home import Home
from tasks import registry, tracking
from tasks.outbox import FRESH_S
from tasks.reachable import TrackingDown, answers
from tasks.spool import send_run, spool_file

pytestmark = pytest.mark.slow

ARCH = {"stage": "segmentation", "config": {"width": 1}}
EXAMPLE = np.zeros((2, 1, 4, 4), dtype=np.float32)


class Server:
    """`mlflow server` on a loopback port, which keeps the files of runs too."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.url = folder, f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        own = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        foreign = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
        environment = {name: value for name, value in os.environ.items() if name not in foreign} | own
        mlflow = str(Path(sys.executable).with_name("mlflow"))
        where = ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        files = ["--artifacts-destination", str(self.folder / "files")]
        address = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        with (self.folder / "server.log").open("ab") as said:
            self.process = subprocess.Popen(
                [mlflow, "server", *where, *files, *address],
                env=environment,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        until = time.monotonic() + 120
        while not answers(self.url):
            assert time.monotonic() < until, (self.folder / "server.log").read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(database, folder / "server.db")
    server = Server(folder)
    yield server
    server.kill()


@pytest.fixture
def server(machine: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server, running; its address is in the environment."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", machine.url)
    monkeypatch.setenv("LUNA_MLFLOW_PATIENCE_S", "120")
    if machine.process is None:
        machine.start()
    return machine


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "artifacts")


@pytest.fixture
def client(server: Server) -> MlflowClient:
    return MlflowClient(tracking_uri=server.url)


def back_after(server: Server, seconds: float) -> threading.Thread:
    def start() -> None:
        time.sleep(seconds)
        server.start()

    thread = threading.Thread(target=start)
    thread.start()
    return thread


def quickly(do: Callable[[], None]) -> None:
    began = time.monotonic()
    do()
    assert time.monotonic() - began < 10.0


def lines_of(caplog: pytest.LogCaptureFixture, pattern: str) -> list[str]:
    said = [record.getMessage() for record in caplog.records if record.name.startswith("tasks.")]
    return [line for line in said if re.search(pattern, line)]


def model_of(value: float) -> nn.Module:
    model = nn.Conv2d(1, 1, 1)
    nn.init.constant_(model.weight, value)
    nn.init.zeros_(model.bias)
    return model


def test_a_run_waits_for_a_server_that_is_not_there_yet(
    server: Server, home: Home, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    server.kill()
    starting = back_after(server, 4.0)
    with tracking.open_run(home, "segmentation", name="early", sample_every_s=None) as run:
        run.log_metrics({"x": 1.0})
    starting.join()
    assert client.get_run(run.run_id).info.status == "FINISHED"
    (said,) = lines_of(caplog, "no MLflow answers")
    assert f"at {server.url} " in said
    assert "waiting up to 2 min" in said
    assert len(lines_of(caplog, "MLflow answers again")) == 1


def test_patience_ends_with_one_line(server: Server, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    server.kill()
    monkeypatch.setenv("LUNA_MLFLOW_PATIENCE_S", "2")
    began = time.monotonic()
    with (
        pytest.raises(TrackingDown, match=rf"^{server.url}: MLflow did not answer for 2 s .*start it") as caught,
        tracking.open_run(home, "segmentation", name="x"),
    ):
        pass
    assert 2.0 <= time.monotonic() - began < 20.0
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ConnectionError)
    assert not isinstance(caught.value, LunaError)  # it passes: a task's second try may do


def test_nothing_is_lost_in_the_middle(
    server: Server, home: Home, client: MlflowClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    (drawn / "roc.png").write_bytes(b"1")
    with tracking.open_run(home, "segmentation", name="x", sample_every_s=None) as run:
        run.log_epoch({"train/loss": 5.0}, 1)
        server.kill()
        time.sleep(FRESH_S + 1)  # an answer counts as fresh no longer
        for epoch in (2, 3, 4):
            quickly(lambda epoch=epoch: run.log_epoch({"train/loss": 5.0 - epoch, "val/auc": 0.5}, epoch))  # type: ignore[misc]
        quickly(lambda: run.log_text("a text", "said/text.txt"))
        quickly(lambda: run.log_tag("luna.note", "first"))
        quickly(lambda: run.log_tag("luna.note", "second"))
        quickly(lambda: run.log_figures(drawn))
        quickly(lambda: run.log_datasets("scans", {"train": "d" * 64}, sizes={"train": {"scans": 3}}))
        shutil.rmtree(drawn)  # what waits is a copy
        assert spool_file(home, run.run_id).exists()
        server.start()
        assert run.logged_epochs() == {1, 2, 3, 4}
        time.sleep(FRESH_S + 1)
        run.log_epoch({"train/loss": 0.5}, 5)
        assert not spool_file(home, run.run_id).exists()
    kept = client.get_run(run.run_id)
    assert kept.info.status == "FINISHED"
    history = client.get_metric_history(run.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(1, 5.0), (2, 3.0), (3, 2.0), (4, 1.0), (5, 0.5)]
    assert kept.data.tags["luna.note"] == "second"
    assert Path(client.download_artifacts(run.run_id, "said/text.txt", str(tmp_path))).read_text() == "a text"
    assert Path(client.download_artifacts(run.run_id, "figures/roc.png", str(tmp_path))).read_bytes() == b"1"
    assert [data.dataset.name for data in kept.inputs.dataset_inputs] == ["scans-train"]
    assert len(lines_of(caplog, "is away")) == 1
    assert len(lines_of(caplog, "that waited are done with")) == 1
    assert not [path for path in home.spool.rglob("*") if path.is_file()]


def test_a_run_that_ends_meanwhile_is_finished_by_the_next(server: Server, home: Home, client: MlflowClient) -> None:
    with tracking.open_run(home, "segmentation", name="x", sample_every_s=None) as run:
        server.kill()
        run.log_epoch({"train/loss": 1.0}, 1)
    ended_ms = time.time() * 1000
    server.start()
    assert client.get_run(run.run_id).info.status == "RUNNING"
    with tracking.open_run(home, "malignancy", name="next", sample_every_s=None):
        pass
    kept = client.get_run(run.run_id)
    assert kept.info.status == "FINISHED"
    assert kept.info.end_time <= ended_ms  # when it ended, not when that was told
    assert kept.data.metrics == {"train/loss": 1.0}


def test_what_is_sent_twice_counts_once(server: Server, home: Home, client: MlflowClient, tmp_path: Path) -> None:
    with tracking.open_run(home, "segmentation", name="x", sample_every_s=None) as run:
        server.kill()
        for epoch in range(1, 6):
            run.log_epoch({"train/loss": 1.0 / epoch}, epoch)
        run.log_text("a", "a.txt")
    spool = spool_file(home, run.run_id)
    shutil.copy(spool, tmp_path / "copy")
    server.start()
    assert send_run(client, home, run.run_id)
    shutil.copy(tmp_path / "copy", spool)  # as a process that was killed before it removed it leaves it
    assert send_run(client, home, run.run_id)
    assert [m.step for m in client.get_metric_history(run.run_id, "train/loss")] == [1, 2, 3, 4, 5]
    assert client.get_run(run.run_id).info.status == "FINISHED"


def test_what_waits_of_a_deleted_run_is_kept_aside(
    server: Server, home: Home, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    with tracking.open_run(home, "segmentation", name="x", sample_every_s=None) as run:
        server.kill()
        run.log_epoch({"train/loss": 1.0}, 1)
    server.start()
    client.delete_run(run.run_id)
    with tracking.open_run(home, "segmentation", name="next", sample_every_s=None):
        pass
    (said,) = lines_of(caplog, "belongs to a run that was deleted")
    assert "2 records are kept in spool/aside" in said
    assert '"train/loss"' in (home.spool / "aside" / f"{run.run_id}.jsonl").read_text()
    assert not spool_file(home, run.run_id).exists()


def test_a_model_waits_and_is_kept_once(server: Server, home: Home, client: MlflowClient) -> None:
    with tracking.open_run(home, "segmentation", name="x", sample_every_s=None) as run:
        server.kill()
        starting = back_after(server, 4.0)
        uri = tracking.log_model(run, model_of(1.0), arch=ARCH, example=EXAMPLE, name="tiny", card="# Card\n")
        starting.join()
        # A process that died before it wrote the URI down logs the model again.
        assert tracking.log_model(run, model_of(1.0), arch=ARCH, example=EXAMPLE, name="tiny", card="# Card\n") == uri
    models = client.search_logged_models([run.experiment_id], f"source_run_id = '{run.run_id}'")
    assert [(m.model_id, str(m.status)) for m in models] == [(uri.removeprefix("models:/"), "READY")]
    assert [m.model_id for m in client.get_run(run.run_id).outputs.model_outputs] == [models[0].model_id]
    assert torch.equal(tracking.load_model(home, uri)[1]["weight"], torch.ones(1, 1, 1, 1))
    server.kill()
    starting = back_after(server, 4.0)
    assert tracking.model_exists(home, uri)  # a server that is away has not said that it is gone
    starting.join()
    server.kill()
    starting = back_after(server, 4.0)
    assert registry.register_version(tracking.client_of(home), f"luna-{run.run_id}", uri) == "1"
    starting.join()


def test_a_model_that_is_given_up_is_failed_and_logged_anew(
    server: Server, home: Home, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def gone(*_: object, **__: object) -> None:
        tried.append("")
        server.kill()

    monkeypatch.setenv("LUNA_MLFLOW_PATIENCE_S", "2")
    runs: list[tracking.Run] = []

    def give_up() -> None:
        with (
            pytest.MonkeyPatch.context() as patch,
            tracking.open_run(home, "segmentation", name="x", sample_every_s=None) as run,
        ):
            runs.append(run)
            patch.setattr("mlflow.pytorch.save_model", gone)
            tracking.log_model(run, model_of(2.0), arch=ARCH, example=EXAMPLE, name="tiny")

    with pytest.raises(TrackingDown):
        give_up()
    (run,) = runs
    monkeypatch.setenv("LUNA_MLFLOW_PATIENCE_S", "120")
    server.start()
    with tracking.open_run(home, "segmentation", name="x", run_id=run.run_id, sample_every_s=None) as again:
        uri = tracking.log_model(again, model_of(2.0), arch=ARCH, example=EXAMPLE, name="tiny")
    assert (tried, again.run_id) == ([""], run.run_id)
    models = client.search_logged_models([run.experiment_id], f"source_run_id = '{run.run_id}'")
    assert sorted(str(model.status) for model in models) == ["FAILED", "READY"]
    assert tracking.model_exists(home, uri)
    assert client.get_run(run.run_id).info.status == "FINISHED"


def test_the_server_is_asked_whether_it_is_there(server: Server) -> None:
    assert answers(server.url)
    assert httpx.get(server.url + "/health").text == "OK"
    server.kill()
    assert not answers(server.url)
