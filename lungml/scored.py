"""What do a model's probabilities say about one split, before anything is drawn or averaged away?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

CALIBRATION_BINS = 10  # equal widths, as in Guo et al. 2017, On Calibration of Modern Neural Networks


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """Yes-or-no truths and the probabilities that a model gave; nothing is changed or copied.

    Attributes:
        targets: (n,) 0 or 1, or bool.
        probs: (n,) float in [0, 1]: of class 1.
    """

    targets: npt.NDArray[np.generic]
    probs: npt.NDArray[np.generic]

    def __post_init__(self) -> None:
        shapes = np.shape(self.targets), np.shape(self.probs)
        if shapes[0] != shapes[1] or len(shapes[0]) != 1:
            raise ValueError(f"targets {shapes[0]} and probs {shapes[1]} are not lists of one length")
        if not np.isin(self.targets, (0, 1)).all():
            raise ValueError("targets must be 0 or 1")
        probs = np.asarray(self.probs, dtype=np.float64)
        wrong = int((~((probs >= 0) & (probs <= 1))).sum())  # NaN is neither
        if wrong:
            raise ValueError(f"{wrong} of {len(probs)} probabilities are not in [0, 1]")

    @cached_property
    def positives(self) -> int:
        """Samples of class 1."""
        return int(np.count_nonzero(self._positive))

    @cached_property
    def negatives(self) -> int:
        """Samples of class 0."""
        return len(self._positive) - self.positives

    @property
    def one_class(self) -> bool:
        """Whether one of the classes is absent, so that there is nothing to tell apart."""
        return not self.positives or not self.negatives

    @cached_property
    def _positive(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.targets) == 1

    @cached_property
    def _flagged(self) -> tuple[npt.NDArray[np.int_], npt.NDArray[np.int_]]:
        """The true and the false positives at falling thresholds; nothing is flagged at the first."""
        probs = np.asarray(self.probs, dtype=np.float64)
        order = np.argsort(-probs, kind="stable")
        last = np.flatnonzero(np.diff(probs[order], append=-1.0))  # equal probabilities are flagged together
        hits, alarms = (np.cumsum(which[order])[last] for which in (self._positive, ~self._positive))
        return np.append(0, hits), np.append(0, alarms)

    def roc(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """False and true positive rates from (0, 0) to (1, 1); empty when one of the classes is absent."""
        if self.one_class:
            return np.empty(0), np.empty(0)
        hits, alarms = self._flagged
        return alarms / self.negatives, hits / self.positives

    def precision_recall(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Recall rising, and the precision there; where nothing is flagged yet it is that of the first threshold.

        Empty without positives.
        """
        if not self.positives:
            return np.empty(0), np.empty(0)
        hits, alarms = self._flagged
        precision = hits[1:] / (hits + alarms)[1:]
        return hits / self.positives, np.append(precision[:1], precision)

    @cached_property
    def auc(self) -> float:
        """Area under the ROC curve, ties counted half, as `metrics.roc_auc`; NaN when one of the classes is absent."""
        false, true = self.roc()
        return float(np.trapezoid(true, false)) if len(true) else math.nan

    @cached_property
    def average_precision(self) -> float:
        """Sum over thresholds of recall gained x precision there; NaN without positives."""
        recall, precision = self.precision_recall()
        return float((np.diff(recall) * precision[1:]).sum()) if len(recall) else math.nan

    def counts(self, threshold: float) -> tuple[int, int, int, int]:
        """True positives, false positives, false negatives, true negatives; flagged is what reaches the threshold."""
        flagged = np.asarray(self.probs) >= threshold
        tp = int(np.count_nonzero(flagged & self._positive))
        fp = int(np.count_nonzero(flagged & ~self._positive))
        return tp, fp, self.positives - tp, self.negatives - fp

    @cached_property
    def reliability(self) -> Reliability:
        """How probabilities agree with what came true."""
        probs, count = np.asarray(self.probs, dtype=np.float64), CALIBRATION_BINS
        which = np.minimum((probs * count).astype(int), count - 1)  # 1.0 belongs to the last bin
        samples = np.bincount(which, minlength=count)
        with np.errstate(invalid="ignore"):
            said, true = (np.bincount(which, values, count) / samples for values in (probs, self._positive))
        if not len(probs):
            return Reliability(samples=samples, said=said, true=true, ece=math.nan, brier=math.nan)
        return Reliability(
            samples=samples,
            said=said,
            true=true,
            ece=float(np.nansum(samples * np.abs(said - true)) / len(probs)),
            brier=float(((probs - self._positive) ** 2).sum() / len(probs)),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Reliability:
    """Probabilities against what came true, in `CALIBRATION_BINS` equal bins over [0, 1].

    Attributes:
        samples: (bins,) int.
        said: (bins,) mean probability, NaN in an empty bin.
        true: (bins,) share of class 1, NaN in an empty bin.
        ece: expected calibration error: the mean over samples of |said - true| of their bins; NaN without samples.
        brier: the mean of (probability - truth)^2 (Brier 1950), without bins; NaN without samples.
    """

    samples: npt.NDArray[np.int64]
    said: npt.NDArray[np.float64]
    true: npt.NDArray[np.float64]
    ece: float
    brier: float


def worst_errors(scored: Scored, *, threshold: float, limit: int) -> tuple[list[int], list[int]]:
    """The rows of the most probable false positives and of the least probable false negatives.

    Args:
        scored: of one split.
        threshold: a row that reaches it is flagged.
        limit: at most so many of each.

    Returns:
        two lists of row numbers, the worst first; equal probabilities in their given order.
    """
    probs, positive = np.asarray(scored.probs, dtype=np.float64), np.asarray(scored.targets) == 1
    order = np.argsort(-probs, kind="stable")
    alarms = order[(probs[order] >= threshold) & ~positive[order]]
    rising = np.argsort(probs, kind="stable")
    missed = rising[(probs[rising] < threshold) & positive[rising]]
    return alarms[:limit].tolist(), missed[:limit].tolist()
