"""Nodules of 10 mm on the x axis: a finding belongs to one when it is nearer than 7 mm."""

from __future__ import annotations

import math
from dataclasses import replace

from lungml.evidence import Evidence
from lungml.findings import Finding
from lungml.luna import Excluded, Nodule
from lungml.worst_cases import Case, choose_worst


def nodule(x: float, *, diameter_mm: float = 10.0, malignant: bool = False) -> Nodule:
    return Nodule(
        series_uid="1.2",
        center_xyz=(x, 0.0, 0.0),
        diameter_mm=diameter_mm,
        malignant=malignant,
        ratings=(5, 5) if malignant else (1, 1),
    )


def finding(x: float, prob: float, malignant: float = math.nan, diameter_mm: float = 4.0) -> Finding:
    return Finding(
        center_irc=(0.0, 0.0, 0.0),
        center_xyz=(x, 0.0, 0.0),
        diameter_mm=diameter_mm,
        prob_nodule=prob,
        prob_malignant=malignant,
        stage="benign",
    )


def scan(nodules: list[Nodule], findings: list[Finding] | None, excluded: tuple[Excluded, ...] = ()) -> Evidence:
    return Evidence(
        series_uid="1.2",
        nodules=tuple(nodules),
        excluded=excluded,
        findings=None if findings is None else tuple(findings),
        segmented=None,
        prob_malignant=None,
    )


def chosen(evidence: Evidence, limit: int = 4) -> list[Case]:
    return choose_worst([evidence], 0.5, 0.5, limit)


def test_each_kind_of_error_is_told_in_words() -> None:
    cases = chosen(
        scan(
            [nodule(0), nodule(100, malignant=True), nodule(200, malignant=True), nodule(300)],
            [
                finding(106.9, 0.2),
                finding(95, 0.3),
                finding(200, 0.9, 0.4),
                finding(201, 0.1),
                finding(300, 0.8, 0.9),  # a benign one called malignant is no case
                finding(400, 0.99999, 0.7),
                finding(500, 0.49),
            ],
        )
    )
    assert [(case.kind, case.center_xyz[0], case.diameter_mm, case.words) for case in cases] == [
        ("missed", 0, 10, "benign nodule of 10.0 mm; no candidate here"),
        ("filtered out", 100, 10, "malignant nodule of 10.0 mm; nodule probability 0.300"),
        ("malignant called benign", 200, 10, "malignant nodule of 10.0 mm; malignancy probability 0.400"),
        ("false positive", 400, 4, "nothing annotated; nodule probability above 0.999, malignancy 0.700"),
    ]
    assert {case.series_uid for case in cases} == {"1.2"}


def test_of_several_findings_the_one_that_came_furthest_counts() -> None:
    malignant = nodule(0, malignant=True)
    assert chosen(scan([malignant], [finding(0, 0.9, 0.1), finding(1, 0.6, 0.5)])) == []
    assert chosen(scan([malignant], [finding(0, 0.1), finding(1, 0.5, 0.5)])) == []


def test_the_worst_come_first_and_no_more_than_asked() -> None:
    missed = [nodule(0, diameter_mm=9), nodule(100, diameter_mm=20), nodule(200, diameter_mm=5, malignant=True)]
    assert [case.center_xyz[0] for case in chosen(scan(missed, []))] == [200, 100, 0]
    assert [case.center_xyz[0] for case in chosen(scan(missed, []), limit=2)] == [200, 100]
    alarms = [finding(0, 0.6, 0.1), finding(100, 0.9, 0.1), finding(200, 0.9, 0.2), finding(300, 0.7, 0.1)]
    assert [case.center_xyz[0] for case in chosen(scan([], alarms), limit=3)] == [100, 200, 300]
    filtered = [nodule(0), nodule(100), nodule(200, malignant=True)]
    said = [finding(0, 0.4), finding(100, 0.1), finding(200, 0.45)]
    assert [case.center_xyz[0] for case in chosen(scan(filtered, said))] == [200, 100, 0]
    called = [nodule(0, malignant=True), nodule(100, malignant=True)]
    said = [finding(0, 0.9, 0.3), finding(100, 0.9, 0.2)]
    assert [case.center_xyz[0] for case in chosen(scan(called, said))] == [100, 0]


def test_what_lies_on_an_excluded_finding_is_no_false_positive() -> None:
    place = Excluded(series_uid="1.2", center_xyz=(0.0, 0.0, 0.0), diameter_mm=-1.0)  # that is 10 mm
    cases = chosen(scan([], [finding(4.9, 0.9, 0.1), finding(5.0, 0.8, 0.1)], (place,)))
    assert [case.center_xyz[0] for case in cases] == [5.0]


def test_a_scan_with_thresholds_of_its_own_is_judged_at_them() -> None:
    one = scan([nodule(0, malignant=True)], [finding(0, 0.55, 0.4), finding(100, 0.52, 0.1)])
    assert [case.kind for case in chosen(one)] == ["malignant called benign", "false positive"]
    strict, lenient = replace(one, thresholds=(0.54, 0.4)), replace(one, thresholds=(0.56, 0.4))
    assert chosen(strict) == []
    assert [case.kind for case in chosen(lenient)] == ["filtered out"]
    # What a bundle of a higher threshold was never asked is not looked at.
    unasked = replace(scan([nodule(0, malignant=True)], [finding(0, 0.55)]), thresholds=(0.6, 0.5))
    assert [case.kind for case in chosen(unasked)] == ["filtered out"]


def test_a_scan_without_anything_and_one_set_aside_have_no_cases() -> None:
    assert chosen(scan([], [])) == []
    assert chosen(scan([nodule(0)], None)) == []
    assert choose_worst([], 0.5, 0.5) == []
