"""What models, those that they started from, and their patients' other scans have to do with a bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lungml.home import Home
from lungml.phantom import UID_ROOT
from tasks.provenance import ancestry, learned_origin, used_by
from tests.tasks.toy_bundles import toy_fields, toy_model

DRAWN = f"{UID_ROOT}.1.1{'0' * 24}0001"
A, B = "0123456789abcdef", "fedcba9876543210"  # marks of patients


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory, new_home: Callable[[Path], Home]) -> Home:
    return new_home(tmp_path_factory.mktemp("provenance"))


@pytest.fixture
def home(stocked: Home) -> Home:
    stocked.split_csv.unlink(missing_ok=True)
    return stocked


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ({"origin": "real"}, "real"),
        ({"origin": "phantom"}, "phantom"),
        ({"origin": "real", "scans": {"9.1": "train", DRAWN: "train"}}, "phantom"),  # whatever the run says
        ({"scans": None}, None),
    ],
)
def test_a_model_says_what_it_learned_from(home: Home, given: dict[str, Any], origin: str) -> None:
    assert learned_origin(home, toy_model(home, "malignancy", **given)) == origin


def test_what_a_model_started_from_counts_too(home: Home) -> None:
    drawn = toy_model(home, "classification", origin="phantom")
    middle = toy_model(home, "classification", parent=drawn)
    last = toy_model(home, "malignancy", parent=middle)
    assert ancestry(home, last) == (last, middle, drawn)
    assert learned_origin(home, last) == "phantom"
    orphan = toy_model(home, "malignancy", parent="models:/m-gone")
    assert ancestry(home, orphan) == (orphan, "models:/m-gone")
    assert learned_origin(home, orphan) == "real"


def test_each_model_is_told_of_with_those_before_it(home: Home) -> None:
    parent = toy_model(home, "classification", scans={"1.1": "train", "1.2": "val", "1.3": "test"})
    malignancy = toy_model(home, "malignancy", scans={"1.3": "train", "1.4": "val", "1.5": "test"}, parent=parent)
    other = toy_model(home, "classification", scans={"1.6": "train"})
    fields = toy_fields(home, nodule=[parent, other], malignancy=malignancy)
    segmentation, first, second, last = used_by(home, fields)
    assert [one.member for one in (segmentation, first, second, last)] == [
        "segmentation", "nodule", "nodule", "malignancy",
    ]  # fmt: skip
    assert (first.uri, first.learned, first.chose) == (parent, {"1.1"}, {"1.2"})
    assert (second.uri, second.learned, second.chose) == (other, {"1.6"}, frozenset())
    assert (last.uri, last.learned, last.chose, last.silent) == (malignancy, {"1.1", "1.3"}, {"1.2", "1.4"}, ())
    assert [last.deed(f"1.{number}") for number in range(1, 6)] == [
        "learned from", "was chosen on", "learned from", "was chosen on", "",
    ]  # fmt: skip


def test_other_scans_of_their_patients_count_whichever_table_names_them(home: Home) -> None:
    home.split_csv.write_text(f"series_uid,split,patient\n1.1,train,{A}\n1.3,test,{A}\n1.4,test,{B}\n1.2,val,{B}\n")
    model = toy_model(home, "segmentation", scans={"1.1": "train", "1.2": "val", "1.9": "test"})
    fields = toy_fields(home, segmentation=model)
    used = used_by(home, fields)[0]
    assert (used.learned, used.chose) == ({"1.1", "1.3"}, {"1.2", "1.4"})
    # The other table has other words for them: by both, 1.1 is of the patient of 1.3 and of that of 1.5.
    used = used_by(home, fields, patients={"1.1": "x", "1.5": "x", "1.6": "y", "1.9": "y"})[0]
    assert (used.learned, used.chose) == ({"1.1", "1.3", "1.5"}, {"1.2", "1.4"})


def test_a_model_that_does_not_say_is_named_and_may_be_taken_for_what_the_home_says(home: Home) -> None:
    home.split_csv.write_text(f"series_uid,split,patient\n1.1,train,{A}\n1.3,test,{A}\n")
    silent = toy_model(home, "classification", scans=None)
    malignancy = toy_model(home, "malignancy", scans={"1.4": "train"}, parent=silent)
    fields = toy_fields(home, nodule=silent, malignancy=malignancy)
    _, nodule, last = used_by(home, fields)
    assert (nodule.silent, last.silent) == ((silent,), (silent,))
    assert (nodule.learned, last.learned) == (frozenset(), {"1.4"})
    _, nodule, last = used_by(home, fields, unsaid={"1.1": "train", "1.2": "val"})
    assert (nodule.silent, last.silent) == ((silent,), (silent,))
    assert (nodule.learned, last.learned) == ({"1.1", "1.3"}, {"1.1", "1.3", "1.4"})
    assert nodule.chose == last.chose == {"1.2"}
