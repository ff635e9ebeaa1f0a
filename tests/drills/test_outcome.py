"""Two homes are equal, or it is said what differs; a loose end is seen."""

from __future__ import annotations

import json
import os
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from lungml.files import beside_path
from lungml.home import Home
from tests.drills import moments, recorded
from tests.drills.outcome import Outcome, differences, doubles, loose_ends
from tests.drills.recorded import Counter

TABLES = """
create table experiments (experiment_id integer, name text);
create table runs (run_uuid text, name text, status text, lifecycle_stage text, artifact_uri text,
    experiment_id integer, start_time integer);
create table metrics (key text, value real, step integer, run_uuid text, is_nan boolean);
create table logged_models (model_id text, name text, artifact_location text, status integer, lifecycle_stage text);
create table model_versions (name text, version integer, source text);
create table registered_model_aliases (alias text, version integer, name text);
insert into experiments values (4, 'luna-end-to-end');
insert into runs values ('a', 'demo-unet seed 0', 'FINISHED', 'active', '', 1, 1);
insert into metrics values ('train/loss', 0.5, 1, 'a', 0), ('train/loss', 0.25, 2, 'a', 0),
    ('samples_per_s', 91, 1, 'a', 0), ('system/cpu', 7, 0, 'a', 0), ('val/auc', 0, 2, 'a', 1);
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    row, model, bundle = (home.root / name for name in ("row", "m-1/artifacts/extra_files", "m-2"))
    for folder in (row / "val", row / "test", model, bundle):
        folder.mkdir(parents=True)
    (row / "val" / "scorecard.json").write_text("{}")
    (row / "test" / "scorecard.json").write_text("{ }")
    (model / "weights.safetensors").write_bytes(b"weights")
    (bundle / "bundle.json").write_text(
        json.dumps({"nodule": ["models:/m-1"], "nodule_threshold": 0.4, "code": "abc", "sha256": {"n": "1"}})
    )
    record = home.checkpoints / "segmentation" / "k" / "finished.json"
    record.parent.mkdir(parents=True)
    record.write_text('{"name": "demo-unet", "uri": "models:/m-1"}')
    found = home.reports / "findings" / "x" / "1.2.3"
    found.mkdir(parents=True)
    (found / "findings.csv").write_text("series_uid\n")
    _run(home, TABLES)
    _run(home, f"insert into runs values ('b', 'luna-1', 'FINISHED', 'active', '{row.as_uri()}', 4, 2)")
    _run(home, f"insert into logged_models values ('m-1', 'demo-unet', '{model.parent.as_uri()}', 2, 'active')")
    _run(home, f"insert into logged_models values ('m-2', 'luna-bundle', '{bundle.as_uri()}', 2, 'active')")
    _run(home, "insert into model_versions values ('luna', 1, 'models:/m-2')")
    _run(home, "insert into registered_model_aliases values ('demo', 1, 'luna')")
    return home


def _run(home: Home, script: str) -> None:
    with sqlite3.connect(home.mlflow_db) as connection:
        connection.executescript(script)
    connection.close()


def test_what_decides_is_read_and_what_does_not_is_left_out(home: Home) -> None:
    reached = Outcome.of(home)
    assert reached.metrics == {"demo-unet seed 0": {"train/loss at 1": 0.5, "train/loss at 2": 0.25}, "luna-N": {}}
    assert reached.bundle == {"nodule_threshold": 0.4, "sha256": ["1"]}
    assert reached.weights.keys() == {"demo-unet"}
    assert reached.scorecards.keys() == {"val", "test"}
    assert reached.scorecards["val"] != reached.scorecards["test"]
    assert reached.findings.keys() == {"1.2.3"}
    assert differences(reached, Outcome(**json.loads(json.dumps(reached.as_dict())))) == []


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("update metrics set value = 0.26 where step = 2", "metrics of demo-unet seed 0 differ"),
        ("delete from metrics where step = 1", "metrics of demo-unet seed 0 differ"),
        ("insert into metrics values ('train/loss', 0.3, 2, 'a', 0)", "metrics of demo-unet seed 0 differ"),
        ("update runs set status = 'RUNNING' where run_uuid = 'b'", "metrics of luna-N differ"),
        ("delete from registered_model_aliases", "bundle of nodule_threshold differ"),
    ],
)
def test_a_difference_in_mlflow_is_told(home: Home, script: str, line: str) -> None:
    before = Outcome.of(home)
    _run(home, script)
    assert line in differences(Outcome.of(home), before)


def test_a_difference_in_a_file_is_told(home: Home) -> None:
    before = Outcome.of(home)
    next(home.root.rglob("weights.safetensors")).write_bytes(b"other")
    next(home.root.rglob("findings.csv")).write_text("series_uid,x\n")
    next(home.root.rglob("test/scorecard.json")).write_text("{}")
    told = differences(Outcome.of(home), before)
    assert told == ["weights of demo-unet differ", "scorecards of test differ", "findings of 1.2.3 differ"]
    many = replace(before, findings={str(n): [] for n in range(9)})
    assert differences(many, before)[-1] == "findings of 7 more differ"


def test_loose_ends_are_seen(home: Home) -> None:
    assert loose_ends(home) == []
    _run(home, "insert into runs values ('c', 'x', 'RUNNING', 'active', '', 1, 3)")
    _run(home, "insert into logged_models values ('m-3', 'demo-unet', '', 1, 'active')")
    assert doubles(home) == []
    half = beside_path(home.reports / "findings.csv")
    half.write_text("se")
    (home.root / "spool").mkdir()
    (home.root / "spool" / "c.jsonl").write_text("{}\n")
    assert loose_ends(home) == [
        "1 MLflow runs stay RUNNING",
        "1 MLflow models stay PENDING",
        f"1 half-written files stay, such as {half.name}",
        "1 spooled runs were not sent",
    ]
    _run(home, "update logged_models set status = 2")
    assert doubles(home) == ["2 models demo-unet are kept"]


def test_an_empty_home_has_come_to_nothing(tmp_path: Path) -> None:
    nothing = Outcome.of(Home(tmp_path))
    assert not any((nothing.weights, nothing.metrics, nothing.bundle, nothing.scorecards, nothing.findings))


def test_moments_are_told_by_what_lies_there(home: Home) -> None:
    scan = home.root / "scans" / "1.zarr"
    scan.mkdir(parents=True)
    (scan / "zarr.json").write_text("{}")
    assert not moments.converting(home)
    other = beside_path(home.root / "scans" / "2.zarr")
    other.mkdir()
    assert moments.converting(home)
    assert not moments.drawing_masks(home)
    os.replace(other, beside_path(home.root / "scans" / "1.zarr-mask"))
    assert moments.drawing_masks(home)
    assert not moments.converting(home)
    for name in ("1.2", ".1.3.0abcde-7-01234567"):  # whole, and half-written
        assert moments.mining(home) == (name != "1.2")
        crops = home.crops / "demo-mined-1.zarr" / name
        crops.mkdir(parents=True)
        (crops / "zarr.json").write_text("{}")
    assert moments.mined(home) == 1
    assert moments.promoted(home)
    assert not moments.learned("demo-unet", 2)(home)  # it has ended
    _run(home, "update runs set status = 'RUNNING' where run_uuid = 'a'")
    assert moments.learned("demo-unet", 2)(home)
    assert not moments.learned("demo-unet", 3)(home)


def test_work_done_twice_is_told() -> None:
    done = {"convert_scan": Counter(Completed=10, Cached=8), "find_nodules": Counter(Completed=8, Running=1)}
    allowed = {**dict.fromkeys(recorded.WORK, 0), "convert_scan": 9, "find_nodules": 8}
    assert recorded.repeated(done, allowed) == ["convert_scan was done 10 times, 9 would have been enough"]
    assert recorded.in_words(done) == "8 tasks Cached, 18 Completed"
