"""A manifest lists what is there, and tells when it no longer is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lungml.home import Home
from tasks import registry, runs, tracking
from tasks.evaluation import log_end_to_end
from tasks.lineage import bundle_lineage
from tasks.manifest import describe_bundle, described_at, verify
from tasks.packing import sha256
from tasks.recorded import told_parameters
from tasks.spool import spool_file
from tasks.tracking import TrackingError
from tests.lungml.test_evaluation_report import MANY, UID
from tests.tasks.toy_bundles import toy_bundle
from tests.tasks.toy_made import ASKED, SCANS, SCORES, judge, made_bundle, pipeline_in


@pytest.fixture
def uri(home: Home) -> str:
    return made_bundle(home)


def bundle_folder(home: Home, uri: str) -> Path:
    return next(tracking.download_model(home, uri).rglob("bundle.json")).parent


def test_the_manifest_lists_files_data_seeds_and_scores(home: Home, uri: str) -> None:
    manifest = json.loads(described_at(home, uri).manifest.read_text())
    folder, fields = bundle_folder(home, uri), registry.read_bundle(home, uri)
    assert manifest["files"] == {**fields["sha256"], "bundle.json": sha256(folder / "bundle.json")}
    assert manifest["data"]["train"]["scans"] == 2
    assert manifest["seeds"]["pipeline"] == 4
    assert manifest["parameters"]["recipe"] == "demo"
    assert [one["uri"] for one in manifest["members"]] == [fields[name] for name in registry.BUNDLE_MEMBERS]
    test = manifest["metrics"]["test"]
    assert test["cpm_official"] == {"observed": MANY.froc.cpm, "band": list(MANY.froc.cpm_band)}
    assert test["sensitivity_at_fps"]["1"]["observed"] == MANY.froc.sensitivity_at[3]
    assert test["malignancy_auc"]["band"] == list(MANY.samples["malignancy_auc"].band)
    assert (manifest["origin"], manifest["pipeline"], manifest["format"]) == ("phantom", "flow1", 1)
    text = json.dumps(manifest)
    assert str(home.root) not in text
    assert UID.format(1) not in text
    assert "9.1" not in manifest["data"]


def test_both_lie_with_the_run_the_model_and_the_registry(home: Home, uri: str) -> None:
    at, lineage = described_at(home, uri), bundle_lineage(home, uri)
    folder = tracking.download_model(home, uri)
    assert (folder / "manifest.json").read_text() == at.manifest.read_text()
    assert (folder / "README.md").read_text() == at.card.read_text()
    assert lineage.run is not None
    assert runs.read_json(home, lineage.run.run_id, "manifest.json") == json.loads(at.manifest.read_text())
    version = tracking.client_of(home).get_model_version("luna", uri.rpartition("/")[2])
    assert version.description.startswith(f"# luna bundle {uri}\n\n> **Not for clinical use.")
    assert len(version.description) <= 5000
    assert version.description.endswith(f"The whole card: README.md of the run {lineage.run.run_id}.\n")
    # The bundle itself is as it was: nothing of it is another file than was registered.
    registry.check_whole(home, uri)


def test_which_corrections_it_learned_from_is_found_from_the_version(home: Home) -> None:
    used = {"version": 4, "positives": 3, "negatives": 2, "labels": 1, "disputed": 5, "held_out": 6}
    words = "It learned from readers' corrections up to version 4: 3 used as positives, 2 as hard negatives, 1 as"

    def told(uri: str) -> tuple[str | None, str, object]:
        version = tracking.client_of(home).get_model_version("luna", uri.rpartition("/")[2])
        at = described_at(home, uri)
        return version.tags.get("luna.corrections"), at.card.read_text(), json.loads(at.manifest.read_text())

    without = made_bundle(home, asked={**ASKED, "corrections": 0})  # a run says so where there were none
    tag, card, manifest = told(without)
    assert tag is None
    assert "corrections" not in card
    assert isinstance(manifest, dict)
    assert "corrections" not in manifest

    uri = toy_bundle(home, origin="phantom", recipe="other")
    judge(home, uri, corrections=used)
    judge(home, uri, pipeline_id="flow2", corrections={**used, "version": 5})  # it stays the first one's work
    tag, card, manifest = told(uri)
    assert (tag, words in card) == ("4", True)
    assert isinstance(manifest, dict)
    assert manifest["corrections"] == used
    assert verify(home, uri) == ()
    found = tracking.client_of(home).search_model_versions("name = 'luna' and tag.`luna.corrections` = '4'")
    assert [f"models:/luna/{one.version}" for one in found] == [uri]


def test_a_bundle_judged_again_gets_a_new_manifest(home: Home, uri: str) -> None:
    later = judge(home, uri, pipeline_id="flow2")
    manifest = json.loads(described_at(home, uri).manifest.read_text())
    assert manifest["judged_by"] == later
    assert manifest["run"] != later
    assert verify(home, uri) == ()


def spoil_manifest(home: Home, uri: str) -> None:
    file = tracking.download_model(home, uri) / "manifest.json"
    file.write_text(file.read_text().replace('"recipe": "toy"', '"recipe": "bost"'))


def damage_manifest(home: Home, uri: str) -> None:
    (tracking.download_model(home, uri) / "manifest.json").write_text("{")


def spoil_settings(home: Home, uri: str) -> None:
    file = bundle_folder(home, uri) / "bundle.json"
    file.write_text(file.read_text().replace('"nodule_threshold": 0.5', '"nodule_threshold": 0.1'))


def spoil_weights(home: Home, uri: str) -> None:
    file = next(bundle_folder(home, uri).rglob("weights.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")


def spoil_model(home: Home, uri: str) -> None:
    model = tracking.download_model(home, registry.read_bundle(home, uri)["nodule"])
    file = model / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")


def lose_file(home: Home, uri: str) -> None:
    next(bundle_folder(home, uri).rglob("arch.json")).unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_manifest, "manifest.json is not the one that was written"),
        (damage_manifest, "manifest.json is damaged"),
        (spoil_settings, "bundle.json is not the file that is listed"),
        (spoil_weights, "weights.safetensors is not the file that is listed"),
        (spoil_model, "is not the file that was registered"),
        (lose_file, "cannot be read; restore it, or run again"),
    ],
)
def test_what_is_another_file_now_is_found(home: Home, uri: str, spoil: Callable[[Home, str], None], said: str) -> None:
    assert verify(home, uri) == ()
    spoil(home, uri)
    wrong = verify(home, uri)
    assert any(said in line for line in wrong), wrong


def test_a_bundle_without_a_manifest_says_so(home: Home) -> None:
    with pytest.raises(TrackingError, match="has no manifest"):
        verify(home, toy_bundle(home))


def test_what_the_run_logged_while_mlflow_was_away_is_in_the_manifest(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, pipeline = toy_bundle(home, origin="phantom"), pipeline_in(home)
    with monkeypatch.context() as away:
        away.setattr("tasks.outbox.answers", lambda _: False)
        run_id = log_end_to_end.fn(SCORES, uri, [], pipeline, scans=SCANS, parameters=told_parameters(ASKED))
    assert spool_file(home, run_id).exists()
    describe_bundle.fn(uri, run_id, SCORES, pipeline)
    manifest = json.loads(described_at(home, uri).manifest.read_text())
    assert manifest["parameters"]["recipe"] == "demo"
    assert manifest["data"]["train"]["scans"] == 2
