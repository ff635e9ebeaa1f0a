import math

import numpy as np
import pytest

from lungml.thresholds import threshold_at_sensitivity

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
