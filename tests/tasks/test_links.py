"""Where MLflow's UI is, and that no password goes there."""

from __future__ import annotations

import pytest

from lungml.home import Home
from tasks import tracking
from tasks.links import MLFLOW_URL, Links


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("http://127.0.0.1:5000/", "http://127.0.0.1:5000"),
        ("https://ann:s3cret@mlflow.example.org/team/?token=abc#/x", "https://mlflow.example.org/team"),
        ("http://[::1]:5000", "http://[::1]:5000"),
        ("sqlite:////data/mlflow.db", None),
        ("postgresql://ann:s3cret@db/mlflow", None),
    ],
)
def test_a_browsers_address_has_no_credentials(
    given: str, base: str | None, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MLFLOW_URL, given)
    assert Links.of(home).base == base
    monkeypatch.delenv(MLFLOW_URL)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert Links.of(home).base == base


def test_the_ui_that_was_named_comes_before_the_tracking_uri(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MLFLOW_URL, "http://ui:1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://api:2")
    assert Links.of(home).base == "http://ui:1"


def test_links_lead_to_the_pages_of_mlflow(home: Home) -> None:
    links = Links(home=home, base="http://ui:1")
    experiment = tracking.experiment_id_of(home, "malignancy")
    page, kind = f"http://ui:1/#/experiments/{experiment}", "?workflowType=machine_learning"
    assert links.run("malignancy", "abc", "best seed 0") == f"[best seed 0]({page}/runs/abc{kind})"
    assert links.model("malignancy", "models:/m-1") == f"[models:/m-1]({page}/models/m-1{kind})"
    assert links.bundle("models:/luna/7") == f"[models:/luna/7](http://ui:1/#/models/luna/versions/7{kind})"


def test_without_a_ui_there_is_the_name(home: Home) -> None:
    links = Links(home=home, base=None)
    assert links.run("malignancy", "abc", "best seed 0") == "`best seed 0`"
    assert links.bundle("models:/luna/7") == "`models:/luna/7`"
