"""What is done anew is done once, also when it takes two runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from lungml.home import Home
from tasks.rounds import REDOS, RoundError, open_round, parse_stages, with_trainings

WISH = {"recipe": "demo", "seed": 0}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_no_wish_is_no_round(home: Home) -> None:
    assert open_round(home, [], WISH) is None
    assert not home.rounds.exists()


def test_each_thing_is_due_once_and_only_in_its_stage(home: Home) -> None:
    again = open_round(home, ["prepare"], WISH)
    assert again is not None
    assert again.due("prepare", "mask 1.2.3")
    assert not again.due("evaluate", "mask 1.2.3")
    again.done("prepare", "mask 1.2.3")
    again.done("evaluate", "mask 1.2.3")
    assert not again.due("prepare", "mask 1.2.3")
    assert again.due("prepare", "mask 1.2.4")


def test_a_run_that_was_cut_short_is_gone_on_with(home: Home) -> None:
    first = open_round(home, ["segmentation"], WISH)
    assert first is not None
    first.done("segmentation", "x")
    second = open_round(home, ["segmentation"], WISH)
    assert second == first
    assert not second.due("segmentation", "x")


@pytest.mark.parametrize(("stages", "wish"), [(["evaluate"], WISH), (["segmentation"], {**WISH, "seed": 1})])
def test_another_wish_is_another_round(home: Home, stages: list[str], wish: dict[str, object]) -> None:
    first, other = open_round(home, ["segmentation"], WISH), open_round(home, stages, wish)
    assert first is not None
    assert other is not None
    assert first.id != other.id


def test_a_closed_round_is_over(home: Home) -> None:
    first = open_round(home, ["segmentation"], WISH)
    assert first is not None
    first.done("segmentation", "x")
    first.close()
    assert not first.folder.exists()
    first.done("segmentation", "y")  # of a second run that was in it still
    assert not first.folder.exists()
    assert not first.due("segmentation", "z")  # what the run that closed it made stays
    second = open_round(home, ["segmentation"], WISH)
    assert second is not None
    assert second.id != first.id
    assert second.due("segmentation", "x")
    first.close()  # twice is nothing


def test_a_half_deleted_round_is_not_gone_on_with(home: Home) -> None:
    first = open_round(home, ["prepare"], WISH)
    assert first is not None
    (first.folder / "round.json").write_text("{")
    second = open_round(home, ["prepare"], WISH)
    assert second is not None
    assert second.id != first.id


def test_stages_come_in_order_and_once(home: Home) -> None:
    assert parse_stages(["evaluate", "prepare", "prepare"]) == ("prepare", "evaluate")
    assert with_trainings(True, ["malignancy", "evaluate"]) == REDOS[1:]
    assert with_trainings(False, []) == ()


@pytest.mark.parametrize("name", ["training", "", "../../etc"])
def test_an_unknown_stage_is_named(home: Home, name: str) -> None:
    with pytest.raises(RoundError, match="choose one of prepare, segmentation, classification, malignancy, evaluate"):
        open_round(home, [name], WISH)
