"""The gate through MLflow: aliases, tags, gate.json and artifacts of toy bundles with hand-made scores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from lungml.compare import Sampled, Statistic
from lungml.gate import Decision, GateSettings
from lungml.home import Home
from lungml.models.nodule_net import NoduleNetConfig
from lungml.phantom import UID_ROOT
from tasks import gate as gating
from tasks import registry, tracking
from tasks.gate import gate, markdown, to_beat
from tasks.pipeline import Pipeline
from tasks.promotion import alias_of, list_bundles, promote
from tasks.tracking import TrackingError
from tests.tasks.toy_bundles import SMALL, TRAINED_ON, forget_aliases, old_bundle, toy_bundle, toy_model

SERIES = tuple(f"8.{number}" for number in range(60))
REAL, BETTER_REAL, DRAWN, BETTER_DRAWN = (f"models:/luna/{number}" for number in range(1, 5))


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory, new_home: Callable[[Path], Home]) -> Home:
    home = new_home(tmp_path_factory.mktemp("gate"))
    assert [toy_bundle(home, origin=origin) for origin in ("real", "real", "phantom", "phantom")] == [
        REAL, BETTER_REAL, DRAWN, BETTER_DRAWN,
    ]  # fmt: skip
    return home


@pytest.fixture
def home(stocked: Home) -> Home:
    forget_aliases(stocked)
    shutil.rmtree(stocked.reports, ignore_errors=True)
    stocked.split_csv.unlink(missing_ok=True)
    return stocked


@pytest.fixture(autouse=True)
def artifacts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What Prefect would have shown, by key."""
    shown: dict[str, Any] = {}
    monkeypatch.setattr(gating, "create_markdown_artifact", lambda text, key, **_: shown.update({key: text}))
    monkeypatch.setattr(gating, "create_table_artifact", lambda rows, key, **_: shown.update({key: rows}))
    return shown


def scores(gained: float = 0.0) -> dict[Statistic, Sampled]:
    """Scores that are better by so much than another's, on every resample."""
    values: Mapping[Statistic, float] = {
        "malignant_sensitivity": 0.6 + gained,
        "cpm": 0.6 + gained,
        "malignancy_auc": 0.9 + gained / 10,
        "diameter_auc": 0.85,
        "malignant_false_positives": 50,
    }
    return {name: Sampled(observed=value, resampled=np.full(20, value)) for name, value in values.items()}


def ask(
    home: Home,
    challenger: str,
    champion: str | None = None,
    gained: float = 0.0,
    origin: Any = "real",
    **changes: Any,
) -> Decision:
    """Ask the gate about a challenger that is so much better than the champion."""
    given = {
        "series_uids": SERIES,
        "malignant": 40,
        "set_aside": 0,
        "pipeline": Pipeline(home=home, pipeline_id="p1", origin=origin, seed=0),
        **changes,
    }
    standing = scores() if champion else None
    return gate.fn(challenger, champion, scores(gained), standing, **given)


def version_tags(home: Home, uri: str) -> dict[str, str]:
    client = MlflowClient(tracking_uri=tracking.tracking_uri(home))
    tags: dict[str, str] = client.get_model_version("luna", uri.rpartition("/")[2]).tags
    return tags


def last_run(home: Home) -> Any:
    client = MlflowClient(tracking_uri=tracking.tracking_uri(home))
    found = client.search_runs([tracking.experiment_id_of(home, "end-to-end")], order_by=["attributes.start_time DESC"])
    return found[0]


def test_a_better_bundle_is_promoted_and_it_is_told_everywhere(home: Home, artifacts: dict[str, Any]) -> None:
    assert to_beat(home, "real") is None
    first = ask(home, REAL)
    assert first.promoted
    assert alias_of(home, "champion") == to_beat(home, "real") == REAL

    second = ask(home, BETTER_REAL, REAL, gained=0.1)
    assert (second.promoted, second.champion) == (True, REAL)
    assert (alias_of(home, "champion"), alias_of(home, "previous")) == (BETTER_REAL, REAL)

    said = json.loads((home.reports / "gate" / "luna-2" / "gate.json").read_text())
    assert (said["promoted"], said["champion"], said["reasons"]) == (True, REAL, list(second.reasons))
    assert said["settings"]["margin"] == 0.05
    numbers = {check["name"]: check["numbers"] for check in said["checks"]}
    assert numbers["cpm"]["difference"] == pytest.approx(0.1)

    tags = version_tags(home, BETTER_REAL)
    assert (tags["luna.gate"], tags["luna.gate.champion"], tags["luna.gate.alias"]) == ("promoted", REAL, "champion")
    assert "better beyond chance: CPM" in tags["luna.gate.reasons"]
    assert json.loads(tags["luna.gate.numbers"]) == {name: each for name, each in numbers.items() if each}
    assert "@champion by the gate: malignant sensitivity" in tags["luna.history.1"]

    run = last_run(home)
    assert run.info.run_name == "gate luna-2"
    assert {name: run.data.tags[name] for name in tags if name.startswith("luna.gate")} == {
        name: value for name, value in tags.items() if name.startswith("luna.gate")
    }
    assert run.data.tags["luna.pipeline"] == "p1"
    assert run.data.metrics["gate/cpm/challenger"] == pytest.approx(0.7)
    client = MlflowClient(tracking_uri=tracking.tracking_uri(home))
    assert json.loads(Path(client.download_artifacts(run.info.run_id, "gate.json")).read_text()) == said

    page = artifacts["luna-gate"]
    assert page.startswith("# `models:/luna/2` becomes @champion\n\nReal scans, against `models:/luna/1`. Not for clin")
    assert "- better beyond chance: CPM, malignancy AUC, malignant sensitivity\n" in page
    rows = {row["check"]: row["passed"] for row in artifacts["luna-gate-checks"]}
    assert set(rows.values()) == {True}
    assert {"malignant_sensitivity", "cpm", "malignancy_auc", "gain", "unseen", "whole"} <= rows.keys()


@pytest.mark.parametrize(("gained", "words"), [(-0.2, "lower by more than the margin"), (0.0, "nothing is gained")])
def test_a_worse_bundle_and_a_tie_are_refused_and_nothing_moves(
    home: Home, artifacts: dict[str, Any], gained: float, words: str
) -> None:
    promote(home, REAL, "champion", "first")
    decision = ask(home, BETTER_REAL, REAL, gained=gained)
    assert not decision.promoted
    assert (alias_of(home, "champion"), alias_of(home, "previous")) == (REAL, None)
    tags = version_tags(home, BETTER_REAL)
    assert (tags["luna.gate"], "luna.history.1" in tags) == ("refused", False)
    assert words in tags["luna.gate.reasons"]
    assert words in artifacts["luna-gate"]
    assert "does not become @champion" in artifacts["luna-gate"]
    assert words in next(row["what"] for row in artifacts["luna-gate-checks"] if not row["passed"])
    assert next(one for one in list_bundles(home) if one.uri == BETTER_REAL).decision.startswith("refused: ")


def test_a_champion_that_was_not_scored_is_not_replaced(home: Home) -> None:
    promote(home, REAL, "champion", "first")
    for champion, given in ((None, None), (BETTER_REAL, scores())):  # nobody told, or of another one
        decision = gate.fn(
            BETTER_REAL, champion, scores(0.1), given, series_uids=SERIES, malignant=40, set_aside=0,
            pipeline=Pipeline(home=home, pipeline_id="p1", origin="real", seed=0),
        )  # fmt: skip
        if champion is None:
            assert decision.reasons == (f"{REAL} was not scored on these scans",)
        assert not decision.promoted
    assert alias_of(home, "champion") == REAL


def test_the_champion_itself_keeps_what_was_said_of_it(home: Home) -> None:
    ask(home, REAL)
    before, file = version_tags(home, REAL), home.reports / "gate" / "luna-1" / "gate.json"
    text = file.read_text()
    assert json.loads(text)["promoted"]
    decision = ask(home, "models:/luna@champion", "models:/luna@champion")
    assert (decision.promoted, decision.reasons) == (False, ("it is @champion already",))
    assert version_tags(home, REAL) == before
    assert file.read_text() == text
    assert last_run(home).data.tags["luna.gate"] == "refused"


# --- facts that the registry knows ---


def test_a_bundle_that_has_seen_the_scans_is_refused(home: Home) -> None:
    # Of the toy models' scans 9.1 trained them, 9.2 chose them, and 9.3 was kept for this.
    assert TRAINED_ON == {"9.1": "train", "9.2": "val", "9.3": "test"}
    assert ask(home, REAL, series_uids=(*SERIES, "9.3")).promoted
    forget_aliases(home)
    for seen in ("9.1", "9.2"):
        decision = ask(home, REAL, series_uids=(*SERIES, seen))
        assert len(decision.reasons) == 1
        assert (
            f"learned from, or was chosen on, 1 of the 61 test scans or their patients (such as {seen})"
            in (decision.reasons[0])
        )
    assert alias_of(home, "champion") is None


def test_a_patient_that_it_learned_from_counts_too(home: Home) -> None:
    a, b = "0123456789abcdef", "fedcba9876543210"
    home.split_csv.write_text(f"series_uid,split,patient\n9.1,train,{a}\n8.5,test,{a}\n8.6,test,{b}\n")
    decision = ask(home, REAL)
    assert not decision.promoted
    assert "1 of the 60 test scans or their patients (such as 8.5)" in decision.reasons[0]


def test_what_a_model_started_from_has_seen_counts_too(home: Home) -> None:
    parent = toy_model(home, "classification", scans={"8.7": "train"})
    uri = toy_bundle(home, malignancy=toy_model(home, "malignancy", parent=parent))
    decision = ask(home, uri)
    assert "its malignancy model" in decision.reasons[0]
    assert "such as 8.7" in decision.reasons[0]


def test_a_bundle_that_does_not_say_what_it_learned_from_is_refused(home: Home) -> None:
    uri = toy_bundle(home, nodule=toy_model(home, "classification", scans=None))
    (reason,) = ask(home, uri).reasons
    assert "its nodule model" in reason
    assert "does not say which scans taught it" in reason
    # As a champion that a person chose it may be beaten all the same.
    promote(home, uri, "champion", "published weights", by="human")
    decision = ask(home, REAL, uri, gained=0.1)
    assert decision.promoted
    assert decision.reasons[-1].startswith(f"the score of {uri} may flatter it: its nodule model")


def test_a_partial_bundle_is_refused(tmp_path: Path, new_home: Callable[[Path], Home]) -> None:
    fresh = new_home(tmp_path)
    uri = toy_bundle(fresh)
    model = registry.read_bundle(fresh, uri)["malignancy"]
    shutil.rmtree(tracking.download_model(fresh, model))
    (reason,) = ask(fresh, uri).reasons
    assert reason.startswith(f"its malignancy model is not to be had: {model}")
    file = next(tracking.download_model(fresh, uri).rglob("bundle.json"))
    fields = json.loads(file.read_text())
    del fields["nodule"]
    file.write_text(json.dumps(fields))
    assert ask(fresh, uri).reasons == ("the bundle lacks nodule",)
    assert alias_of(fresh, "champion") is None


def test_a_bundle_with_a_file_that_was_not_registered_is_refused(
    tmp_path: Path, new_home: Callable[[Path], Home]
) -> None:
    fresh = new_home(tmp_path)
    uri = toy_bundle(fresh)
    model = registry.read_bundle(fresh, uri)["nodule"]
    other = tracking.download_model(fresh, toy_model(fresh, "classification")) / "weights.safetensors"
    copy = next((tracking.download_model(fresh, uri) / "artifacts").rglob(model.removeprefix("models:/")))
    shutil.rmtree(copy)
    (reason,) = ask(fresh, uri).reasons
    assert "arch.json: cannot be read" in reason
    shutil.copytree(tracking.download_model(fresh, model), copy)
    shutil.copy(other, tracking.download_model(fresh, model) / "weights.safetensors")
    (reason,) = ask(fresh, uri).reasons  # a network of its own, but not the one that was judged
    assert f"weights.safetensors of its nodule model {model} is not the file that was registered" in reason
    assert alias_of(fresh, "champion") is None
    (reason,) = ask(fresh, old_bundle(fresh)).reasons
    assert "luna model promote registers it anew" in reason


def test_a_mixed_bundle_is_refused(home: Home) -> None:
    other = NoduleNetConfig(crop_shape=(16, 16, 16), depth=2, width=2, spacing_mm=(1, 1, 1))
    uri = toy_bundle(home, malignancy=toy_model(home, "malignancy", config=other))
    (reason,) = ask(home, uri).reasons
    assert "its models disagree about spacing_mm: nodule" in reason
    assert SMALL.spacing_mm is None


def test_scans_set_aside_and_the_settings_count(home: Home) -> None:
    assert "2 of 60 test scans set aside" in ask(home, REAL, set_aside=2).reasons[0]
    assert ask(home, REAL, set_aside=2, settings=GateSettings(max_set_aside_share=0.05)).promoted


def test_a_bundle_of_real_scans_is_judged_on_real_scans(home: Home) -> None:
    drawn = f"{UID_ROOT}.1.1{'0' * 24}0001"
    for given in ({"origin": "phantom"}, {"series_uids": (*SERIES, drawn)}):
        decision = ask(home, REAL, **given)  # type: ignore[arg-type]
        assert "synthetic scans: a champion is judged on real ones" in decision.reasons[0]


# --- synthetic scans ---


def test_phantoms_move_the_demo_alone(home: Home) -> None:
    promote(home, REAL, "champion", "first")
    first = ask(home, DRAWN, gained=-0.4, origin="phantom", malignant=3)
    assert (first.promoted, first.alias) == (True, "demo")
    assert any("CPM 0.200 is below the floor" in reason for reason in first.reasons)
    assert not ask(home, BETTER_DRAWN, DRAWN, origin="phantom").promoted
    assert to_beat(home, "phantom") == DRAWN
    assert ask(home, BETTER_DRAWN, DRAWN, gained=0.3, origin="phantom").promoted
    assert {alias: alias_of(home, alias) for alias in ("champion", "previous", "demo")} == {
        "champion": REAL, "previous": None, "demo": BETTER_DRAWN,
    }  # fmt: skip


# --- when it fails ---


def test_a_bundle_that_is_not_there(home: Home) -> None:
    with pytest.raises(TrackingError, match="models:/luna/99: no such bundle"):
        ask(home, "models:/luna/99")


def told(home: Home, uri: str) -> dict[str, Any]:
    """What `gate.json` says of a bundle."""
    said: dict[str, Any] = json.loads((home.reports / "gate" / uri[8:].replace("/", "-") / "gate.json").read_text())
    return said


def test_a_move_that_fails_is_no_promotion(
    home: Home, monkeypatch: pytest.MonkeyPatch, artifacts: dict[str, Any]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise TrackingError("the database is locked; nothing moved")

    monkeypatch.setattr(gating.promotion, "promote", fail)
    with pytest.raises(TrackingError, match="the database is locked"):
        ask(home, REAL)
    words = "could not become @champion: the database is locked; nothing moved"
    said = told(home, REAL)
    assert (said["promoted"], said["reasons"]) == (False, [words])
    assert [(one["name"], one["words"]) for one in said["checks"] if not one["passed"]] == [("moved", words)]
    for tags in (version_tags(home, REAL), last_run(home).data.tags):
        assert (tags["luna.gate"], tags["luna.gate.reasons"]) == ("refused", words)
    page = artifacts["luna-gate"]
    assert page.startswith(f"# `{REAL}` does not become @champion\n")
    assert f"Not for clinical use.\n\n- {words}\n" in page


@pytest.mark.parametrize("stood", [REAL, None])
def test_whoever_comes_between_judgement_and_move_is_not_displaced(
    home: Home, monkeypatch: pytest.MonkeyPatch, stood: str | None
) -> None:
    better = toy_bundle(home)
    if stood:
        promote(home, stood, "champion", "first")

    def meanwhile(*given: Any, **more: Any) -> None:
        promote(home, better, "champion", "another gate's winner")
        promote(*given, **more)

    monkeypatch.setattr(gating.promotion, "promote", meanwhile)
    words = f"@champion is {better} by now, {BETTER_REAL} was judged against {stood or 'nobody'}; judge it again"
    with pytest.raises(TrackingError, match=f"^{words}$"):
        ask(home, BETTER_REAL, stood, gained=0.1)
    assert (alias_of(home, "champion"), alias_of(home, "previous")) == (better, stood)
    assert told(home, BETTER_REAL)["reasons"] == [f"could not become @champion: {words}"]
    assert version_tags(home, BETTER_REAL)["luna.gate"] == "refused"


def test_two_gates_that_promote_the_same_bundle_tell_of_one_promotion(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(home, REAL, "champion", "first")

    def meanwhile(*given: Any, **more: Any) -> None:
        monkeypatch.setattr(gating.promotion, "promote", promote)
        ask(home, BETTER_REAL, REAL, gained=0.1)
        promote(*given, **more)

    monkeypatch.setattr(gating.promotion, "promote", meanwhile)
    with pytest.raises(TrackingError, match=f"{BETTER_REAL}: is @champion already"):
        ask(home, BETTER_REAL, REAL, gained=0.1)
    assert (alias_of(home, "champion"), alias_of(home, "previous")) == (BETTER_REAL, REAL)
    assert told(home, BETTER_REAL)["promoted"]
    assert version_tags(home, BETTER_REAL)["luna.gate"] == "promoted"


def test_a_page_says_what_the_scans_are(home: Home) -> None:
    page = markdown(ask(home, DRAWN, origin="phantom"), "synthetic scans")
    assert "Synthetic scans, there was no @demo before. Not for clinical use." in page
    assert "| cpm" not in page
    assert "| least_cpm | passed | CPM 0.600 reaches the floor of 0.5 |" in page
