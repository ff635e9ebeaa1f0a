"""Chance warns in one run of a hundred, and what changed is named."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lungml import drift
from lungml.drift import answer_numbers, compare, enough, input_numbers
from lungml.drift_report import DriftReport
from lungml.profiles import INPUT_NAMES, PERCENTILES, AnswersProfile, ScanProfile

Change = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def some_scans(rng: np.random.Generator, count: int) -> list[ScanProfile]:
    """Scans of several scanners, as different from each other as a hospital's are."""
    profiles = []
    for number in range(count):
        breath = rng.normal(0, 25)
        slice_mm = float(rng.choice([0.625, 1.25, 2.5], p=[0.3, 0.5, 0.2]))
        height_mm = rng.normal(330, 30)
        levels = {f"hu_p{p:02d}": hu + breath + rng.normal(0, 10) for p, hu in zip(PERCENTILES, LEVELS_HU)}
        values = {
            "pixel_spacing_mm": rng.normal(0.7, 0.06),
            "slice_spacing_mm": slice_mm,
            "slices": round(height_mm / slice_mm),
            "height_mm": height_mm,
            "field_mm": rng.normal(360, 30),
            **levels,
            "noise_hu": None if number == 0 else rng.lognormal(2.5, 0.3),
        }
        profiles.append(ScanProfile(series_uid=str(number), voxels="k", values=values))
    return profiles


LEVELS_HU = (-980, -900, -830, -400, 40, 220, 650)


def some_answers(rng: np.random.Generator, count: int, times: int = 1) -> list[AnswersProfile]:
    """Answers whose candidates of one scan go together, as they do."""
    profiles = []
    for number in range(count):
        candidates = times * int(rng.poisson(rng.gamma(6, 6)))
        sure = rng.beta(2, 6)
        probs = rng.beta(8 * sure + 0.2, 8 * (1 - sure) + 0.2, candidates)
        malignant = rng.random(int((probs >= 0.5).sum()))
        profiles.append(
            AnswersProfile(
                series_uid=str(number),
                candidates=candidates,
                nodules=len(malignant),
                prob_nodule=tuple(np.histogram(probs, 20, (0, 1))[0].tolist()),
                prob_malignant=tuple(np.histogram(malignant, 20, (0, 1))[0].tolist()),
            )
        )
    return profiles


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fourth of the shuffles: p is coarser, and no less true."""
    monkeypatch.setattr(drift, "SHUFFLES", 499)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("before", "now"), [(7, 14), (20, 20), (120, 30)])
def test_chance_alone_warns_of_scans_once_in_a_hundred(before: int, now: int) -> None:
    warned = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        first, second = (input_numbers(some_scans(rng, count)) for count in (before, now))
        warned += bool(compare(first, second, rng).drifted)
    assert warned <= 4  # of 1 % in truth, more come in one of 300 such tests


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("scans", [14, 60])
def test_chance_alone_warns_of_answers_once_in_a_hundred(scans: int) -> None:
    warned = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        first, second = (answer_numbers(some_answers(rng, scans)) for _ in range(2))
        warned += bool(compare(first, second, rng).drifted)
    assert warned <= 4


def test_the_same_scans_have_not_changed_at_all() -> None:
    numbers = input_numbers(some_scans(np.random.default_rng(0), 20))
    comparison = compare(numbers, numbers, np.random.default_rng(1))
    assert {(shift.psi, shift.distance, shift.p, shift.verdict) for shift in comparison.shifts} == {(0, 0, 1, "same")}


def all_thick(numbers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**numbers, "slice_spacing_mm": np.full_like(numbers["slice_spacing_mm"], 2.5)}


def brighter(numbers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**numbers, **{name: numbers[name] + 100 for name in HU}}


def half_the_slices(numbers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**numbers, "slices": numbers["slices"] / 2}


HU = {name for name in INPUT_NAMES if name.startswith("hu_p")}


@pytest.mark.parametrize(
    ("change", "names"), [(all_thick, {"slice_spacing_mm"}), (brighter, HU), (half_the_slices, {"slices"})]
)
@pytest.mark.parametrize("seed", range(5))
def test_what_changed_is_named(change: Change, names: set[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    before, now = input_numbers(some_scans(rng, 100)), input_numbers(some_scans(rng, 60))
    drifted = compare(before, change(now), rng, level=drift.LEVEL / 3).drifted
    assert {shift.quantity for shift in drifted} == names


@pytest.mark.parametrize("seed", range(5))
def test_twice_the_candidates_are_named(seed: int) -> None:
    rng = np.random.default_rng(seed)
    before, now = answer_numbers(some_answers(rng, 30)), answer_numbers(some_answers(rng, 30, times=2))
    drifted = compare(before, now, rng, level=drift.LEVEL / 3).drifted
    assert "candidates" in {shift.quantity for shift in drifted}


def test_a_large_change_of_few_scans_is_told_from_chance_or_not_told() -> None:
    rng = np.random.default_rng(0)
    before, now = input_numbers(some_scans(rng, 6)), input_numbers(some_scans(rng, 6))
    comparison = compare(before, now, rng)
    assert max(shift.psi for shift in comparison.shifts) > drift.PSI_DRIFTED  # by chance, as the table says beside it
    assert max(shift.psi_by_chance for shift in comparison.shifts) > drift.PSI_DRIFTED
    assert not comparison.drifted
    named = {shift.quantity for shift in compare(before, brighter(now), rng).drifted}
    assert named
    assert named <= HU


def test_a_small_change_of_many_scans_is_no_warning() -> None:
    rng = np.random.default_rng(0)
    before = {"height_mm": rng.normal(330, 30, 3000)}
    now = {"height_mm": rng.normal(334, 30, 3000)}
    (shift,) = compare(before, now, rng).shifts
    assert shift.p < 0.01
    assert shift.psi < drift.PSI_MOVED
    assert shift.verdict == "same"


def test_between_the_limits_it_has_moved() -> None:
    rng = np.random.default_rng(0)
    before, now = ({"height_mm": rng.normal(mean, 30, 1000)} for mean in (330, 342))
    (shift,) = compare(before, now, rng).shifts
    assert drift.PSI_MOVED < shift.psi < drift.PSI_DRIFTED
    assert shift.verdict == "moved"


def test_the_seed_decides() -> None:
    rng = np.random.default_rng(0)
    before, now = input_numbers(some_scans(rng, 12)), input_numbers(some_scans(rng, 9))
    once, again = (compare(before, now, np.random.default_rng(3)) for _ in range(2))
    assert once == again


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [(0, 9, False), (9, 0, False), (1, 20, False), (3, 5, False), (5, 5, True), (1, 199, True)],
)
def test_too_few_scans_tell_nothing(before: int, now: int, told: bool) -> None:
    # 3 and 5 scans can be divided in 56 ways: the two farthest apart are 1 in 28. 5 and 5 in 252, 1 in 126.
    assert enough(before, now) is told
    numbers = [{"height_mm": np.arange(count, dtype=float)} for count in (before, now)]
    assert bool(compare(*numbers, np.random.default_rng(0)).shifts) is told


def test_a_quantity_that_one_side_does_not_tell_is_left_out() -> None:
    before = {"height_mm": np.arange(20.0), "noise_hu": np.full(20, math.nan)}
    now = {"height_mm": np.arange(20.0), "noise_hu": np.arange(20.0)}
    assert [s.quantity for s in compare(before, now, np.random.default_rng(0)).shifts] == ["height_mm"]
    with pytest.raises(ValueError, match="cannot be compared"):
        compare(before, {"slices": np.arange(3.0)}, np.random.default_rng(0))


def test_a_warning_says_what_its_numbers_and_what_to_do() -> None:
    before, now = ({"slice_spacing_mm": np.full(count, mm)} for count, mm in ((30, 1.25), (12, 2.5)))
    report = DriftReport(
        bundle="models:/luna/4",
        reference="models:/luna/3",
        comparisons={"new_scans": compare(before, now, np.random.default_rng(0))},
        notes=("answers: there are none",),
        profile=Path("luna-4.json"),
    )
    (line,) = report.warnings
    assert line.startswith(
        "drift: new scans (12) against its training scans (30) of models:/luna/3: "
        "slice spacing now 2.5 mm (median), before 1.25 mm: PSI "
    )
    assert " > 0.25, p 0.0005; look at the new scans before trusting the scores" in line
    assert report.verdict == "new scans: slice spacing"
    assert report.metrics["drift/warnings"] == 1
    assert report.metrics["drift/new_scans/slice_spacing_mm/median"] == 2.5
    assert [row["verdict"] for row in report.rows] == ["drifted"]  # the note is told above the table
