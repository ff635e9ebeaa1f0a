"""What is a network's probability worth, judged by how often it was right?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

Method = Literal["platt", "none"]
Probability = Literal["nodule", "malignancy"]
MIN_EACH = 5  # positives, and negatives, below which nothing is fitted
SMALLEST = 1e-12  # a probability of 0 or 1 has no logit
PRIOR = 1e-3  # weight of the pull towards the identity, in observations: only what tells nothing else stays there


@dataclass(frozen=True, kw_only=True)
class Platt:
    """A logistic curve on the logit: `sigmoid(slope * logit(p) + intercept)`.

    Platt 1999, "Probabilistic outputs for support vector machines", with his smoothed targets. The slope is positive:
    the order of the probabilities, and so every AUC and FROC, stays as it is.
    """

    slope: float
    intercept: float

    def __post_init__(self) -> None:
        if not (self.slope > 0 and math.isfinite(self.slope) and math.isfinite(self.intercept)):
            raise ValueError(f"slope {self.slope} and intercept {self.intercept} are no rising curve")

    def __call__(self, probs: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Calibrated probabilities; NaN stays NaN."""
        return np.asarray(expit(self.slope * logits_of(probs) + self.intercept))

    def undo(self, probs: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """What the network said where the calibrated probabilities are these; NaN stays NaN."""
        return np.asarray(expit((logits_of(probs) - self.intercept) / self.slope))


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What turns the networks' probabilities into calibrated ones; None leaves them as they are."""

    nodule: Platt | None = None
    malignancy: Platt | None = None

    @property
    def method(self) -> Method:
        """The method's name; "platt" as soon as one of the two has a curve, see `methods`."""
        return "platt" if self.nodule or self.malignancy else "none"

    @property
    def methods(self) -> dict[Probability, Method]:
        """The method of each of the two probabilities, for whoever reads one."""
        return {
            "nodule": "platt" if self.nodule else "none",
            "malignancy": "platt" if self.malignancy else "none",
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any] | None) -> Calibration:
        """What `as_dict` gave; nothing leaves probabilities as they are.

        Raises:
            ValueError: a curve does not rise, or the method is not known.
        """
        if not fields:
            return cls()
        if fields["method"] not in ("platt", "none"):
            raise ValueError(f"unknown calibration {fields['method']!r}; this version knows platt and none")
        curves = {name: Platt(**fields[name]) for name in ("nodule", "malignancy") if fields.get(name)}
        return cls(**curves)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"method": self.method, **asdict(self)}

    def nodule_probs(self, probs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Calibrated probabilities of being a nodule."""
        return self.nodule(probs) if self.nodule else probs

    def malignancy_probs(self, probs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Calibrated probabilities of malignancy; NaN stays NaN."""
        return self.malignancy(probs) if self.malignancy else probs


def logits_of(probs: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Logits of probabilities, finite for 0 and 1 as well; NaN stays NaN."""
    return np.asarray(logit(np.clip(np.asarray(probs, dtype=np.float64), SMALLEST, 1 - SMALLEST)))


def fit_platt(targets: npt.ArrayLike, probs: npt.ArrayLike) -> Platt | None:
    """The curve under which the outcomes are most likely; None where too few outcomes, or a falling curve, tell none.

    Args:
        targets: (n,) bool, what was true.
        probs: (n,) float in [0, 1], what a network said.

    Raises:
        ValueError: on lists of unequal length or a probability outside [0, 1].
    """
    truth, values = np.asarray(targets, dtype=bool), np.asarray(probs, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != values.shape:
        raise ValueError(f"targets {truth.shape} and probs {values.shape} are not two lists of one length")
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("probabilities are not all in [0, 1]")
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if min(positives, negatives) < MIN_EACH:
        return None
    wanted = np.where(truth, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    inputs = np.column_stack([logits_of(values), np.ones(len(values))])
    identity = np.array([1.0, 0.0])
    curve = identity.copy()
    for _ in range(100):  # Newton; the loss is convex
        said = expit(inputs @ curve)
        gradient = inputs.T @ (said - wanted) + PRIOR * (curve - identity)
        weights = said * (1 - said)
        step = np.linalg.solve((inputs * weights[:, None]).T @ inputs + PRIOR * np.eye(2), gradient)
        size = 1.0
        while size > 1e-6 and _loss(inputs, wanted, curve - size * step) > _loss(inputs, wanted, curve):
            size /= 2
        curve = curve - size * step
        if np.abs(size * step).max() < 1e-10:
            break
    slope, intercept = curve.tolist()
    return Platt(slope=slope, intercept=intercept) if slope > 0 else None


def _loss(inputs: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64], curve: npt.NDArray[np.float64]) -> float:
    """Cross-entropy of a curve, with the pull towards the identity."""
    logits = inputs @ curve
    pull = PRIOR / 2 * float(((curve - [1.0, 0.0]) ** 2).sum())
    return float((np.logaddexp(0, logits) - wanted * logits).sum()) + pull
