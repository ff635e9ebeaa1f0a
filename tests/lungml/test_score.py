import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from lungml.froc import FPS_PER_SCAN, count_marks, froc
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


# --- the table ---


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


# --- FROC ---


def test_froc_of_a_hit_a_miss_and_a_false_positive() -> None:
    result = froc({"a": [at(0, 0.9), at(50, 0.5)], "b": []}, {"a": [nodule(0)], "b": [nodule(0)]}, {}, ["a", "b"])
    # Points (0, 0), (0, 1/2) and (1/2, 1/2): the empty scan stays in both denominators.
    assert result.fps_per_scan == (0.0, 0.0, 0.5)
    assert result.sensitivity == (0.0, 0.5, 0.5)
    assert result.thresholds == (math.inf, 0.9, 0.5)
    assert result.sensitivity_at == (0.5,) * 7
    assert result.cpm == 0.5
    assert (result.true_positives, result.misses, result.false_positives) == (1, 1, 1)


def test_froc_interpolates_linearly() -> None:
    # One scan: false positive, hit, then a false positive and a hit of one probability.
    marks = [at(50, 0.9), at(0, 0.8), at(60, 0.7), at(20, 0.7)]
    result = froc({"a": marks}, {"a": [nodule(0), nodule(20)]}, {}, ["a"])
    assert result.fps_per_scan == (0.0, 1.0, 1.0, 2.0)
    assert result.sensitivity == (0.0, 0.0, 0.5, 1.0)
    assert result.sensitivity_at == (0, 0, 0, 0.5, 1, 1, 1)
    assert result.cpm == pytest.approx(3.5 / 7)


def test_a_mark_on_the_radius_is_a_false_positive() -> None:
    off = ScoredFinding(center_xyz=(3.0, 4.0, 0.0), prob_nodule=0.5)
    assert froc({"a": [off]}, {"a": [nodule(0, diameter_mm=10)]}, {}, ["a"]).false_positives == 1
    assert froc({"a": [off]}, {"a": [nodule(0, diameter_mm=10.001)]}, {}, ["a"]).true_positives == 1


def test_of_two_marks_on_a_nodule_the_more_probable_one_counts() -> None:
    result = froc({"a": [at(1, 0.3), at(0, 0.8)]}, {"a": [nodule(0)]}, {}, ["a"])
    assert result.thresholds == (math.inf, 0.8)
    assert (result.true_positives, result.false_positives, result.ignored_double_hits) == (1, 0, 1)
    assert result.cpm == 1.0


def test_a_mark_on_two_nodules_finds_both() -> None:
    result = froc({"a": [at(2, 0.8)]}, {"a": [nodule(0), nodule(4)]}, {}, ["a"])
    assert (result.true_positives, result.misses, result.false_positives) == (2, 0, 0)


def test_marks_on_excluded_findings_are_ignored_unless_they_hit_a_nodule() -> None:
    excluded = {"a": [nodule(0, diameter_mm=20), nodule(50, diameter_mm=-1)]}
    marks = [at(0, 0.9), at(8, 0.8), at(54.9, 0.7), at(55, 0.6)]
    result = froc({"a": marks}, {"a": [nodule(0)]}, excluded, ["a"])
    assert (result.true_positives, result.ignored_on_excluded, result.false_positives) == (1, 2, 1)


def test_only_the_hundred_most_probable_marks_of_a_scan_count() -> None:
    false = [at(1000 + 20 * i, 0.5 + i / 1000) for i in range(120)]
    result = froc({"a": [at(0, 0.1), *false]}, {"a": [nodule(0)]}, {}, ["a"])
    assert (result.marks, result.ignored_beyond_limit) == (100, 21)
    assert (result.true_positives, result.misses, result.false_positives) == (0, 1, 100)
    assert result.thresholds[-1] == 0.5 + 20 / 1000
    assert result.cpm == 0.0


def test_scans_outside_the_list_do_not_count_and_scans_without_marks_do() -> None:
    marks = {"a": [at(50, 0.5)], "elsewhere": [at(50, 0.9)] * 5}
    result = froc(marks, {"a": [nodule(0)], "elsewhere": [nodule(0)]}, {}, ["a", "b", "c", "d"])
    assert (result.nodules, result.marks, result.scans) == (1, 1, 4)
    assert result.fps_per_scan[-1] == 0.25


def test_edge_cases_have_defined_scores() -> None:
    assert froc({}, {"a": [nodule(0)]}, {}, ["a"]).cpm == 0.0
    nothing = froc({}, {}, {}, ["a"])
    assert math.isnan(nothing.cpm)
    assert nothing.as_dict()["cpm"] is None
    json.dumps(nothing.as_dict(), allow_nan=False)
    with pytest.raises(ValueError, match="list of scans"):
        froc({}, {}, {}, [])
    with pytest.raises(ValueError, match="list of scans"):
        froc({}, {}, {}, ["a", "a"])
    with pytest.raises(ValueError, match="NaN"):
        froc({"a": [at(0, math.nan)]}, {}, {}, ["a"])


def random_marks(rng: np.random.Generator) -> tuple[dict, dict, list[str]]:
    """Scans with nodules 100 mm apart and marks on some of them; probabilities with ties."""
    series = [f"scan-{i}" for i in range(30)]
    nodules, marks = {}, {}
    for uid in series:
        count = int(rng.integers(0, 4))
        nodules[uid] = [nodule(100 * i) for i in range(count)]
        hits = [at(100 * i, round(rng.beta(4, 2), 2)) for i in range(count) if rng.random() < 0.8]
        marks[uid] = hits + [at(-100 * i, round(rng.beta(2, 3), 2)) for i in range(1, int(rng.integers(1, 20)))]
    return marks, nodules, series


def test_froc_points_are_scikit_learns_roc_points() -> None:
    marks, nodules, series = random_marks(np.random.default_rng(0))
    pairs = [(m.center_xyz[0] >= 0, m.prob_nodule) for uid in series for m in marks[uid]]
    labels, probs = zip(*pairs)
    fpr, tpr, thresholds = roc_curve(labels, probs)
    result = froc(marks, nodules, {}, series)
    total = sum(len(n) for n in nodules.values())
    np.testing.assert_allclose(result.thresholds, thresholds)
    np.testing.assert_allclose(result.fps_per_scan, fpr * (len(labels) - sum(labels)) / len(series))
    np.testing.assert_allclose(result.sensitivity, tpr * sum(labels) / total)
    np.testing.assert_allclose(
        result.sensitivity_at, np.interp(FPS_PER_SCAN, result.fps_per_scan, result.sensitivity), atol=1e-12
    )


def test_the_bootstrap_band_surrounds_the_score_and_repeats_under_one_seed() -> None:
    marks, nodules, series = random_marks(np.random.default_rng(1))
    one, two = (froc(marks, nodules, {}, series, bootstraps=200, generator=np.random.default_rng(7)) for _ in range(2))
    assert one == two
    assert one.cpm_band[0] < one.cpm < one.cpm_band[1]
    assert all(low <= s <= high for low, s, high in zip(one.band_low, one.sensitivity_at, one.band_high))
    with pytest.raises(ValueError, match="generator"):
        froc(marks, nodules, {}, series, bootstraps=10)


def test_bootstraps_of_equal_scans_have_no_width() -> None:
    series = ["a", "b", "c"]
    marks = {uid: [at(0, 0.9), at(50, 0.5)] for uid in series}
    result = froc(
        marks,
        {uid: [nodule(0)] for uid in series},
        {},
        series,
        bootstraps=20,
        generator=np.random.default_rng(0),
    )
    assert result.cpm_band == (result.cpm, result.cpm)


def test_the_curve_of_a_resample_counts_each_scan_as_often_as_it_was_drawn() -> None:
    marks = {"a": [at(0, 0.9)], "b": [at(50, 0.8)], "c": []}
    counted = count_marks(marks, {"a": [nodule(0)], "c": [nodule(0)]}, {}, ["a", "b", "c"])
    assert (counted.nodules, counted.true_positives, counted.false_positives) == (2, 1, 1)
    for times, sensitivity in (([1, 1, 1], 1 / 2), ([2, 0, 1], 2 / 3), ([0, 3, 0], math.nan), ([0, 2, 1], 0)):
        np.testing.assert_array_equal(counted.curve.sensitivity_at(np.array(times)), [sensitivity] * 7)


def test_a_mark_hits_a_place_that_is_nearer_than_the_reach() -> None:
    places, marks = [nodule(0, diameter_mm=10), nodule(20, diameter_mm=-1)], [at(4.9), at(5), at(15.1)]
    assert find_hits(places, marks, 0.5, "a").tolist() == [[True, False, False], [False, False, True]]
    assert find_hits(places, [], 0.5, "a").shape == (2, 0)
