"""A card of made-up numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lungml.model_card import DOES, ModelCard, write_card

CARD = ModelCard(
    name="demo-malignancy-finetuned",
    stage="malignancy",
    origin="phantom",
    digests={"train": "a" * 64, "val": "b" * 64, "test": "c" * 64},
    sizes={"train": {"scans": 21, "nodules": 1097}, "val": {"scans": 8}},
    recipe="demo",
    settings={"fit.epochs": 6, "augmentation.flip": True},
    best_epoch=4,
    selected_by="auc",
    metrics={"val": {"auc": 0.8284, "precision": math.nan}, "test": {"auc": 0.679}},
    baselines={"val": {"AUC of the diameter alone": 0.86}, "test": {"AUC of the diameter alone": 0.872}},
    calibration={"val": (0.07, 0.024)},
    parameters=222_220,
    parents={"classification": "models:/m-1"},
    commit="abc123-dirty",
)


def test_a_card_tells_data_metrics_and_where_it_came_from() -> None:
    text = write_card(CARD)
    lines = text.splitlines()
    assert lines[0] == "# demo-malignancy-finetuned"
    assert lines[2] == "**Not for clinical use.** Trained on synthetic scans."
    assert "| split | scans | nodules | digest |\n| --- | ---: | ---: | ---: |" in text
    assert "| train | 21 | 1,097 | `aaaaaaaaaaaa` |" in lines
    assert "| test |  |  | `cccccccccccc` |" in lines
    assert "| split | auc | precision | AUC of the diameter alone | ECE | Brier |" in lines
    assert "| val | 0.828 | none | 0.860 | 0.070 | 0.024 |" in lines
    assert "| test | 0.679 |  | 0.872 |  |  |" in lines
    assert "- recipe: `demo`, epoch 4 kept, the best by validation auc" in lines
    assert "- code: `abc123-dirty`" in lines
    assert "- parent (classification): `models:/m-1`" in lines
    assert "222,220 weights" in text
    assert "`fit.epochs` 6, `augmentation.flip` True" in text
    assert "at least 0.5." in text


@pytest.mark.parametrize("stage", DOES)
def test_every_stage_says_what_it_is_not_for(stage: str) -> None:
    bare = replace(CARD, stage=stage, origin="real", calibration={}, baselines={}, parents={}, commit="", settings={})
    text = write_card(bare)
    assert "**Not for clinical use.**\n" in text
    assert "synthetic" not in text
    assert "no known commit" in text
    assert "ECE" not in text
    assert "## Limits\n\n- " in text
    assert len(text) < 8000  # of a run's description MLflow keeps no more


@pytest.mark.parametrize(
    ("change", "message"), [({"stage": "lung"}, "unknown stage"), ({"origin": "x"}, "unknown ori")]
)
def test_a_card_of_something_else_is_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CARD, **change)
