"""Distances between counts that a person can compute."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lungml.differing import MAX_PLACES, Counted


def measured(before: list[float], now: list[float]) -> tuple[float, float]:
    counted = Counted(np.array(before, dtype=float), np.array(now, dtype=float))
    labels = np.array([[1] * len(before) + [0] * len(now)], dtype=np.float32)
    (distance, psi), *_ = counted.measure(labels).tolist()
    return distance, psi


def test_equal_counts_differ_in_nothing() -> None:
    assert measured([1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]) == (0, 0)


def test_disjoint_values_are_as_far_apart_as_can_be() -> None:
    distance, psi = measured([1, 2, 3, 4], [5, 6, 7, 8])
    assert distance == 1
    assert psi > 1


def test_the_distance_is_that_of_kolmogorov_and_smirnov() -> None:
    assert measured([1, 2, 3, 4], [2, 3, 4, 5])[0] == 0.25


def test_the_index_of_two_groups() -> None:
    # Two groups of 10 and 10, now 4 and 16. Pooled shares 14/40 and 26/40, and one count (half a group's) is added.
    before, now = [1] * 10 + [2] * 10, [1] * 4 + [2] * 16
    p, q = [(10 + 0.35) / 21, (10 + 0.65) / 21], [(4 + 0.35) / 21, (16 + 0.65) / 21]
    expected = sum((b - a) * math.log(b / a) for a, b in zip(p, q))
    assert measured(before, now)[1] == pytest.approx(expected)


@pytest.mark.parametrize("now", [0.7, 1.0, 2.5])
def test_another_value_than_the_only_one_is_new_on_either_side(now: float) -> None:
    distance, psi = measured([1.25] * 20, [now] * 20)
    assert distance == 1
    assert psi > 1


def test_what_is_not_known_counts_for_nothing() -> None:
    assert measured([1, 2, 3, math.nan], [3, math.nan, 2, 1]) == (0, 0)
    assert not Counted(np.array([math.nan, math.nan]), np.array([1.0])).known


def test_many_values_lose_little() -> None:
    rng = np.random.default_rng(0)
    before, now = rng.normal(0, 1, 3000), rng.normal(0.3, 1, 2000)
    everywhere = np.sort(np.concatenate([before, now]))
    exact = np.abs(
        np.searchsorted(np.sort(before), everywhere, "right") / 3000
        - np.searchsorted(np.sort(now), everywhere, "right") / 2000
    ).max()
    distance, _ = measured(before.tolist(), now.tolist())
    assert exact - 1 / MAX_PLACES <= distance <= exact + 1e-6


def test_histograms_are_pooled_over_scans() -> None:
    # The reference's two scans hold 3 and 1 counts, those of now none and 4.
    counted = Counted(np.array([[3.0, 0.0], [0.0, 1.0]]), np.array([[0.0, 0.0], [1.0, 3.0]]))
    labels = np.array([[1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 1, 0]], dtype=np.float32)
    assert counted.measure(labels)[:, 0].tolist() == [0.5, 4 / 7, 0]  # the last leaves the reference empty
