import math
from dataclasses import dataclass

import numpy as np
import pytest

from lungml.froc import froc
from lungml.thresholds import threshold_at_fps_per_scan, threshold_at_sensitivity

FIVE = [0.9, 0.7, 0.5, 0.3, 0.1]  # five positives; 0.8 and 0.2 are negatives
TARGETS, PROBS = [1, 1, 1, 1, 1, 0, 0], [*FIVE, 0.8, 0.2]


@pytest.mark.parametrize(
    ("sensitivity", "threshold"),
    [(1e-9, 0.9), (0.2, 0.9), (0.21, 0.7), (0.4, 0.7), (0.6, 0.5), (0.8, 0.3), (0.81, 0.1), (1, 0.1)],
)
def test_the_highest_threshold_that_reaches_the_sensitivity(sensitivity: float, threshold: float) -> None:
    assert threshold_at_sensitivity(TARGETS, PROBS, sensitivity) == threshold


@pytest.mark.parametrize("tenths", range(1, 11))
def test_a_share_that_comes_out_even_asks_for_no_positive_more(tenths: int) -> None:
    # 0.7 * 10 is 7.000000000000001.
    probs = np.arange(10, 0, -1) / 16
    assert threshold_at_sensitivity(np.ones(10), probs, tenths / 10) == probs[tenths - 1]
    assert threshold_at_sensitivity(np.ones(10), probs, float(f"0.{tenths}" if tenths < 10 else 1)) == probs[tenths - 1]


def test_it_is_the_highest_one_on_random_data() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        targets = rng.integers(0, 2, 30)
        targets[0] = 1
        probs = rng.integers(0, 8, 30) / 8  # many ties
        wanted = rng.uniform(0.01, 1)
        threshold = threshold_at_sensitivity(targets, probs, wanted)
        positives = probs[targets == 1]
        assert (positives >= threshold).mean() >= wanted
        assert (positives >= math.nextafter(threshold, 2)).mean() < wanted


def test_ties_are_flagged_together() -> None:
    assert threshold_at_sensitivity([1, 1, 1, 1], [0.9, 0.5, 0.5, 0.1], 0.5) == 0.5
    assert threshold_at_sensitivity([1, 1, 0, 0], [0.25] * 4, 0.9) == 0.25
    assert threshold_at_sensitivity([1, 1, 0], [1.0, 0.0, 0.0], 1) == 0


def test_one_class_has_a_defined_answer() -> None:
    assert threshold_at_sensitivity([True, True], [0.2, 0.6], 0.5) == 0.6
    assert math.isnan(threshold_at_sensitivity([0, 0], [0.2, 0.6], 0.5))
    assert math.isnan(threshold_at_sensitivity([], [], 0.5))


@pytest.mark.parametrize(
    ("targets", "probs", "sensitivity", "message"),
    [
        ([1, 0], [0.5, math.nan], 0.5, "not all in"),
        ([1, 0], [1.5, 0.5], 0.5, "not all in"),
        ([1, 2], [0.5, 0.5], 0.5, "must be 0 or 1"),
        ([1], [0.5, 0.5], 0.5, "one length"),
        ([1], [0.5], 0, "sensitivity 0 is not in"),
        ([1], [0.5], 1.1, "sensitivity 1.1 is not in"),
        ([1], [0.5], math.nan, "sensitivity nan is not in"),
    ],
)
def test_what_is_no_probability_is_refused(
    targets: list[int], probs: list[float], sensitivity: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        threshold_at_sensitivity(targets, probs, sensitivity)


# False positives per scan


@dataclass(frozen=True)
class Spot:
    center_xyz: tuple[float, float, float]
    prob_nodule: float = 0.0
    diameter_mm: float = 10.0


def spot(x: float, prob: float) -> Spot:
    return Spot((x, 0, 0), prob)


NODULES = {"a": [Spot((0, 0, 0))]}  # 10 mm wide, at x = 0
EXCLUDED = {"b": [Spot((100, 0, 0), diameter_mm=-1)]}  # means 10 mm
FINDINGS = {
    "a": [spot(4.9, 0.6), spot(5, 0.9), spot(60, 0.4)],  # a hit, two false positives
    "b": [spot(104, 0.95), spot(30, 0.4), spot(40, 0.2)],  # on an excluded finding, two false positives
    "other": [spot(0, 0.99)] * 50,
}


@pytest.mark.parametrize(
    ("budget", "threshold"),
    [
        (0, 0.95),  # the mark on the excluded finding costs nothing
        (0.5, 0.6),  # one false positive in two scans
        (1, 0.6),  # the two at 0.4 pass together or not at all
        (1.5, 0.4),
        (2, 0.2),
        (100, 0.2),
    ],
)
def test_the_lowest_threshold_within_the_budget(budget: float, threshold: float) -> None:
    assert threshold_at_fps_per_scan(FINDINGS, NODULES, EXCLUDED, ["a", "b"], budget) == threshold


def test_scans_without_marks_share_the_budget() -> None:
    # Three false positives in four scans.
    assert threshold_at_fps_per_scan(FINDINGS, NODULES, EXCLUDED, ["a", "b", "c", "d"], 0.75) == 0.4


def test_it_agrees_with_the_froc_curve() -> None:
    rng = np.random.default_rng(1)
    series = [str(n) for n in range(4)]
    findings = {uid: [spot(x, p) for x, p in zip(rng.integers(-20, 20, 30), rng.random(30))] for uid in series}
    nodules = {uid: [Spot((0, 0, 0))] for uid in series}
    curve = froc(findings, nodules, {}, series)
    for budget in (0.25, 1, 3):
        threshold = threshold_at_fps_per_scan(findings, nodules, {}, series, budget)
        passed = [point for point, at in zip(curve.fps_per_scan, curve.thresholds) if at >= threshold]
        assert max(passed) <= budget
        false = sum(abs(m.center_xyz[0]) >= 5 and m.prob_nodule >= threshold for uid in series for m in findings[uid])
        assert false == budget * 4  # all of the budget is used


def test_nothing_to_hold_back_and_nothing_that_may_pass() -> None:
    assert threshold_at_fps_per_scan({}, NODULES, {}, ["a"], 1) == 0
    assert threshold_at_fps_per_scan({"a": [spot(30, 1.0), spot(0, 1.0)]}, NODULES, {}, ["a"], 0.5) == math.inf


def test_marks_beyond_the_hundredth_count_too() -> None:
    marks = [spot(50 + n, 0.9) for n in range(120)]
    assert threshold_at_fps_per_scan({"a": [spot(0, 1.0), *marks]}, NODULES, {}, ["a"], 110) == 1
    assert threshold_at_fps_per_scan({"a": [spot(0, 1.0), *marks]}, NODULES, {}, ["a"], 120) == 0.9


@pytest.mark.parametrize(
    ("findings", "series", "budget", "message"),
    [
        ({}, [], 1, "empty"),
        ({}, ["a", "a"], 1, "twice"),
        ({}, ["a"], -1, "no budget"),
        ({}, ["a"], math.nan, "no budget"),
        ({"a": [spot(0, math.nan)]}, ["a"], 1, "a: its probabilities"),
        ({"a": [spot(math.nan, 0.5)]}, ["a"], 1, "not finite"),
    ],
)
def test_bad_marks_and_budgets_are_refused(
    findings: dict[str, list[Spot]], series: list[str], budget: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        threshold_at_fps_per_scan(findings, NODULES, {}, series, budget)
