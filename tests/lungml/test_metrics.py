import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from lungml.metrics import BinaryCounts, diameter_auc, is_better, precision_recall_f1, roc_auc

nan = math.nan


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((142, 302, 12), (142 / 444, 142 / 154, 284 / 598)),
        ((0, 3, 0), (0.0, nan, 0.0)),
        ((0, 0, 3), (nan, 0.0, 0.0)),
        ((0, 2, 3), (0.0, 0.0, 0.0)),
        ((0, 0, 0), (nan, nan, nan)),
        ((2, 0, 0), (1.0, 1.0, 1.0)),
    ],
)
def test_precision_recall_f1(counts: tuple[int, int, int], expected: tuple[float, float, float]) -> None:
    assert precision_recall_f1(*counts) == pytest.approx(expected, nan_ok=True)


def test_negative_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        precision_recall_f1(1, -1, 0)


def test_counts_add_up_over_batches() -> None:
    counts = BinaryCounts()
    assert (counts.tp, counts.fp, counts.fn, counts.tn) == (0, 0, 0, 0)
    assert math.isnan(counts.f1)
    yes, no = True, False
    counts.add(torch.tensor([[yes, yes], [no, no]]), torch.tensor([[yes, no], [yes, no]]))
    counts.add(torch.tensor([yes, no]), torch.tensor([yes, no]))
    assert (counts.tp, counts.fp, counts.fn, counts.tn) == (2, 1, 1, 2)
    assert (counts.precision, counts.recall, counts.f1) == pytest.approx((2 / 3, 2 / 3, 2 / 3))


def test_counts_take_decisions_of_one_shape_only() -> None:
    decisions = torch.ones(3, dtype=torch.bool)
    with pytest.raises(ValueError, match="bool"):
        BinaryCounts().add(torch.rand(3), decisions)
    with pytest.raises(ValueError, match="shapes differ"):
        BinaryCounts().add(decisions[:2], decisions)


def test_auc_of_hand_computed_scores() -> None:
    assert roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) == 0.75
    assert roc_auc([True, False], [0.5, 0.5]) == 0.5
    assert roc_auc([1, 0], [2, 1]) == 1.0


def test_saturated_scores_keep_their_order() -> None:
    # A hundred fixed thresholds saw 0.99991 and 0.99999 as one score.
    labels = [0, 0, 0, 1, 1, 1]
    scores = [0.99991, 0.99992, 0.99997, 0.99993, 0.99998, 0.99999]
    assert roc_auc(labels, scores) == pytest.approx(8 / 9)
    assert roc_auc(labels, np.array(scores) * 1e-9) == pytest.approx(8 / 9)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 1e-9, 0.2, 0.5, 1 - 1e-9, 1.0])), min_size=2))
def test_auc_equals_scikit_learn(pairs: list[tuple[bool, float]]) -> None:
    labels, scores = zip(*pairs)
    if len(set(labels)) < 2:
        assert math.isnan(roc_auc(labels, scores))
    else:
        assert roc_auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_auc_of_an_absent_class_is_nan() -> None:
    assert math.isnan(roc_auc([], []))
    assert math.isnan(roc_auc([1, 1], [0.2, 0.3]))


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [([0, 1], [0.1], "length"), ([0, 2], [0.1, 0.2], "0 or 1"), ([0, 1], [nan, 0.2], "NaN")],
)
def test_impossible_scores_are_refused(labels: list, scores: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        roc_auc(labels, scores)


def test_the_diameter_baseline() -> None:
    assert diameter_auc([4.0, 6.0, 9.0, 12.0], [False, True, False, True]) == 0.75


def test_nan_is_never_better_and_a_tie_keeps_the_earlier() -> None:
    # NaN compares false with everything: `not new <= best` had made it the best score for ever.
    assert not is_better(nan, nan)
    assert not is_better(nan, 0.5)
    assert not is_better(nan, None)
    assert is_better(0.0, nan)
    assert is_better(0.0, None)
    assert not is_better(0.5, 0.5)
    assert is_better(0.6, 0.5)
    scores = [nan, 0.2, nan, 0.4, 0.4, 0.3]
    best, best_epoch = nan, -1
    for epoch, score in enumerate(scores):
        if is_better(score, best):
            best, best_epoch = score, epoch
    assert (best_epoch, best) == (3, 0.4)
