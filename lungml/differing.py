"""By how much do the counts of some scans differ from those of others, however the scans are divided?"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MAX_GROUPS, LEAST_IN_GROUP = 10, 5  # deciles of the reference; fewer where a group would hold fewer than 5
MAX_PLACES = 200  # at which the distributions are compared: with more values the distance is 1/200 too small at most


class Counted:
    """One quantity of all scans, the reference's first, as counts at ordered places."""

    def __init__(self, before: npt.NDArray[np.float64], now: npt.NDArray[np.float64]) -> None:
        both = np.concatenate([before, now])
        counts = both if both.ndim == 2 else _placed(both)  # (scans, places)
        first, second = counts[: len(before)].sum(axis=0), counts[len(before) :].sum(axis=0)
        self.known = bool(first.sum() > 0 and second.sum() > 0)
        self._counts = counts.astype(np.float32)  # sums below 2^24 are exact
        self._total = counts.sum(axis=0)
        self._groups = _group(first, second) if self.known else np.zeros(0, dtype=np.int64)

    def measure(self, labels: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """The distance and the PSI for every way to divide the scans.

        Args:
            labels: (ways, scans), 1 where a scan counts for the reference.

        Returns:
            (ways, 2); a way that leaves a side empty differs in nothing.
        """
        first = (labels @ self._counts).astype(np.float64)
        second = self._total - first
        sums = first.sum(axis=1, keepdims=True), second.sum(axis=1, keepdims=True)
        told = (sums[0] > 0) & (sums[1] > 0)
        shares = [np.divide(part, one, where=told, out=np.zeros_like(part)) for part, one in zip((first, second), sums)]
        distance = np.abs(np.cumsum(shares[0] - shares[1], axis=1)).max(axis=1)
        starts = np.flatnonzero(np.diff(self._groups, prepend=self._groups[0] - 1))
        grouped = [np.add.reduceat(part, starts, axis=1) for part in (first, second)]
        return np.stack([distance, np.where(told[:, 0], _psi(*grouped), 0)], axis=1)


def _placed(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(scans, places): 1 at the first place that is not below a scan's value; nothing where it is not known."""
    known = ~np.isnan(values)
    places = np.unique(values[known])
    if len(places) > MAX_PLACES:
        places = np.unique(np.quantile(values[known], np.linspace(0, 1, MAX_PLACES + 1)[1:], method="higher"))
    counts = np.zeros((len(values), max(1, len(places))))
    counts[np.flatnonzero(known), np.searchsorted(places, values[known])] = 1
    return counts


def _group(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Put places together by quantiles of the reference: which group each place is in, rising.

    A value that holds a group's share or more, such as the one spacing of a single scanner, is not thrown together with
    what lies beyond the reference's range: there something new begins.
    """
    groups = int(np.clip(min(first.sum(), second.sum()) // LEAST_IN_GROUP, 2, MAX_GROUPS))
    shares = first / first.sum()
    middles = np.cumsum(shares) - shares / 2
    group = np.clip((groups * middles + 1e-9).astype(np.int64), 0, groups - 1)
    held = np.flatnonzero(first)
    low, high = held[0], held[-1]
    if shares[low] >= 1 / groups:
        group[:low] = -1
    if shares[high] >= 1 / groups:
        group[high + 1 :] = groups
    return group


def _psi(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The population stability index, the sum of (q - p) ln(q / p) over groups.

    Half a count a group is added to both sides, spread as both together are: an empty group is then no infinity, and
    one that is empty on both sides nothing.

    Args:
        first, second: (ways, groups) counts.

    Returns:
        (ways,) float64.
    """
    pooled = first + second
    added = first.shape[1] / 2 * pooled / pooled.sum(axis=1, keepdims=True)
    p, q = (
        (part + added) / (part.sum(axis=1, keepdims=True) + added.sum(axis=1, keepdims=True))
        for part in (first, second)
    )
    ratio = np.divide(q, p, where=p > 0, out=np.ones_like(p))
    return np.asarray(((q - p) * np.log(ratio)).sum(axis=1))
