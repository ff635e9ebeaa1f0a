import math
from dataclasses import dataclass

import numpy as np
import pytest

from lungml.candidate_recall import LIMITS, CandidateRecall
from lungml.candidates import GroupingSettings
from lungml.geometry import Grid

SHAPE = (9, 40, 40)
GRID = Grid(shape_irc=SHAPE, spacing_xyz=(1.0, 1.0, 1.0), origin_xyz=(0.0, 0.0, 0.0))
HU = np.zeros(SHAPE, np.int16)


@dataclass(frozen=True)
class Ball:
    center_xyz: tuple[float, float, float]
    diameter_mm: float = 6.0


def blobs(*places: tuple[int, int], prob: float = 0.9) -> np.ndarray:
    """Cubes of 3 voxels a side in the middle slices, at those rows and columns."""
    probs = np.zeros(SHAPE, np.float32)
    for row, col in places:
        probs[3:6, row - 1 : row + 2, col - 1 : col + 2] = prob
    return probs


def test_one_nodule_seen_one_missed_and_one_false_candidate() -> None:
    recall = CandidateRecall(GroupingSettings())
    recall.add(blobs((10, 10), (30, 30)), HU, GRID, [Ball((10.0, 10.0, 4.0)), Ball((20.0, 10.0, 4.0))])
    found = recall.metrics()
    assert found["candidate_recall"] == found["candidate_score"] == 0.5
    assert found["candidates_per_scan"] == 2


def test_a_candidate_on_the_sphere_does_not_find_it() -> None:
    for off_mm, expected in ((2.9, 1.0), (3.0, 0.0)):
        recall = CandidateRecall(GroupingSettings())
        recall.add(blobs((10, 10)), HU, GRID, [Ball((10.0 + off_mm, 10.0, 4.0))])
        assert recall.metrics()["candidate_recall"] == expected


def test_the_score_falls_where_better_ranked_false_candidates_crowd_the_nodule_out() -> None:
    false = [(row, col) for row in (4, 10, 16) for col in (4, 10, 16, 22, 28)]  # 15
    probs = np.maximum(blobs(*false, prob=0.9), blobs((34, 34), prob=0.6))
    recall = CandidateRecall(GroupingSettings())
    recall.add(probs, HU, GRID, [Ball((34.0, 34.0, 4.0))])
    found = recall.metrics()
    assert LIMITS == (5, 10, 20, 50)
    assert found["candidate_recall"] == found["candidate_recall_50"] == 1
    assert found["candidate_score"] == 2 / 4  # beyond 5 and 10, within 20 and 50


def test_a_candidate_on_an_excluded_finding_is_not_counted() -> None:
    recall = CandidateRecall(GroupingSettings())
    recall.add(blobs((10, 10), (30, 30)), HU, GRID, [Ball((10.0, 10.0, 4.0))], [Ball((30.0, 30.0, 4.0), -1.0)])
    assert recall.metrics()["candidates_per_scan"] == 1


def test_scans_add_up() -> None:
    recall = CandidateRecall(GroupingSettings())
    recall.add(blobs((10, 10)), HU, GRID, [Ball((10.0, 10.0, 4.0))])
    recall.add(np.zeros(SHAPE, np.float32), HU, GRID, [Ball((10.0, 10.0, 4.0))] * 2)
    found = recall.metrics()
    assert found["candidate_recall"] == pytest.approx(1 / 3)
    assert found["candidates_per_scan"] == 0.5


def test_nothing_to_find_is_no_score() -> None:
    recall = CandidateRecall(GroupingSettings())
    recall.add(blobs((10, 10)), HU, GRID, [])
    assert math.isnan(recall.metrics()["candidate_score"])
