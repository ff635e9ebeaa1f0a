import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from lungml.froc import CURVE_FPS, FPS_PER_SCAN, count_marks, froc, froc_of
from lungml.score import ScoredFinding
from tests.benchmarks.scoring import Sphere, differ, plain_froc, random_scene


def at(x: float, prob: float = 0.9) -> ScoredFinding:
    return ScoredFinding(center_xyz=(x, 0.0, 0.0), prob_nodule=prob)


def nodule(x: float, diameter_mm: float = 10.0) -> Sphere:
    return Sphere((x, 0.0, 0.0), diameter_mm)


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


# --- beside the rules in plain Python ---


@pytest.mark.parametrize(
    ("seed", "scans", "marks"),
    [(0, 8, 60), (1, 20, 400), (2, 5, 900), (3, 48, 400)],  # the third has more than 100 marks a scan
)
def test_it_says_what_the_rules_say_in_plain_python(seed: int, scans: int, marks: int) -> None:
    # With 8 or 48 scans every rate falls on a whole number of false positives, where rounding decides.
    rng = np.random.default_rng(seed)
    scene = random_scene(rng, scans=scans, marks=marks, nodules=2 * scans, excluded=20 * scans)
    ours = froc(*scene, bootstraps=60, generator=np.random.default_rng(seed))
    theirs = plain_froc(*scene, bootstraps=60, generator=np.random.default_rng(seed))
    assert differ(ours, theirs) == ""
    assert min(theirs.counts[name] for name in ("hits", "misses", "false positives", "on excluded", "double hits")) > 0
    assert (theirs.counts["beyond the limit"] > 0) == (seed == 2)


def test_it_says_what_the_rules_say_where_marks_are_equal_at_the_limit() -> None:
    findings, *truth, series = random_scene(np.random.default_rng(5), scans=6, marks=900, nodules=24, excluded=60)
    tied = {uid: [replace(m, prob_nodule=round(m.prob_nodule, 1)) for m in marks] for uid, marks in findings.items()}
    ours = froc(tied, *truth, series, bootstraps=20, generator=np.random.default_rng(5))
    theirs = plain_froc(tied, *truth, series, bootstraps=20, generator=np.random.default_rng(5))
    assert differ(ours, theirs) == ""
    beyond = sum(max(0, len(marks) - 100) for marks in tied.values())
    assert ours.ignored_beyond_limit > beyond > 0


def test_a_score_that_is_off_anywhere_is_noticed() -> None:
    scene = random_scene(np.random.default_rng(0), scans=8, marks=60, nodules=16, excluded=0)
    ours = froc(*scene, bootstraps=10, generator=np.random.default_rng(0))
    theirs = plain_froc(*scene, bootstraps=10, generator=np.random.default_rng(0))
    assert differ(ours, theirs) == ""
    for wrong in (
        {"misses": ours.misses + 1},
        {"sensitivity": (*ours.sensitivity[:-1], 0.0)},
        {"cpm": ours.cpm + 1e-6},
        {"band_high": tuple(edge + 1e-6 for edge in ours.band_high)},
        {"band_low": ()},
    ):
        assert differ(replace(ours, **wrong), theirs) != "", wrong


@pytest.mark.parametrize("kept", ["no marks", "hits only", "no hits"])
def test_it_says_so_too_where_a_class_of_marks_is_absent(kept: str) -> None:
    findings, nodules, excluded, series = random_scene(
        np.random.default_rng(4), scans=6, marks=80, nodules=12, excluded=0
    )
    if kept == "no hits":
        nodules = {uid: [Sphere((9000.0, 0.0, 0.0), 5.0)] for uid in series}
    elif kept == "no marks":
        findings = {}
    else:
        findings = {
            uid: [ScoredFinding(center_xyz=n.center_xyz, prob_nodule=0.3 + i / 10) for i, n in enumerate(nodules[uid])]
            for uid in series
        }
    ours = froc(findings, nodules, excluded, series, bootstraps=20, generator=np.random.default_rng(0))
    theirs = plain_froc(findings, nodules, excluded, series, bootstraps=20, generator=np.random.default_rng(0))
    assert differ(ours, theirs) == ""
    assert ours.cpm == (1.0 if kept == "hits only" else 0.0)


# --- what is left for other scores ---


def test_the_best_mark_of_each_nodule_in_the_order_of_the_scans() -> None:
    marks = {"a": [at(50, 0.4), at(1, 0.3), at(0, 0.8)], "b": [], "c": [at(0, 0.6)]}
    nodules = {"a": [nodule(0), nodule(50), nodule(90)], "c": [nodule(0)], "b": [nodule(0)]}
    counted = count_marks(marks, nodules, {}, ["c", "b", "a"])
    np.testing.assert_array_equal(counted.nodule_probs, [0.6, math.nan, 0.8, 0.4, math.nan])
    assert (counted.nodules, counted.true_positives, counted.false_positives) == (5, 3, 0)
    assert froc_of(counted) == froc(marks, nodules, {}, ["c", "b", "a"])


def test_the_threshold_of_a_number_of_false_positives() -> None:
    # Two scans; false positives at 0.9, 0.7 and twice 0.5, hits at 0.8 and 0.6.
    marks = {"a": [at(500, 0.9), at(0, 0.8), at(600, 0.7)], "b": [at(0, 0.6), at(500, 0.5), at(600, 0.5)]}
    curve = count_marks(marks, {"a": [nodule(0)], "b": [nodule(0)]}, {}, ["a", "b"]).curve
    expected = {0: math.inf, 0.4: math.inf, 0.5: 0.8, 0.9: 0.8, 1: 0.6, 1.9: 0.6, 2: 0.5, 8: 0.5}
    assert {fps: curve.threshold_at(fps) for fps in expected} == expected


def test_the_band_of_the_whole_curve_holds_that_of_the_rates() -> None:
    assert (CURVE_FPS[0], CURVE_FPS[-1]) == (1 / 16, 16)
    assert set(FPS_PER_SCAN) <= set(CURVE_FPS)
    marks, nodules, series = random_marks(np.random.default_rng(1))
    result = froc(marks, nodules, {}, series, bootstraps=100, generator=np.random.default_rng(7))
    fps, low, high = result.curve_band
    assert fps == CURVE_FPS
    rates = [fps.index(rate) for rate in FPS_PER_SCAN]
    assert tuple(low[i] for i in rates) == result.band_low
    assert tuple(high[i] for i in rates) == result.band_high
    assert all(below <= above for edge in (low, high) for below, above in pairwise(edge))
    assert json.loads(json.dumps(result.as_dict(), allow_nan=False))["curve_band"][1] == list(low)
    assert froc(marks, nodules, {}, series).curve_band == ()


def test_without_a_nodule_in_any_resample_the_bands_are_nan() -> None:
    result = froc({"a": [at(0)]}, {}, {}, ["a"], bootstraps=5, generator=np.random.default_rng(0))
    assert np.isnan([*result.band_low, *result.band_high, *result.cpm_band, *result.curve_band[1]]).all()
    json.dumps(result.as_dict(), allow_nan=False)


def test_marks_equal_to_the_hundred_and_first_are_all_left_out() -> None:
    nodules = {"a": [nodule(0)]}
    sure, equal = [at(1000 + 20 * i, 0.8) for i in range(96)], [at(0, 0.5), *(at(9000 + 20 * i, 0.5) for i in range(3))]
    whole = froc({"a": [*sure, *equal]}, nodules, {}, ["a"])  # a hundred: none is beyond the limit
    assert (whole.marks, whole.true_positives, whole.false_positives, whole.ignored_beyond_limit) == (100, 1, 99, 0)
    # One more, whichever: the hundred-and-first is one of the equal ones, and the nodule goes with them.
    for more, left in ((at(8000, 0.8), 97), (at(8000, 0.5), 96)):
        result = froc({"a": [*sure, *equal, more]}, nodules, {}, ["a"])
        assert (result.marks, result.false_positives, result.misses) == (left, left, 1)
        assert result.ignored_beyond_limit == 101 - left
    all_equal = froc({"a": [at(0, 0.5), *(at(1000 + 20 * i, 0.5) for i in range(100))]}, nodules, {}, ["a"])
    assert (all_equal.marks, all_equal.ignored_beyond_limit, all_equal.cpm) == (0, 101, 0.0)


def test_the_order_of_the_rows_changes_nothing() -> None:
    rng = np.random.default_rng(8)
    marks = {}
    for uid in ("a", "b", "c"):
        probs = rng.integers(1, 10, 160) / 10  # about 18 marks of each probability: ties at every limit
        marks[uid] = [at(20 * i, prob) for i, prob in enumerate(probs.tolist())]
    nodules = {uid: [nodule(20 * i) for i in range(0, 160, 8)] for uid in marks}
    first = froc(marks, nodules, {}, list(marks))
    assert 0 < first.marks < 300
    assert 0 < first.cpm < 1
    for _ in range(5):
        shuffled = {uid: [listed[i] for i in rng.permutation(len(listed)).tolist()] for uid, listed in marks.items()}
        assert froc(shuffled, nodules, {}, list(marks)) == first


def test_a_mark_that_is_listed_twice_is_two_false_positives_and_one_hit() -> None:
    result = froc({"a": [at(0)] * 2 + [at(50)] * 2}, {"a": [nodule(0)]}, {}, ["a"])
    assert (result.true_positives, result.ignored_double_hits, result.false_positives) == (1, 1, 2)
