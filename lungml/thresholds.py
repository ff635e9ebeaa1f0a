"""From which probability on is a yes said, so that validation reaches what was promised?"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


def threshold_at_sensitivity(targets: npt.ArrayLike, probs: npt.ArrayLike, sensitivity: float) -> float:
    """The highest threshold at which at least this share of the positives is flagged.

    A threshold is inclusive, as in `lungml.findings`, so the answer is always the probability of a positive: of n
    positives the k-th most probable, k the smallest number with k / n >= sensitivity. Where several positives share
    it, all of them are flagged, and more may be reached than was asked for. Negatives have no say. The promise holds
    on these data and in exact arithmetic: the same crop on another device may fall just below its own threshold.

    Args:
        targets: (n,) 0 or 1, or bool.
        probs: (n,) float in [0, 1].
        sensitivity: in (0, 1].

    Returns:
        in [0, 1], or NaN when there is no positive.

    Raises:
        ValueError: when the lengths differ, a target is neither 0 nor 1, a probability is NaN or outside [0, 1], or
            the sensitivity outside (0, 1].
    """
    truth, values = np.asarray(targets), np.asarray(probs, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != values.shape:
        raise ValueError(f"targets {truth.shape} and probs {values.shape} are not two lists of one length")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("targets must be 0 or 1")
    if not 0 < sensitivity <= 1:
        raise ValueError(f"sensitivity {sensitivity} is not in (0, 1]")
    if not ((values >= 0) & (values <= 1)).all():  # NaN is neither
        raise ValueError("probs are not all in [0, 1]")
    positives = np.sort(values[truth == 1])[::-1]
    if not len(positives):
        return math.nan
    # Shares are compared, not counts: 0.7 * 10 is a little more than 7 and would ask for an eighth.
    shares = np.arange(1, len(positives) + 1) / len(positives)
    return float(positives[np.searchsorted(shares, sensitivity)])
