"""How good are these answers? Exact numbers, and a defined one wherever the definition divides by zero."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import rankdata


def precision_recall_f1(tp: int, fp: int, fn: int) -> tuple[float, float, float]:
    """Precision, recall and F1 of counts.

    Where nothing was flagged precision is NaN, where nothing was there to find recall is NaN. F1 is
    `2 tp / (2 tp + fp + fn)`: 0 when there is no hit but anything was flagged or there to find, and NaN only
    when all three counts are 0.

    Raises:
        ValueError: when a count is negative.
    """
    if min(tp, fp, fn) < 0:
        raise ValueError(f"counts cannot be negative: {tp=}, {fp=}, {fn=}")
    return _ratio(tp, tp + fp), _ratio(tp, tp + fn), _ratio(2 * tp, 2 * tp + fp + fn)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


class BinaryCounts:
    """Counts of a yes-or-no decision, added up batch by batch on the batches' own device.

    `add` does not wait for a GPU; reading a count does.
    """

    def __init__(self) -> None:
        self._counts: torch.Tensor | None = None  # (4,) int64: tp, fp, fn, tn

    def add(self, flagged: torch.Tensor, target: torch.Tensor) -> None:
        """Count one batch.

        Args:
            flagged: any shape, bool: what was said.
            target: same shape, bool: what is true.

        Raises:
            ValueError: when the shapes differ or an argument is not bool; a probability is no decision yet.
        """
        if flagged.dtype != torch.bool or target.dtype != torch.bool:
            raise ValueError(f"decisions must be bool, not {flagged.dtype} and {target.dtype}")
        if flagged.shape != target.shape:
            raise ValueError(f"shapes differ: {tuple(flagged.shape)} and {tuple(target.shape)}")
        tp, flags, there = (flagged & target).sum(), flagged.sum(), target.sum()
        batch = torch.stack([tp, flags - tp, there - tp, flagged.numel() - flags - there + tp])
        self._counts = batch if self._counts is None else self._counts + batch

    def _count(self, which: int) -> int:
        return 0 if self._counts is None else int(self._counts[which])

    @property
    def tp(self) -> int:
        """Flagged and true."""
        return self._count(0)

    @property
    def fp(self) -> int:
        """Flagged, not true."""
        return self._count(1)

    @property
    def fn(self) -> int:
        """True, not flagged."""
        return self._count(2)

    @property
    def tn(self) -> int:
        """Neither."""
        return self._count(3)

    @property
    def precision(self) -> float:
        """See `precision_recall_f1`."""
        return precision_recall_f1(self.tp, self.fp, self.fn)[0]

    @property
    def recall(self) -> float:
        """See `precision_recall_f1`."""
        return precision_recall_f1(self.tp, self.fp, self.fn)[1]

    @property
    def f1(self) -> float:
        """See `precision_recall_f1`."""
        return precision_recall_f1(self.tp, self.fp, self.fn)[2]


def roc_auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, a tie counting half.

    Exact (Mann-Whitney by ranks), without thresholds, so that scores crowded at 0 or 1 keep their order.

    Args:
        labels: (n,) 0 or 1, or bool.
        scores: (n,) float, higher means more likely positive; infinities are ordered as usual.

    Returns:
        in [0, 1], or NaN when one of the classes is absent.

    Raises:
        ValueError: when the lengths differ, a label is neither 0 nor 1, or a score is NaN.
    """
    truth = np.asarray(labels)
    values = np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != values.shape:
        raise ValueError(f"labels {truth.shape} and scores {values.shape} are not two lists of one length")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    if np.isnan(values).any():
        raise ValueError(f"{int(np.isnan(values).sum())} of {len(values)} scores are NaN")
    positive = truth == 1
    positives = int(positive.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return math.nan
    wins = rankdata(values)[positive].sum() - positives * (positives + 1) / 2
    return float(wins / (positives * negatives))


def diameter_auc(diameters_mm: npt.ArrayLike, malignant: npt.ArrayLike) -> float:
    """ROC AUC of the annotated diameter alone: the baseline that every malignancy model is seen beside.

    Args:
        diameters_mm: (n,) float.
        malignant: (n,) bool or 0 and 1.

    Returns:
        see `roc_auc`.
    """
    return roc_auc(malignant, diameters_mm)


def is_better(new: float, best: float | None) -> bool:
    """Whether a score replaces the best so far: NaN never does, numbers replace NaN, a tie keeps the best.

    Args:
        new: higher is better.
        best: None or NaN when there is none yet.
    """
    if math.isnan(new):
        return False
    return best is None or math.isnan(best) or new > best
