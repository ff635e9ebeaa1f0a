"""What of a run may travel, and what is kept of its data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lungml.gate import GateSettings
from lungml.home import Home
from tasks import runs, tracking
from tasks.caching import digest
from tasks.recorded import code_digests, digests_of, log_recorded, sizes_of, told_parameters
from tests.tasks.toy_made import SCANS, pipeline_in, toy_scan


def test_of_a_folder_only_that_there_was_one_is_told() -> None:
    told = told_parameters({"luna_dir": "/data/j_doe", "tables_dir": None, "lidc": Path("/x"), "seed": 3})
    assert told == {"seed": 3, "luna_dir": True, "tables_dir": False, "lidc": True}


def test_parameters_become_json() -> None:
    told = told_parameters(
        {"overrides": {"a.b": (1, 2)}, "refresh": ("prepare",), "gate": GateSettings(), "of": {2, 1}}
    )
    assert json.loads(json.dumps(told)) == told
    assert (told["overrides"], told["refresh"], told["of"]) == ({"a.b": [1, 2]}, ["prepare"], [1, 2])
    assert told["gate"].keys() == GateSettings.__dataclass_fields__.keys()
    with pytest.raises(TypeError, match="cannot be kept"):
        told_parameters({"what": object()})


def test_a_split_is_known_by_the_data_of_its_scans_in_their_order() -> None:
    digests = digests_of(SCANS)
    assert digests["train"] == digest(["digest of 9.1", "digest of 9.4"])
    assert digests_of([*SCANS[:2], toy_scan("9.2", "val", "other"), SCANS[3]]) == {
        **digests,
        "val": digest(["other"]),
    }
    assert sizes_of(SCANS) == {
        "train": {"scans": 2, "nodules": 4, "malignant": 2},
        "val": {"scans": 1, "nodules": 2, "malignant": 1},
        "test": {"scans": 1, "nodules": 2, "malignant": 1},
    }


def test_a_run_holds_what_it_takes_to_repeat_it(home: Home) -> None:
    with tracking.open_run(home, "end-to-end", name="luna-7", sample_every_s=None) as run:
        log_recorded(run, pipeline_in(home), SCANS, [], {"device": "auto", "recipe": "demo"})
    read = {name: runs.read_json(home, run.run_id, f"{name}.json") for name in ("parameters", "scans", "data", "code")}
    assert read["parameters"] == {"device": "cpu", "recipe": "demo"}  # what it came to
    assert read["scans"] == {"9.1": "train", "9.4": "train", "9.2": "val", "9.3": "test"}
    assert read["data"]["train"]["scans"] == {"9.1": "digest of 9.1", "9.4": "digest of 9.4"}
    assert read["code"] == code_digests()
    facts = runs.facts_of_run(home, run.run_id)
    assert facts is not None
    assert {split: data.digest for split, data in facts.data.items()} == digests_of(SCANS)
    assert {split: data.sizes for split, data in facts.data.items()} == sizes_of(SCANS)


def test_what_is_not_there_is_none(home: Home) -> None:
    assert runs.facts_of_run(home, "0" * 32) is None
    assert runs.facts_of_model(home, "models:/m-" + "0" * 32) is None
    assert runs.read_json(home, "0" * 32, "parameters.json") is None
