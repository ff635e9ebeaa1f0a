"""A model in the place of a training: which may, and what is known of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lungml.home import Home
from tasks import reuse, tracking
from tasks.reuse import ReuseError, as_trained, check_new_to, check_origin, parse_reused
from tasks.tracking import TrackingError
from tests.tasks.toy_bundles import toy_model


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, new_home: Callable[[Path], Home]) -> Home:
    return new_home(tmp_path_factory.mktemp("reuse"))


def scans(**sides: str) -> list[Any]:
    return [SimpleNamespace(series_uid=uid.replace("_", "."), split=side) for uid, side in sides.items()]


def test_uris_are_sorted_by_stage() -> None:
    given = {"segmentation": "models:/m-1", "classification": ["models:/m-2", "models:/m-3"]}
    assert parse_reused(given) == {
        "segmentation": ("models:/m-1",),
        "classification": ("models:/m-2", "models:/m-3"),
    }


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"evaluate": "models:/m-1"}, "no stage 'evaluate'"),
        ({"segmentation": "models:/luna@champion"}, "give models:/m-"),
        ({"segmentation": ""}, "give models:/m-"),
        ({"segmentation": ["models:/m-1", "models:/m-2"]}, "one U-Net"),
        ({"malignancy": ["models:/m-1", "models:/m-1"]}, "each once"),
        ({"malignancy": []}, "give the URI"),
    ],
)
def test_what_cannot_be_reused_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ReuseError, match=words):
        parse_reused(given)


def test_a_stage_is_not_both_trained_again_and_given() -> None:
    with pytest.raises(ReuseError, match="ask for one of the two"):
        parse_reused({"malignancy": "models:/m-1"}, ["evaluate", "malignancy"])
    assert parse_reused({"malignancy": "models:/m-1"}, ["evaluate"]) == {"malignancy": ("models:/m-1",)}


def test_what_its_run_says_of_a_model_comes_along(home: Home) -> None:
    uri = toy_model(home, "classification")
    client = tracking.client_of(home)
    run_id = client.get_logged_model(uri.removeprefix("models:/")).source_run_id
    for name, value in {"val/best_auc": 0.9, "val/best_threshold": 0.3, "val/auc": 0.8, "test/auc": 0.85}.items():
        client.log_metric(run_id, name, value)
    client.log_metric(run_id, "best_epoch", 7)
    model = as_trained(home, "classification", uri)
    assert (model.uri, model.name, model.best_epoch) == (uri, "toy", 7)
    assert (model.val, model.test) == ({"auc": 0.9, "threshold": 0.3}, {"auc": 0.85})


def test_a_classifier_from_elsewhere_says_yes_from_one_half_on(home: Home) -> None:
    assert as_trained(home, "malignancy", toy_model(home, "malignancy", scans=None)).val == {"threshold": 0.5}
    assert as_trained(home, "segmentation", toy_model(home, "segmentation", scans=None)).val == {}


@pytest.mark.parametrize(
    ("sides", "deed"),
    [
        ({"9_1": "train", "9_2": "val", "9_3": "test", "9_4": "test"}, None),  # as it was made
        ({"9_2": "train", "9_3": "val"}, None),  # what tested it may choose or teach the next
        ({"9_1": "val"}, "learned from"),
        ({"9_1": "test"}, "learned from"),
        ({"9_2": "test"}, "was chosen on"),
    ],
)
def test_a_model_that_knows_the_judging_scans_is_refused(home: Home, sides: dict[str, str], deed: str | None) -> None:
    uri = toy_model(home, "classification")
    if deed is None:
        assert check_new_to(home, "classification", uri, scans(**sides)) == []
    else:
        with pytest.raises(ReuseError, match=f"{deed} 9.* here is of the (val|test) scans"):
            check_new_to(home, "classification", uri, scans(**sides))


def test_one_that_started_from_such_a_model_is_refused_too(home: Home) -> None:
    parent = toy_model(home, "classification", scans={"8.1": "train"})
    with pytest.raises(ReuseError, match=r"learned from 8\.1"):
        check_new_to(home, "malignancy", toy_model(home, "malignancy", parent=parent), scans(**{"8_1": "test"}))


@pytest.mark.parametrize(("learned", "origin"), [("phantom", "real"), ("real", "phantom")])
def test_a_model_of_another_origin_is_refused_before_the_others_are_trained(
    home: Home, learned: str, origin: Any
) -> None:
    uri = toy_model(home, "segmentation", origin=learned)
    check_origin(home, uri, learned)  # type: ignore[arg-type]
    with pytest.raises(ReuseError, match=f"{uri}: learned from .* scans; a bundle of .* scans cannot hold it"):
        check_origin(home, uri, origin)


def test_silence_is_told(home: Home) -> None:
    uri = toy_model(home, "malignancy", scans=None)
    (note,) = check_new_to(home, "malignancy", uri, scans(**{"9_1": "test"}))
    assert uri in note
    assert "no run says" in note


def test_a_model_that_is_not_there_is_named(home: Home) -> None:
    with pytest.raises(TrackingError, match="models:/m-gone"):
        tracking.load_model(home, "models:/m-gone", expect_stage="malignancy")


def test_a_model_whose_run_is_gone_is_not_taken_for_one_from_elsewhere(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = toy_model(home, "classification")
    monkeypatch.setattr(reuse, "facts_of_run", lambda home, run_id: None)
    with pytest.raises(ReuseError, match=rf"^{uri}: its run \S+ is gone"):
        as_trained(home, "classification", uri)
