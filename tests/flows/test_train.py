"""What `luna train` refuses before any work; a whole training is in `test_end_to_end.py`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from flows.train import train_stage
from lungml.home import Home
from lungml.models.nodule_net import NoduleNet
from lungml.models.unet import UNet
from lungml.recipes import RecipeError
from tasks import tracking
from tasks.bundles import stage_example
from tasks.tracking import TrackingError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("LUNA_HOME", str(tmp_path / "artifacts"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Home.from_env()


def train(stage: str, **options: Any) -> Any:
    """The flow's body, without a Prefect server."""
    return train_stage.fn(stage, "/no/such/folder", recipe="demo", **options)


def log(home: Home, stage: str, model: Any) -> str:
    with tracking.open_run(home, stage, name="toy", sample_every_s=None) as run:
        arch = {"stage": stage, "config": asdict(model.config)}
        return tracking.log_model(run, model, arch=arch, example=stage_example(model), name="toy")


def test_a_classifier_that_learns_from_candidates_needs_the_u_net(home: Home) -> None:
    with pytest.raises(RecipeError, match=r"give the U-Net with --segmentation .*--set classification.mined=False"):
        train("classification")


@pytest.mark.parametrize("uri", ["models:/luna-segmentation@best", "models:/luna/1", "best"])
def test_an_alias_is_no_parent(home: Home, uri: str) -> None:
    with pytest.raises(RecipeError, match=r"is no model's own URI; give models:/m-"):
        train("classification", segmentation=uri)


def test_a_parent_of_the_wrong_stage_is_refused(home: Home) -> None:
    unet, nodule = log(home, "segmentation", UNet()), log(home, "classification", NoduleNet())
    with pytest.raises(TrackingError, match="is a classification model, a segmentation model was asked for"):
        train("classification", segmentation=nodule)
    with pytest.raises(TrackingError, match="is a segmentation model, a classification model was asked for"):
        train("malignancy", nodule=unet)
    with pytest.raises(TrackingError, match="models:/m-none: no such model"):
        train("malignancy", nodule="models:/m-none")
