import csv
import io
import json
import math
from dataclasses import replace

from lungml.findings import FINDINGS_COLUMNS
from lungml.reading.record import (
    FORMAT_VERSION,
    READING_COLUMNS,
    KnownNodule,
    KnownTruth,
    found_nodules,
    reading_csv,
    reading_dict,
    reading_json,
    submission_csv,
    truth_at,
)
from lungml.submission import read_submission
from tests.lungml.reading.toy import PLACES, toy_finding, toy_opinion, toy_reading, toy_truth


def test_every_candidate_of_every_bundle_is_a_row() -> None:
    other = toy_opinion(bundle="models:/luna/4", findings=toy_opinion().findings[:1])
    rows = list(csv.DictReader(io.StringIO(reading_csv(toy_reading(opinions=(toy_opinion(), other))))))
    assert tuple(rows[0]) == READING_COLUMNS
    assert set(FINDINGS_COLUMNS) < set(READING_COLUMNS)
    assert [(row["finding"], row["bundle"]) for row in rows] == [
        *((str(number), "models:/luna/3") for number in (1, 2, 3, 4)),
        ("1", "models:/luna/4"),
    ]
    assert [row["prob_malignant"] for row in rows[:4]] == ["0.81", "0.12", "", ""]
    assert rows[3]["diameter_mm"] == ""


def test_the_json_says_everything_and_is_plain_json() -> None:
    reading = toy_reading(truth=toy_truth(), warnings=("not a whole chest",))
    told = json.loads(reading_json(reading), parse_constant=lambda name: math.nan / 0)
    assert told == json.loads(json.dumps(reading_dict(reading)))
    assert (told["format"], told["version"], told["made"]) == ("luna-findings", FORMAT_VERSION, "2026-01-31T12:00:00Z")
    assert told["scan"]["warnings"] == ["not a whole chest"]
    (bundle,) = told["bundles"]
    assert (bundle["bundle"], bundle["asked_as"]) == ("models:/luna/3", "models:/luna@champion")
    assert [finding["finding"] for finding in bundle["findings"]] == [1, 2, 3, 4]
    assert [finding["prob_malignant"] for finding in bundle["findings"]] == [0.81, 0.12, None, None]
    assert bundle["findings"][3]["diameter_mm"] is None
    assert [finding["truth"]["kind"] for finding in bundle["findings"]] == ["nodule", "excluded", "none", "none"]
    assert [nodule["malignant"] for nodule in told["truth"]["nodules"]] == [True, None]


def test_without_truth_nothing_is_said_of_hits() -> None:
    told = reading_dict(toy_reading())
    assert told["truth"] is None
    assert all("truth" not in finding for finding in told["bundles"][0]["findings"])


def test_a_hit_is_nearer_than_the_radius() -> None:
    finding = toy_finding(*PLACES[0])
    x, y, z = finding.center_xyz
    for away, kind in ((2.99, "nodule"), (3.0, "none")):
        truth = KnownTruth(nodules=(KnownNodule(center_xyz=(x + away, y, z), diameter_mm=6.0),))
        assert [end.kind for end in truth_at([finding], truth)] == [kind]


def test_of_two_nodules_the_nearer_one_in_diameters_is_hit() -> None:
    finding = toy_finding(*PLACES[0])
    x, y, z = finding.center_xyz
    small, large = ((x + 1.5, y, z), 4.0), ((x - 2.0, y, z), 20.0)
    truth = KnownTruth(nodules=tuple(KnownNodule(center_xyz=c, diameter_mm=d) for c, d in (small, large)))
    assert truth_at([finding], truth)[0].nodule == 1


def test_a_nodule_is_found_only_by_what_was_taken_for_one() -> None:
    findings, truth = toy_opinion().findings, toy_truth()
    assert found_nodules(findings, truth) == {0}
    assert found_nodules([replace(findings[0], stage="filtered")], truth) == frozenset()


def test_the_submission_is_one_that_the_challenge_takes(tmp_path) -> None:
    file = tmp_path / "submission.csv"
    file.write_text(submission_csv("1.2.3", toy_opinion().findings))
    submitted = read_submission(file, frozenset({"1.2.3"}))
    assert [mark.prob_nodule for mark in submitted.marks["1.2.3"]] == [0.93, 0.64, 0.22, 0.01]
