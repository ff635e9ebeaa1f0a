"""A bundle's card of a score whose numbers are known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lungml.bundle_card import BundleCard, CardModel, shortened, write_bundle_card
from tests.lungml.test_evaluation_report import CARD as FEW
from tests.lungml.test_evaluation_report import MANY, UID

CARD = BundleCard(
    uri="models:/luna/7",
    origin="real",
    recipe="best",
    commit="0123456789abcdef-dirty",
    models=(
        CardModel(member="segmentation", uri="models:/m-1", recipe="best", seed="3"),
        CardModel(member="nodule", uri="models:/m-2", parents=("models:/m-1",)),
    ),
    digests={"train": "a" * 64, "test": "b" * 64},
    sizes={"train": {"scans": 1021, "nodules": 3, "malignant": 1}},
    scores={"val": FEW, "test": MANY},
    calibration={"nodule": "platt", "malignancy": "none"},
    run="run1",
    pipeline="flow1",
    parameters={"recipe": "best", "overrides": None, "seed": 3},
    environment={"torch": "2.13.0"},
    missing=("nothing says which run made it",),
)


def test_a_card_tells_scores_with_bands_beside_the_diameter() -> None:
    text = write_bundle_card(CARD)
    lines = text.splitlines()
    assert lines[0] == "# luna bundle models:/luna/7"
    assert lines[2] == "> **Not for clinical use.**"
    test = text[text.index("On the test scans") :]
    low, high = MANY.froc.cpm_band
    assert f"| CPM, the challenge's score | {MANY.froc.cpm:.3f} | {low:.3f} to {high:.3f} |" in test
    # Of three malignant and three benign nodules the one malignant one that was not read is in no AUC: 0.8 beats all
    # three benign ones, 0.3 all but the one with 0.4: 5 of 6 pairs; the diameter, 20 and 12 mm, beats all.
    assert "| malignancy AUC, at annotated centres | 0.833 | " in test
    assert "| AUC of the diameter alone, same nodules | 1.000 | " in test
    assert "| model less diameter | -0.167 | " in test
    val = text[text.index("On the validation scans") : text.index("On the test scans")]
    assert f"| CPM, the challenge's score | {FEW.froc.cpm:.3f} | " in val
    assert "9 of 18" in test.replace("\N{NO-BREAK SPACE}", " ")
    assert "of which 3 could not be read" in test


def test_a_card_tells_data_models_and_where_they_come_from() -> None:
    lines = write_bundle_card(CARD).splitlines()
    assert "| train | 1,021 | 3 | 1 | aaaaaaaaaaaa |" in lines
    assert "| test |  |  |  | bbbbbbbbbbbb |" in lines
    assert "| segmentation | models:/m-1 | best | 3 | none |" in lines
    assert "| nodule | models:/m-2 | unknown | unknown | models:/m-1 |" in lines
    assert "- recipe best, code 0123456789ab-dirty" in lines
    assert "- parameters: recipe best, seed 3" in lines
    assert "- nothing says which run made it" in lines
    assert "- Read a scan: luna read SCAN --bundle models:/luna/7" in lines


def test_a_card_names_limits_and_no_scan() -> None:
    text = write_bundle_card(CARD)
    assert "synthetic" not in text
    assert "was not measured" in text  # of any group of people
    assert "By diameter, test scans:" in text
    assert "Not known of any nodule here: texture." in text
    assert UID.format(1) not in text
    drawn = write_bundle_card(replace(CARD, origin="phantom"))
    assert "> **Not for clinical use. Made of synthetic scans.**" in drawn
    assert "- It learned from synthetic scans: no figure here says anything about patients." in drawn.splitlines()


def test_what_nothing_says_is_unknown() -> None:
    text = write_bundle_card(replace(CARD, digests={}, scores={}, commit="", run="", pipeline="", parameters={}))
    assert "Its run says nothing of its data." in text
    assert "Nothing says how it does." in text
    assert "code of no known commit" in text
    assert "end-to-end run unknown, pipeline unknown" in text
    assert "parameters: unknown" in text


@pytest.mark.parametrize("changes", [{"origin": "drawn"}, {"scores": {"holdout": MANY}}])
def test_what_cannot_be_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="unknown"):
        replace(CARD, **changes)  # type: ignore[arg-type]


def test_a_short_card_ends_with_a_whole_part() -> None:
    text, whole = write_bundle_card(CARD), "The whole card is elsewhere."
    assert shortened(text, len(text), whole) == text
    short = shortened(text, len(text) - 1, whole)
    assert len(short) < len(text)
    assert short.endswith(f"\n\n{whole}\n")
    assert "## How it was made" in short
    assert "## How to use it" not in short
    for characters in (300, 1000, 3000):
        assert len(shortened(text, characters, whole)) <= characters
    assert "## " not in shortened("# T\n\nwords\n\n## A\n\nlonger than that\n", 30, "More.")
