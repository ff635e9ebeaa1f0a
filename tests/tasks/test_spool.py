"""What waits for MLflow: damaged and foreign spools, refused records, a database that another process holds."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from lungml.files import beside_path
from lungml.home import Home
from tasks import outbox, spool, spooled, tracking
from tasks.connection import patience_s, patiently, plain
from tasks.reachable import TrackingDown, TrackingError, answers, is_away
from tasks.spooled import Record, merged


@pytest.fixture
def home(tmp_path: Path, new_home: Callable[[Path], Home], monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return new_home(tmp_path)


@pytest.fixture
def client(home: Home) -> MlflowClient:
    return plain(tracking.client_of(home))


@pytest.fixture
def run_id(home: Home) -> str:
    with tracking.open_run(home, "segmentation", name="x", sample_every_s=None) as run:
        return run.run_id


@contextmanager
def held(home: Home) -> Iterator[None]:
    """The database, written to by somebody else for a while."""
    with closing(sqlite3.connect(home.mlflow_db, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


def waits(home: Home, run_id: str) -> Path:
    spool.append(home, run_id, spooled.metrics({"train/loss": 2.0}, 1))
    spool.append(home, run_id, spooled.metrics({"train/loss": 1.0}, 2))
    return spool.spool_file(home, run_id)


def steps(client: MlflowClient, run_id: str) -> list[int]:
    return [point.step for point in client.get_metric_history(run_id, "train/loss")]


def aside(home: Home) -> dict[str, str]:
    return {path.name: path.read_text() for path in (home.spool / "aside").glob("*")}


# A database that is held


def test_a_held_database_stops_no_training(
    home: Home, client: MlflowClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "FRESH_S", 0.5)
    with tracking.open_run(home, "segmentation", name="x", sample_every_s=None) as run:
        time.sleep(0.6)
        with held(home):
            began = time.monotonic()
            for epoch in (1, 2, 3):
                run.log_epoch({"train/loss": 1.0 / epoch}, epoch)
            assert time.monotonic() - began < 20.0  # SQLite's own patience, 20 s for each, is not used up
            assert spool.spool_file(home, run.run_id).read_text().count("\n") == 3
        time.sleep(0.6)
        run.log_epoch({"train/loss": 0.1}, 4)
    assert steps(client, run.run_id) == [1, 2, 3, 4]
    assert not list(home.spool.iterdir())
    assert len([r for r in caplog.records if "is away" in r.getMessage()]) == 1


def test_a_run_waits_for_a_held_database(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUNA_MLFLOW_PATIENCE_S", "0")
    with held(home), pytest.raises(TrackingDown, match=r"^sqlite:///\S+: MLflow did not answer .*holds it"):
        tracking.client_of(home)
    assert answers(tracking.tracking_uri(home))
    tracking.client_of(home)


@pytest.mark.parametrize("content", [b"no database, but a text\n" * 100, b"SQLite format 3\x00" + b"\xff" * 5000])
def test_what_is_no_database_is_one_line(content: bytes, home: Home) -> None:
    home.mlflow_db.write_bytes(content)
    began = time.monotonic()
    with pytest.raises(TrackingError, match=rf"^{home.mlflow_db}: is no SQLite database") as caught:
        tracking.client_of(home)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 30.0  # MLflow itself tries for minutes


def test_a_database_of_another_version_is_one_line(home: Home) -> None:
    with closing(sqlite3.connect(home.mlflow_db)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    with pytest.raises(TrackingError, match=r"^sqlite:///\S+: MLflow cannot use it \(.*\); mend it") as caught:
        tracking.client_of(home)
    assert "\n" not in str(caught.value)


# Spools


def test_what_waits_is_sent_by_the_next_run(home: Home, client: MlflowClient, run_id: str) -> None:
    path = waits(home, run_id)
    spool.append(home, run_id, spooled.status("KILLED"))
    with tracking.open_run(home, "malignancy", name="next", sample_every_s=None):
        pass
    assert steps(client, run_id) == [1, 2]
    assert client.get_run(run_id).info.status == "KILLED"
    assert not path.exists()


def test_a_half_line_costs_only_itself(
    home: Home, client: MlflowClient, run_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = waits(home, run_id)
    with path.open("a") as file:
        file.write('{"run": "' + run_id + '", "kind": "metr')  # as a power cut leaves it
    spool.append(home, run_id, spooled.metrics({"train/loss": 0.5}, 3))
    spool.send_spooled(home, client)
    assert steps(client, run_id) == [1, 2, 3]
    assert list(aside(home)) == [f"{run_id}.jsonl"]
    assert aside(home)[f"{run_id}.jsonl"].endswith('"metr\n')
    assert "cannot be read: 1 records are kept in spool/aside" in caplog.text


def test_foreign_files_are_set_aside(
    home: Home, client: MlflowClient, run_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    waits(home, run_id)
    (home.spool / "notes.txt").write_text("mine")
    (home.spool / f"{'0' * 32}.jsonl").write_bytes(b"\x00\xff\xfe\n[1, 2]\n" + b'{"run": "another"}\n')
    spool.send_spooled(home, client)
    assert aside(home)["notes.txt"] == "mine"
    assert len(aside(home)[f"{'0' * 32}.jsonl"].splitlines()) == 3
    assert steps(client, run_id) == [1, 2]
    assert caplog.text.count("kept") == 2


def test_a_refused_record_costs_only_itself(home: Home, client: MlflowClient, run_id: str) -> None:
    waits(home, run_id)
    spool.append(home, run_id, spooled.metrics({"a|b": 1.0}, 1))  # MLflow takes no such name
    spool.append(home, run_id, {"kind": "text", "name": "x"})  # no whole record
    spool.append(home, run_id, spooled.settings({}, {"luna.note": "kept"}))
    spool.send_spooled(home, client)
    assert steps(client, run_id) == [1, 2]
    assert client.get_run(run_id).data.tags["luna.note"] == "kept"
    assert [json.loads(line)["kind"] for line in aside(home)[f"{run_id}.jsonl"].splitlines()] == ["metrics", "text"]


def test_what_waits_for_another_server_waits_on(
    home: Home, client: MlflowClient, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = waits(home, run_id)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    before = path.read_bytes()
    assert spool.waiting(home, run_id) == []
    spool.send_spooled(home, tracking.client_of(home))
    assert path.read_bytes() == before
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    spool.send_spooled(home, tracking.client_of(home))
    assert steps(client, run_id) == [1, 2]


def test_an_unknown_run_is_said(home: Home, client: MlflowClient, caplog: pytest.LogCaptureFixture) -> None:
    waits(home, "a" * 32)
    spool.send_spooled(home, client)
    assert "belongs to a run that MLflow does not have: 2 records are kept" in caplog.text


def test_files_wait_as_copies(home: Home, client: MlflowClient, run_id: str, tmp_path: Path) -> None:
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "roc.png").write_bytes(b"then")
    record = spooled.kept_copy(spooled.files(folder, "figures"), home.spool / run_id)
    spool.append(home, run_id, record)
    (folder / "roc.png").write_bytes(b"now")
    spool.send_spooled(home, client)
    assert Path(client.download_artifacts(run_id, "figures/roc.png")).read_bytes() == b"then"
    assert not list(home.spool.iterdir())


def test_a_relative_folder_is_kept_too(
    home: Home, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "roc.png").write_bytes(b"now")
    monkeypatch.chdir(tmp_path)
    with tracking.open_run(home, "segmentation", name="x", sample_every_s=None) as run:
        run.log_files(Path("out"), "test")
    assert [file.path for file in client.list_artifacts(run.run_id, "test")] == ["test/roc.png"]


def test_a_full_disk_names_the_spool(home: Home, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        waits(home, run_id)
    assert caught.value.filename == str(spool.spool_file(home, run_id))


def test_neighbouring_metrics_travel_together() -> None:
    def record(points: int) -> Record:
        content = spooled.metrics({f"m{i}": 1.0 for i in range(points)}, 1) if points else spooled.status("FINISHED")
        return Record(line="", server="", content=content)

    groups = merged([record(n) for n in (2, 3, 0, 0, 999, 1, 1)])
    assert [[len(r.points) for r in group] for group in groups] == [[2, 3], [0], [0], [999, 1], [1]]


# Waiting


def test_a_fault_that_stays_is_told_soon(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.connection.pause", lambda _: None)
    monkeypatch.setattr("tasks.connection.answers", lambda _: True)
    asked = []

    def fault() -> None:
        asked.append(1)
        raise MlflowException("API request to endpoint /x failed with error code 500 != 200")

    with pytest.raises(MlflowException, match="500"):
        patiently("http://127.0.0.1:1", fault)
    assert len(asked) == 4


def test_what_is_refused_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        error = MlflowException("who are you?")
        error.error_code = "UNAUTHENTICATED"
        raise error

    with pytest.raises(TrackingError, match=r"^http://\*\*\*@h: MLflow refuses us \(who are you\?\); set MLFLOW_TRACK"):
        patiently("http://u:hush@h", refuse)


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (ConnectionRefusedError(), True),
        (TimeoutError(), True),
        (MlflowException("API request to http://h failed with exception x"), True),
        (MlflowException("(sqlite3.OperationalError) database is locked", error_code=2), True),
        (MlflowException("(sqlite3.OperationalError) no such table: runs", error_code=2), False),
        (MlflowException("a bug of ours"), False),
        (FileNotFoundError(2, "gone", "x"), False),
        (TrackingDown("waited for already"), False),
    ],
)
def test_what_passes(error: Exception, away: bool) -> None:
    assert is_away(error) is away


@pytest.mark.parametrize("said", ["soon", "-1", "nan", "inf"])
def test_patience_is_a_number_of_seconds(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUNA_MLFLOW_PATIENCE_S", said)
    with pytest.raises(TrackingError, match=rf"^LUNA_MLFLOW_PATIENCE_S is '{said}'; give a number of seconds"):
        patience_s()


@pytest.mark.parametrize("away", [False, True])
def test_a_file_that_another_run_is_just_writing_is_left_out(home: Home, tmp_path: Path, away: bool) -> None:
    folder = tmp_path / "report"
    (folder / "figures").mkdir(parents=True)
    for file in (folder / "report.md", folder / "figures" / "froc.png", beside_path(folder / "figures" / "froc.png")):
        file.write_text(file.name)
    with tracking.open_run(home, "end-to-end", name="x", sample_every_s=None) as run:
        if away:
            with held(home):
                run.log_files(folder, "test")
        else:
            run.log_files(folder, "test")
            run.log_files(folder)
    client = tracking.client_of(home)
    for under in ("test", *([] if away else [""])):
        logged = [file.path for file in client.list_artifacts(run.run_id, f"{under}/figures".strip("/"))]
        assert logged == [f"{under}/figures/froc.png".strip("/")]
        assert f"{under}/report.md".strip("/") in {f.path for f in client.list_artifacts(run.run_id, under or None)}
