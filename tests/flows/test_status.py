"""`luna status`: it says what there is to say, with a server, without one, and with one that refuses."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from rich.console import Console

from flows import servers, status
from flows.prefect_api import PrefectApi
from flows.servers import Running
from flows.status import disk, in_words, of_models, show_status, spooled
from lungml.home import Home

API = "http://prefect.example:4200/api"
NOW = "2026-11-26T14:50:00+00:00"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    for name in ("PREFECT_API_URL", "PREFECT_PROFILES_PATH", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)  # no prefect.toml
    return Home(tmp_path / "artifacts")


def shown(home: Home) -> list[str]:
    console = Console(width=80, highlight=False, markup=False, record=True, file=io.StringIO())
    show_status(home, console)
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert all(len(line) <= 80 for line in lines)
    return lines


def value(lines: list[str], name: str) -> str:
    (line,) = (line for line in lines if line.startswith(name))
    return line.removeprefix(name).strip()


@dataclass(frozen=True)
class FakeApi(PrefectApi):
    """A server with two workers, two queues, one schedule and two runs."""

    def get(self, path: str, **query: str) -> Any:
        assert path == "deployments/d"
        return {"name": "end-to-end"}

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        if path == "v2/concurrency_limits/filter":
            return [{"name": "other", "limit": 1, "active_slots": 0}, GPUS]
        if path.endswith("workers/filter"):
            return [{"name": "luna-ab-1", "status": "OFFLINE"}, {"name": "luna-ab-2", "status": "ONLINE"}]
        if path.endswith("queues/filter"):
            return [{"name": "gpu", "status": "NOT_READY"}, {"name": "default", "status": "READY"}]
        assert path == "flow_runs/filter"
        assert body["flows"] == {"name": {"any_": ["luna"]}}
        assert body["flow_runs"]["deployment_id"] == {"is_null_": False}
        return SCHEDULED[: body["limit"]] if "state" in body["flow_runs"] else RUNS[: body["limit"]]


GPUS = {"name": "luna-gpu-host", "limit": 4, "active_slots": 3}
SCHEDULED = [{"deployment_id": "d", "next_scheduled_start_time": NOW, "state": {"name": "Scheduled"}}]
RUNS = [
    {"name": "a" * 90, "state": {"name": "AwaitingRetry"}, "start_time": NOW, "estimated_run_time": 7500.0},
    {"name": "read [/x]", "state": {"name": "Failed"}, "start_time": NOW, "estimated_run_time": 3.2},
]


def test_without_a_server_it_says_so(home: Home) -> None:
    lines = shown(home)
    assert value(lines, "luna up") == "does not run on this home"
    assert value(lines, "Prefect") == "no server; `luna up` starts one"
    assert value(lines, "champion") == "none: nothing was trained here yet"
    assert value(lines, "spooled") == "nothing waits for MLflow"
    assert value(lines, "disk").endswith(" GB free")
    assert not home.root.exists()  # to look is to change nothing


def test_a_server_that_does_not_answer_is_named_without_its_password(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://jane:secret@127.0.0.1:1/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://jane:secret@127.0.0.1:1/")
    lines = shown(home)
    assert value(lines, "Prefect") == "http://127.0.0.1:1/api does not answer"
    assert value(lines, "champion").startswith("MLflow does not answer: http://")
    assert "secret" not in "".join(lines)


def test_a_server_is_asked_for_all_of_it(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "server", lambda up: FakeApi(API))
    monkeypatch.setattr(status, "server_answers", lambda url: url == API)
    lines = shown(home)
    assert value(lines, "Prefect") == f"{API} answers"
    assert value(lines, "workers") == "luna-ab-2"
    assert value(lines, "queues") == "default (ready), gpu (not ready)"
    local = f"{datetime.fromisoformat(NOW).astimezone():%Y-%m-%d %H:%M}"
    assert value(lines, "next run") == f"luna/end-to-end {local}"
    assert value(lines, "GPU slots") == "3 of 4 in use (luna-gpu-host)"
    first, second = lines[-2:]
    assert first.startswith("aaa")
    assert first.endswith("2 h 5 min")
    assert second.split() == ["read", "[/x]", "Failed", *local.split(), "3", "s"]


def test_a_server_that_refuses_is_no_error(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: PrefectApi, path: str, body: Mapping[str, Any]) -> Any:
        raise httpx.ConnectError("no more")

    monkeypatch.setattr(FakeApi, "post", refuse)
    monkeypatch.setattr(status, "server", lambda up: FakeApi(API))
    monkeypatch.setattr(status, "server_answers", lambda url: True)
    assert any("it refuses to tell more: no more" in line for line in shown(home))


def test_a_damaged_database_is_a_row_and_no_error(home: Home) -> None:
    home.root.mkdir()
    home.mlflow_db.write_text("no database at all, but long enough to look at")
    lines = shown(home)
    assert "is no SQLite database" in " ".join(" ".join(lines).split())
    assert value(lines, "disk").endswith(" GB free")  # the rest is told all the same


def test_the_server_of_the_luna_up_that_runs_is_asked(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with servers.only_one(home) as announce:
        own = PrefectApi("http://127.0.0.1:4301/api")
        announce(servers.Servers(own, "http://127.0.0.1:4301", "http://127.0.0.1:5001", True, True))
        up = servers.running(home)
        assert isinstance(up, Running)
        monkeypatch.setenv("PREFECT_API_URL", API)  # of the terminal, which may be another one's
        asked = status.server(up)
        assert asked is not None
        assert asked.url == own.url
        asked = status.server(None)
        assert asked is not None
        assert asked.url == API


def test_models_in_use_are_told_with_since_when(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    history = (
        "2026-11-01T00:00:00Z @champion by the gate: better",
        "2026-11-08T00:00:00Z no longer @champion by the gate: models:/luna/2 is",
        "2026-11-09T00:00:00Z @champion by a person: back",
    )
    listed = SimpleNamespace(uri="models:/luna/1", aliases=("champion",), history=history, fields={"origin": "real"})
    home.root.mkdir()
    home.mlflow_db.touch()
    monkeypatch.setattr("tasks.connection.answers", lambda uri: True)
    monkeypatch.setattr("tasks.promotion.list_bundles", lambda home: (listed,))
    assert of_models(home) == [("champion", "models:/luna/1 since 2026-11-09"), ("demo", "none")]
    listed.aliases = ()
    (champion, _) = of_models(home)
    assert champion == ("champion", "none; 1 registered: luna model promote URI")
    listed.fields = {"origin": "phantom"}
    assert of_models(home) == [("champion", "none"), ("demo", "none")]


def test_what_waits_for_mlflow_is_counted(home: Home) -> None:
    home.spool.mkdir(parents=True)
    (home.spool / f"{'a' * 32}.jsonl").write_text("{}\n{}\n")
    (home.spool / f"{'b' * 32}.jsonl").write_text("{}\n")
    assert spooled(home) == "3 records of 2 runs wait for MLflow"


def test_the_disk_is_the_one_that_the_home_will_lie_on(tmp_path: Path) -> None:
    assert disk(Home(tmp_path / "not" / "yet")).endswith(" GB free")


@pytest.mark.parametrize(("seconds", "words"), [(3.2, "3 s"), (89, "89 s"), (600, "10 min"), (7500, "2 h 5 min")])
def test_a_length_of_time_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
