"""From which probability on is a yes said, so that validation reaches what was promised?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from lungml.score import OFFICIAL_REACH, Mark, Place, find_hits


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
    positives = np.sort(_checked(values, "these")[truth == 1])[::-1]
    if not len(positives):
        return math.nan
    # Shares are compared, not counts: 0.7 * 10 is a little more than 7 and would ask for an eighth.
    shares = np.arange(1, len(positives) + 1) / len(positives)
    return float(positives[np.searchsorted(shares, sensitivity)])


def threshold_at_fps_per_scan(
    findings: Mapping[str, Sequence[Mark]],
    nodules: Mapping[str, Sequence[Place]],
    excluded: Mapping[str, Sequence[Place]],
    series_uids: Sequence[str],
    fps_per_scan: float,
) -> float:
    """The lowest threshold on the nodule probability at which false positives stay within a budget.

    False positives are LUNA16's, as in `lungml.froc`: marks within the radius of neither a nodule nor an
    excluded finding; but all of them count, not only those among a scan's 100 most probable marks: a reader sees
    all. A threshold is inclusive, so the answer is the probability of a mark, on a nodule or not; of marks that
    share it all pass. Lower ones would let too many false positives pass, or no mark more.

    Args:
        findings: by series_uid, the marks; scans without an entry have none.
        nodules: by series_uid, the included nodules.
        excluded: by series_uid, excluded findings; a negative diameter means 10 mm.
        series_uids: the scans that share the budget, those without marks included; entries of others are left out.
        fps_per_scan: the budget, false positives per listed scan; 0 or more.

    Returns:
        in [0, 1]; 0 without any mark, as there is nothing to hold back; infinity when not even the most probable
        marks may pass.

    Raises:
        ValueError: on no or repeated series, a probability that is NaN or outside [0, 1], a centre that is not finite,
            or a negative budget.
    """
    if not series_uids or len(set(series_uids)) != len(series_uids):
        raise ValueError("the list of scans is empty or names a scan twice")
    if not fps_per_scan >= 0:
        raise ValueError(f"{fps_per_scan} false positives per scan are no budget")
    probs: list[npt.NDArray[np.float64]] = []
    false: list[npt.NDArray[np.bool_]] = []
    for series_uid in series_uids:
        marks = findings.get(series_uid, ())
        probs.append(_checked(np.array([m.prob_nodule for m in marks], dtype=np.float64), f"{series_uid}: its"))
        places = [*nodules.get(series_uid, ()), *excluded.get(series_uid, ())]
        false.append(find_hits(places, marks, OFFICIAL_REACH, series_uid).sum(axis=0) == 0)
    scores, counts = np.concatenate(probs), np.concatenate(false)
    if not len(scores):
        return 0.0
    levels, level = np.unique(-scores, return_inverse=True)  # the most probable first
    passed = np.cumsum(np.bincount(level, weights=counts, minlength=len(levels)))
    within = np.flatnonzero(passed / len(series_uids) <= fps_per_scan)
    return float(-levels[within[-1]]) if len(within) else math.inf


def _checked(probs: npt.NDArray[np.float64], whose: str) -> npt.NDArray[np.float64]:
    if not ((probs >= 0) & (probs <= 1)).all():  # NaN is neither
        raise ValueError(f"{whose} probabilities are not all in [0, 1]")
    return probs
