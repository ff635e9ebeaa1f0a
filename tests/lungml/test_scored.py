"""Six samples, three of them positive, whose curves and errors can be counted by hand."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from lungml.metrics import roc_auc
from lungml.scored import Scored, worst_errors

TARGETS = np.array([1, 0, 1, 1, 0, 0])
PROBS = np.array([0.9, 0.8, 0.8, 0.3, 0.3, 0.1])
SIX = Scored(targets=TARGETS, probs=PROBS)


def of(targets: list[int], probs: list[float]) -> Scored:
    return Scored(targets=np.array(targets, dtype=int), probs=np.array(probs))


def close(found: npt.ArrayLike, expected: npt.ArrayLike) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_equal_probabilities_are_flagged_together() -> None:
    false, true = SIX.roc()
    close(false, [0, 0, 1 / 3, 2 / 3, 1])
    close(true, [0, 1 / 3, 2 / 3, 1, 1])
    recall, precision = SIX.precision_recall()
    close(recall, [0, 1 / 3, 2 / 3, 1, 1])
    close(precision, [1, 1, 2 / 3, 3 / 5, 1 / 2])
    assert SIX.average_precision == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)


def test_the_auc_is_the_exact_one() -> None:
    assert SIX.auc == pytest.approx(roc_auc(TARGETS, PROBS))
    rng = np.random.default_rng(5)
    targets, probs = rng.integers(0, 2, 400), np.round(rng.random(400), 1)  # many ties, zeros and ones
    assert Scored(targets=targets, probs=probs).auc == pytest.approx(roc_auc(targets, probs))


def test_a_threshold_is_reached_from_above() -> None:
    assert SIX.counts(0.8) == (2, 1, 1, 2)
    assert SIX.counts(0.81) == (1, 0, 2, 3)
    assert SIX.counts(0.0) == (3, 3, 0, 0)
    assert (SIX.positives, SIX.negatives) == (3, 3)


def test_calibration_is_told_bin_by_bin() -> None:
    found = of([0, 1, 1, 1], [0.05, 0.15, 0.95, 1.0]).reliability
    assert found.samples.tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0, 2]  # 1.0 belongs to the last bin
    close(found.said[[0, 1, 9]], [0.05, 0.15, 0.975])
    close(found.true[[0, 1, 9]], [0, 1, 1])
    assert np.isnan(found.said[2:9]).all()
    assert found.ece == pytest.approx((0.05 + 0.85 + 2 * 0.025) / 4)
    assert found.brier == pytest.approx((0.05**2 + 0.85**2 + 0.05**2 + 0) / 4)


def test_without_samples_everything_is_defined() -> None:
    none = of([], [])
    assert none.one_class
    assert (none.counts(0.5), len(none.roc()[0]), len(none.precision_recall()[0])) == ((0, 0, 0, 0), 0, 0)
    assert all(map(math.isnan, (none.auc, none.average_precision, none.reliability.ece, none.reliability.brier)))


@pytest.mark.parametrize("target", [0, 1])
def test_one_class_has_no_roc(target: int) -> None:
    scored = of([target, target], [0.25, 0.75])
    assert scored.one_class
    assert math.isnan(scored.auc)
    assert len(scored.roc()[0]) == 0
    assert math.isnan(scored.average_precision) == (target == 0)
    assert scored.reliability.brier == pytest.approx((0.25**2 + 0.75**2) / 2)


def test_the_worst_errors_come_first() -> None:
    alarms, missed = worst_errors(SIX, threshold=0.5, limit=8)
    assert (alarms, missed) == ([1], [3])
    assert worst_errors(SIX, threshold=0.85, limit=8) == ([], [3, 2])
    assert worst_errors(SIX, threshold=0.05, limit=2) == ([1, 4], [])


@pytest.mark.parametrize(
    ("targets", "probs", "message"),
    [
        ([0, 1], [0.5], "not lists of one length"),
        ([[0]], [[0.5]], "not lists of one length"),
        ([0, 2], [0.5, 0.5], "targets must be 0 or 1"),
        ([0, 1], [0.5, math.nan], "1 of 2 probabilities are not in"),
        ([0, 1], [-0.1, 1.1], "2 of 2 probabilities are not in"),
    ],
)
def test_what_is_no_probability_is_refused(targets: list, probs: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        of(targets, probs)
