"""Secrets are planted wherever luna looks, everything fails that can, and all that was left is searched for them."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow.exceptions import MlflowException
from torch import nn

from lungml.home import Home
from tasks import machine, spool, spooled, tracking
from tasks.reachable import TrackingDown, TrackingError

PLANTED = {
    "MLFLOW_TRACKING_TOKEN": "planted-mlflow-token",
    "PREFECT_API_KEY": "planted-prefect-key",
    "AWS_ACCESS_KEY_ID": "PLANTEDAWSKEYID00",
    "AWS_SECRET_ACCESS_KEY": "planted/aws+secret",
    "PREFECT_API_DATABASE_CONNECTION_URL": "postgresql+asyncpg://prefect:planted-db-word@db/prefect",
}
WORDS = [*list(PLANTED.values())[:-1], "planted-db-word", "planted-url-word", "planted%2Faws%2Bsecret"]
TALK = f"tried http://luna:planted-url-word@h:1/x and {' '.join(PLANTED.values())} planted%2Faws%2Bsecret"


@pytest.fixture
def home(tmp_path: Path, new_home: Callable[[Path], Home], monkeypatch: pytest.MonkeyPatch) -> Home:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # so that what is set on the way is taken back
        monkeypatch.delenv(name)
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LUNA_MLFLOW_PATIENCE_S", "0")
    return new_home(tmp_path)


@pytest.fixture(autouse=True)
def records() -> Iterator[None]:
    before = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(before)


@pytest.fixture(params=[401, 404, 500])
def rude(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that throws back whatever it was told; its address without its scheme."""

    class Rude(BaseHTTPRequestHandler):
        status = request.param

        def do_GET(self) -> None:
            healthy = self.path == "/health"
            self.send_response(200 if healthy else self.status)
            self.end_headers()
            self.wfile.write(b"OK" if healthy else f"no: {self.headers} {TALK}".encode())

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Rude)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def found_in(text: str) -> list[str]:
    return [word for word in WORDS if word in text]


def files_with_words(folder: Path) -> dict[str, list[str]]:
    found = {str(p): found_in(p.read_bytes().decode("utf-8", "replace")) for p in folder.rglob("*") if p.is_file()}
    return {name: words for name, words in found.items() if words}


def test_the_search_finds_what_is_planted(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(TALK)
    assert sorted(files_with_words(tmp_path)[str(tmp_path / "a")]) == sorted(WORDS)


class Fine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        return self.conv(slices)


class Odd(Fine):
    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(TALK)


def log_and_fail(home: Home) -> None:
    with tracking.open_run(home, "segmentation", name=TALK, params={"said": TALK}, tags={"said": TALK}) as run:
        run.log_text(TALK, "said.txt")
        run.log_tag("luna.warning", TALK)
        logging.getLogger("tasks.somewhere").warning(TALK)
        try:
            raise ValueError(TALK)
        except ValueError:
            logging.getLogger("elsewhere").exception("it failed: %s", TALK)
        arch = {"stage": "segmentation", "config": {"width": 1}}
        example = np.zeros((2, 1, 4, 4), np.float32)
        tracking.log_model(run, Fine(), arch=arch, example=example, name="fine", card=TALK)
        tracking.log_model(run, Odd(), arch=arch, example=example, name="odd", card=TALK)


def test_no_run_keeps_a_secret(home: Home, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RuntimeError):
        log_and_fail(home)
    assert len(list(home.mlruns.rglob("README.md"))) == 2
    assert files_with_words(home.root) == {}
    out, err = capfd.readouterr()
    assert found_in(out + err + caplog.text) == []
    assert "http://***@h:1/x" in caplog.text  # it was said, and without


def test_what_waits_holds_no_secret(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with tracking.open_run(home, "segmentation", name="x", sample_every_s=None) as run:
        monkeypatch.setattr("tasks.outbox.answers", lambda _: False)
        monkeypatch.setattr("tasks.outbox.FRESH_S", 0.0)
        run.log_text(TALK, "said.txt")
        run.log_settings({"said": TALK}, {"said": TALK})
    assert spool.spool_file(home, run.run_id).read_text().count("***") > 3
    assert files_with_words(home.root) == {}


@pytest.mark.parametrize("scheme", ["http", "postgresql", "mysql+pymysql"])
def test_a_server_that_is_away_is_named_without_its_password(
    scheme: str,
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    where = f"127.0.0.1:{closed_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://luna:planted-url-word@{where}/mlflow")
    monkeypatch.setenv("LUNA_MLFLOW_PATIENCE_S", "1")
    with pytest.raises(TrackingDown, match=where) as caught, tracking.open_run(home, "segmentation", name="x"):
        pass
    assert found_in(str(caught.value) + caplog.text + "".join(capfd.readouterr())) == []
    assert caught.value.__suppress_context__  # a traceback shows nothing that MLflow said
    assert f"no MLflow answers at {scheme}://" in caplog.text
    assert files_with_words(home.root) == {}


def test_a_server_that_refuses_gets_no_secret_into_the_message(
    home: Home,
    rude: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://luna:planted-url-word@{rude}")
    with (
        pytest.raises((TrackingError, TrackingDown, MlflowException), match=r"\S") as caught,
        tracking.open_run(home, "segmentation", name="x"),
    ):
        pass
    assert found_in(str(caught.value) + caplog.text + "".join(capfd.readouterr())) == []
    assert caught.value.__suppress_context__


def test_the_password_goes_where_mlflow_takes_it_from(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://luna:planted%2Furl@127.0.0.1:{closed_port()}/base")
    assert tracking.tracking_uri(home).endswith("/base")
    assert "@" not in tracking.tracking_uri(home)
    with pytest.raises(TrackingDown):
        tracking.client_of(home)
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("luna", "planted/url")


def test_requirements_name_no_address() -> None:
    assert "://" not in machine.requirements()
    assert spooled.text(machine.requirements(), "x")["text"].count("==") > 20
