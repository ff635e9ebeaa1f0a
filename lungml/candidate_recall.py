"""Which nodules would a segmentation offer to the classifiers, and among how many other places?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lungml.candidates import GroupingSettings, group_candidates
from lungml.geometry import Grid, irc_to_xyz
from lungml.marked import Marked
from lungml.score import OFFICIAL_REACH, Place, find_hits

LIMITS = (5, 10, 20, 50)  # candidates a scan, each about twice the one before, at which recall is read
AROUND_IRC = (1, 2, 2)  # voxels on each side of a candidate's centre whose mean probability ranks it


@dataclass(frozen=True)
class _Mark:
    center_xyz: tuple[float, float, float]
    prob_nodule: float


class CandidateRecall:
    """Recall of nodules by candidates, added up scan by scan.

    The classifiers are asked at candidates only. Pixel recall, by which the report chooses its epoch, is highest for
    masks that flood vessels and wall: these merge with the nodules, whose centres no candidate marks any longer.

    Args:
        grouping: how voxels become candidates.
    """

    def __init__(self, grouping: GroupingSettings) -> None:
        self._grouping = grouping
        self._scans = self._nodules = self._found = self._candidates = 0
        self._found_within = dict.fromkeys(LIMITS, 0)

    def add(
        self,
        probs: npt.NDArray[np.float32],
        hu: npt.NDArray[np.int16],
        grid: Grid,
        nodules: Sequence[Place],
        excluded: Sequence[Place] = (),
        series_uid: str = "",
    ) -> None:
        """Count one scan.

        A nodule is found when a candidate lies within its radius. Candidates on an excluded finding only are not
        counted at all.

        Args:
            probs: (index, row, col) float, probability of each voxel.
            hu: (index, row, col) int16.
            grid: the scan's sampling grid.
            nodules: annotated.
            excluded: findings that are neither hits nor false positives.
            series_uid: for errors.
        """
        found = group_candidates(Marked.of(probs, self._grouping.floor), hu, grid, self._grouping)
        centers = found.centers_irc
        ranks = [_mean_around(probs, center) for center in centers]
        marks = [
            _Mark((x, y, z), rank) for (x, y, z), rank in zip(irc_to_xyz(centers, grid).tolist(), ranks, strict=True)
        ]
        hits = find_hits(nodules, marks, OFFICIAL_REACH, series_uid)
        on_excluded = find_hits(excluded, marks, OFFICIAL_REACH, series_uid).any(axis=0)
        counted = hits.any(axis=0) | ~on_excluded
        hits = hits[:, counted]
        order = np.argsort(-np.array(ranks)[counted], kind="stable")
        self._scans += 1
        self._nodules += len(nodules)
        self._found += int(hits.any(axis=1).sum())
        self._candidates += int(counted.sum())
        for limit in LIMITS:
            self._found_within[limit] += int(hits[:, order[:limit]].any(axis=1).sum())

    def metrics(self) -> dict[str, float]:
        """`candidate_recall` of all candidates, `candidates_per_scan`, and `candidate_score`.

        The score is the mean recall of the 5, 10, 20 and 50 best-ranked candidates of each scan, so that it rises
        with nodules found and falls with false candidates that crowd them out. NaN where there is nothing to count.
        """
        recall = _ratio(self._found, self._nodules)
        return {
            "candidate_recall": recall,
            "candidates_per_scan": _ratio(self._candidates, self._scans),
            "candidate_score": _ratio(sum(self._found_within.values()), self._nodules * len(LIMITS)),
            f"candidate_recall_{LIMITS[-1]}": _ratio(self._found_within[LIMITS[-1]], self._nodules),
        }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _mean_around(probs: npt.NDArray[np.float32], center_irc: npt.NDArray[np.float64]) -> float:
    """Mean probability of the voxels around a candidate's centre, those outside the scan left out."""
    box = tuple(
        slice(max(middle - reach, 0), middle + reach + 1)
        for middle, reach in zip(np.rint(center_irc).astype(int).tolist(), AROUND_IRC)
    )
    return float(probs[box].mean())
