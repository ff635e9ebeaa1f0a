import json
import math
from dataclasses import dataclass
from typing import Literal

import pytest

from lungml.score import ScoredFinding, find_hits, score_table


@dataclass(frozen=True)
class Nodule:
    center_xyz: tuple[float, float, float]
    diameter_mm: float = 10.0
    malignant: bool = False


def at(x: float, prob: float = 0.9, malignant: float = math.nan) -> ScoredFinding:
    return ScoredFinding(center_xyz=(x, 0.0, 0.0), prob_nodule=prob, prob_malignant=malignant)


def nodule(x: float, diameter_mm: float = 10.0, malignant: bool = False) -> Nodule:
    return Nodule((x, 0.0, 0.0), diameter_mm, malignant)


def test_every_cell_of_the_table() -> None:
    nodules = [nodule(100 * i, malignant=i >= 4) for i in range(8)]
    findings = []
    for first in (
        0,
        400,
    ):  # benign nodules at 0..300, malignant ones at 400..700; the first of each is missed
        findings += [at(first + 100, 0.2), at(first + 200, 0.9, 0.1), at(first + 300, 0.9, 0.9)]
    findings += [at(-100, 0.1), at(-200, 0.9, 0.2), at(-300, 0.9, 0.2), at(-400, 0.9, 0.9)]
    table = score_table({"a": findings}, {"a": nodules})
    assert table.counts == ((0, 1, 2, 1), (1, 1, 1, 1), (1, 1, 1, 1))
    assert (table.nodules, table.found, table.malignant, table.malignant_flagged) == (8, 4, 4, 1)
    assert table.false_positives == 3


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_the_malignancy_threshold_is_honoured(threshold: float) -> None:
    # An earlier system took the argument and compared with 0.5.
    findings = {"a": [at(0, malignant=0.4), at(50, malignant=0.6), at(90, malignant=0.8)]}
    truth = {"a": [nodule(0, malignant=True), nodule(50, malignant=True)]}
    table = score_table(findings, truth, malignant_threshold=threshold)
    assert table.malignant_flagged == sum(prob >= threshold for prob in (0.4, 0.6))
    assert table.counts[0][3] == 1  # 0.8 reaches all three: thresholds are inclusive


@pytest.mark.parametrize("threshold", [0.3, 0.9])
def test_the_nodule_threshold_is_honoured_and_inclusive(threshold: float) -> None:
    findings = {"a": [at(0, 0.3, 0.1), at(50, 0.9, 0.1)]}
    table = score_table(findings, {"a": [nodule(0), nodule(50)]}, nodule_threshold=threshold)
    assert table.found == (2 if threshold == 0.3 else 1)


@pytest.mark.parametrize("match", ["report", "official"])
def test_a_scan_with_thresholds_of_its_own_is_judged_at_them(match: Literal["report", "official"]) -> None:
    findings = {uid: [at(0, 0.4, 0.6), at(50, 0.6, 0.4), at(90, 0.3)] for uid in ("a", "b", "c")}
    truth = {uid: [nodule(0), nodule(50, malignant=True)] for uid in findings}
    own = {"a": (0.4, 0.6), "b": (0.61, 0.0)}  # inclusive; b takes nothing for a nodule
    table = score_table(findings, truth, match=match, nodule_threshold=0.5, thresholds_per_scan=own)
    one_by_one = [
        score_table({uid: findings[uid]}, {uid: truth[uid]}, match=match, nodule_threshold=t, malignant_threshold=m)
        for uid, (t, m) in {**own, "c": (0.5, 0.5)}.items()
    ]
    assert [one.counts for one in one_by_one] == [
        ((0, 1, 0, 0), (0, 0, 0, 1), (0, 0, 1, 0)),
        ((0, 1, 0, 0), (0, 1, 0, 0), (0, 1, 0, 0)),
        ((0, 1, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0)),
    ]
    assert table.counts == ((0, 3, 0, 0), (0, 2, 0, 1), (0, 1, 2, 0))


def test_the_two_reaches_are_strict() -> None:
    truth = {"a": [nodule(0, diameter_mm=10)]}
    for distance, report, official in [(4.99, 1, 1), (5, 1, 0), (6.99, 1, 0), (7, 0, 0)]:
        findings = {"a": [at(distance, malignant=0.1)]}
        assert score_table(findings, truth).found == report
        assert score_table(findings, truth, match="official").found == official
        assert score_table(findings, truth).false_positives == 1 - report


def test_of_several_findings_on_a_nodule_the_rule_chooses_one() -> None:
    findings = {"a": [at(0, 0.95, 0.1), at(1, 0.6, 0.9), at(2, 0.3)]}
    truth = {"a": [nodule(0, malignant=True)]}
    assert score_table(findings, truth).counts == ((0, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 1))
    official = score_table(findings, truth, match="official")
    assert official.counts == ((0, 0, 0, 0), (0, 0, 0, 0), (0, 0, 1, 0))


def test_a_finding_on_two_nodules_counts_for_both() -> None:
    table = score_table({"a": [at(2, malignant=0.9)]}, {"a": [nodule(0), nodule(4, malignant=True)]})
    assert table.counts == ((0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 1))


def test_excluded_findings_are_neither_hits_nor_false_positives() -> None:
    findings = {"a": [at(0, malignant=0.1), at(54.9, malignant=0.9), at(55, malignant=0.9)]}
    excluded = {"a": [nodule(0, diameter_mm=30), nodule(50, diameter_mm=-1)]}
    table = score_table(findings, {"a": [nodule(0)]}, excluded_per_scan=excluded)
    assert table.counts == ((0, 0, 0, 1), (0, 0, 1, 0), (0, 0, 0, 0))  # at 0 the nodule comes first
    assert table.ignored_on_excluded == 1
    assert score_table(findings, {"a": [nodule(0)]}).false_positives == 2


def test_a_scan_that_was_set_aside_misses_its_nodules_and_an_empty_one_too() -> None:
    truth = {"unread": [nodule(0, malignant=True)], "empty": [nodule(0)]}
    table = score_table({"empty": [], "healthy": [at(0, malignant=0.1)]}, truth)
    assert table.counts == ((0, 0, 1, 0), (1, 0, 0, 0), (1, 0, 0, 0))
    assert (table.scans, table.scans_without_findings) == (3, 1)


def test_findings_of_another_scan_never_match() -> None:
    table = score_table({"a": [at(0, malignant=0.1)], "b": []}, {"b": [nodule(0)]})
    assert table.counts == ((0, 0, 1, 0), (1, 0, 0, 0), (0, 0, 0, 0))


def test_a_filtered_finding_needs_no_malignancy_but_a_flagged_one_does() -> None:
    assert score_table({"a": [at(0, 0.2)]}, {}).counts[0] == (0, 1, 0, 0)
    with pytest.raises(ValueError, match="no malignancy probability"):
        score_table({"a": [at(0, 0.8)]}, {})
    with pytest.raises(ValueError, match="NaN"):
        score_table({"a": [at(0, math.nan)]}, {})
    with pytest.raises(ValueError, match="not finite"):
        score_table({"a": [at(math.inf, 0.2)]}, {})
    with pytest.raises(ValueError, match="unknown match"):
        score_table({}, {}, match="nearest")  # type: ignore[arg-type]


def test_the_table_as_text_and_as_json() -> None:
    findings = {"a": [at(0, malignant=0.9), at(90, 0.1)]}
    truth = {"a": [nodule(0, malignant=True)], "b": [nodule(0)]}
    table = score_table(findings, truth)
    assert table.to_text().splitlines() == [
        "            missed  filtered out  predicted benign  predicted malignant",
        "non-nodule                     1                 0                    0",
        "benign           1             0                 0                    0",
        "malignant        0             0                 0                    1",
        "1 of 2 nodules found, 1 of 1 malignant flagged, 0 false positives in 2 scans",
        "scans without an answer, their nodules missed: 1",
    ]
    assert table.rows()[0] == ("non-nodule", "", "1", "0", "0")
    assert json.loads(json.dumps(table.as_dict()))["counts"]["malignant"]["predicted malignant"] == 1


def test_a_mark_hits_a_place_that_is_nearer_than_the_reach() -> None:
    places, marks = [nodule(0, diameter_mm=10), nodule(20, diameter_mm=-1)], [at(4.9), at(5), at(15.1)]
    assert find_hits(places, marks, 0.5, "a").tolist() == [[True, False, False], [False, False, True]]
    assert find_hits(places, [], 0.5, "a").shape == (2, 0)
