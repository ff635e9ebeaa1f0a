"""Paired bootstraps of hand-made systems, whose resamples can be counted by hand."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from lungml.compare import (
    STATISTICS,
    Ranking,
    Sampled,
    System,
    against_diameter,
    build_system,
    compare,
    draw_resamples,
    paired_difference,
    sample,
)
from lungml.froc import froc
from lungml.metrics import roc_auc
from lungml.score import ScoredFinding, score_table


@dataclass(frozen=True)
class Nodule:
    center_xyz: tuple[float, float, float]
    diameter_mm: float = 10.0
    malignant: bool = False


def at(x: float, prob: float = 0.9, malignant: float = 0.1) -> ScoredFinding:
    return ScoredFinding(center_xyz=(x, 0.0, 0.0), prob_nodule=prob, prob_malignant=malignant)


def nodule(x: float, malignant: bool = False, diameter_mm: float = 10.0) -> Nodule:
    return Nodule((x, 0.0, 0.0), diameter_mm, malignant)


def system(
    findings: Mapping[str, Sequence[ScoredFinding]],
    nodules: Mapping[str, Sequence[Nodule]],
    series: Sequence[str],
    probs: Mapping[str, Sequence[float]] | None = None,
    **thresholds: float,
) -> System:
    if probs is None:
        probs = {uid: [0.5] * len(nodules.get(uid, ())) for uid in series}
    return build_system(findings, nodules, {}, series, prob_malignant=probs, **thresholds)


def once(of: System) -> dict[str, float]:
    times = np.ones((1, len(of.series_uids)), dtype=np.int64)
    return {name: float(values[0]) for name, values in of.score(times).items()}


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- resamples ---


def test_every_resample_draws_as_many_scans_as_there_are() -> None:
    times = draw_resamples(7, 500, generator())
    assert times.shape == (500, 7)
    assert (times.sum(axis=1) == 7).all()
    # A scan is left out of a resample with probability (6/7)^7 = 0.340.
    assert (times == 0).mean() == pytest.approx((6 / 7) ** 7, abs=0.03)
    assert np.array_equal(times, draw_resamples(7, 500, generator()))
    assert not np.array_equal(times, draw_resamples(7, 500, generator(1)))


# --- rankings ---


def test_a_ranking_counts_every_pair_by_how_often_its_scans_count() -> None:
    # Scan 0: a positive at 0.9 and a negative at 0.5; scan 1: a positive at 0.4; scan 2: nothing.
    ranking = Ranking([True, False, True], [0.9, 0.5, 0.4], [0, 0, 1], 3)
    times = np.array([[1, 1, 1], [2, 1, 0], [0, 3, 0], [0, 0, 3]])
    # 1 of 2 pairs; then 2 x 2 won pairs of (2 + 1) x 2; then no negative; then nothing.
    assert ranking.auc(times)[:2].tolist() == [0.5, 4 / 6]
    assert np.isnan(ranking.auc(times)[2:]).all()


def test_a_tie_counts_half() -> None:
    assert Ranking([True, False], [0.5, 0.5], [0, 0], 1).auc(np.ones((1, 1), dtype=int)).tolist() == [0.5]


def test_the_auc_of_a_resample_is_that_of_its_repeated_nodules() -> None:
    rng = generator(3)
    labels, scores = rng.random(60) < 0.4, rng.integers(0, 12, 60) / 12
    scan_of, times = rng.integers(0, 15, 60), draw_resamples(15, 40, rng)
    ranking = Ranking(labels, scores, scan_of, 15)
    expected = [roc_auc(np.repeat(labels, row[scan_of]), np.repeat(scores, row[scan_of])) for row in times]
    np.testing.assert_allclose(ranking.auc(times), expected, atol=1e-12)


def test_a_ranking_refuses_what_it_cannot_rank() -> None:
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        Ranking([True, False], [0.5, math.nan], [0, 0], 1)
    with pytest.raises(ValueError, match="not of one length"):
        Ranking([True, False], [0.5], [0, 0], 1)


# --- systems ---


def test_a_system_scores_as_the_scores_themselves_do() -> None:
    rng = generator(5)
    series = [f"scan-{i}" for i in range(12)]
    nodules = {uid: [nodule(100 * i, bool(rng.random() < 0.4)) for i in range(rng.integers(0, 4))] for uid in series}
    findings = {
        uid: [at(float(100 * rng.integers(-6, 4)), round(rng.random(), 2), rng.random()) for _ in range(9)]
        for uid in series
    }
    table, official = score_table(findings, nodules), froc(findings, nodules, {}, series)
    scores = once(system(findings, nodules, series))
    assert scores["cpm"] == pytest.approx(official.cpm, abs=1e-12)
    assert scores["sensitivity_at_1_fps"] == pytest.approx(official.sensitivity_at[3], abs=1e-12)
    assert (scores["found"], scores["false_positives"]) == (table.found, table.false_positives)

    # A scan that counts twice is a scan that is there twice.
    times = draw_resamples(12, 1, rng)
    drawn = {f"{uid}-{k}": uid for uid, n in zip(series, times[0]) for k in range(n)}
    twice = froc(
        {new: findings[old] for new, old in drawn.items()}, {n: nodules[o] for n, o in drawn.items()}, {}, [*drawn]
    )
    assert system(findings, nodules, series).score(times)["cpm"][0] == pytest.approx(twice.cpm, abs=1e-12)


def test_sensitivity_at_one_false_positive_a_scan() -> None:
    # Two scans; by probability: a hit, three false positives, a hit. At 2 marks in 2 scans one of two nodules is found.
    findings = {"a": [at(0, 0.9), at(500, 0.8), at(600, 0.7), at(700, 0.6)], "b": [at(0, 0.5)]}
    scores = once(system(findings, {"a": [nodule(0)], "b": [nodule(0)]}, ["a", "b"]))
    assert scores["sensitivity_at_1_fps"] == 0.5
    assert (scores["found"], scores["false_positives"]) == (2, 3)


def test_malignancy_at_the_annotated_centres_needs_no_finding() -> None:
    nodules = {"a": [nodule(0, True, 12.0), nodule(50, False, 6.0)], "b": [nodule(0, False, 15.0)]}
    scores = once(system({}, nodules, ["a", "b"], {"a": [0.8, 0.3], "b": [0.1]}))
    assert scores["malignancy_auc"] == 1.0
    assert scores["diameter_auc"] == 0.5  # 12 mm is above 6 mm and below 15 mm
    assert scores["end_to_end_malignancy_auc"] == 0.5  # nothing was found: all are 0


def test_nodules_of_a_scan_that_could_not_be_read_are_judged_by_neither_model_nor_diameter() -> None:
    nodules = {"a": [nodule(0, True, 12.0), nodule(50, False, 6.0)], "unread": [nodule(0, False, 15.0)]}
    scores = once(system({"a": []}, nodules, ["a", "unread"], {"a": [0.8, 0.3]}))
    assert (scores["malignancy_auc"], scores["diameter_auc"]) == (1.0, 1.0)


def test_end_to_end_a_nodule_has_what_the_findings_on_it_say() -> None:
    nodules = {"a": [nodule(0, True), nodule(50, True), nodule(100, True), nodule(150, False)]}
    found = [
        at(0, 0.9, 0.2), at(6.9, 0.6, 0.8),  # the higher one, and within 0.7 diameters
        at(57, 0.9, 0.9),  # beside the second nodule: missed
        at(100, 0.4, 0.9),  # filtered out
        at(150, 0.9, 0.5),
    ]  # fmt: skip
    # Malignant 0.8, 0, 0 against benign 0.5: one of three pairs.
    assert once(system({"a": found}, nodules, ["a"]))["end_to_end_malignancy_auc"] == pytest.approx(1 / 3)
    # With a lower nodule threshold the third counts: two of three.
    lower = system({"a": found}, nodules, ["a"], nodule_threshold=0.4)
    assert once(lower)["end_to_end_malignancy_auc"] == pytest.approx(2 / 3)


def test_malignant_sensitivity_is_that_of_the_reports_table() -> None:
    nodules = {"a": [nodule(0, True), nodule(50, True), nodule(100, False)], "b": [nodule(0, True)], "healthy": []}
    found = {
        "a": [at(0, 0.9, 0.7), at(50, 0.9, 0.4), at(100, 0.9, 0.9)],  # flagged, taken for benign, a benign one
        "b": [at(0, 0.4, 0.9)],  # filtered out
        "healthy": [at(0, 0.9, 0.9)],  # on nothing
    }
    one = system(found, nodules, ["a", "b", "healthy"])
    assert once(one)["malignant_sensitivity"] == pytest.approx(1 / 3)
    assert once(one)["malignant_false_positives"] == 2  # the benign nodule, and the finding on nothing
    times = np.array([[2, 1, 0], [0, 3, 0], [1, 0, 2], [0, 0, 3]])
    shares = one.score(times)["malignant_sensitivity"]
    assert shares[:3].tolist() == [2 / 5, 0.0, 1 / 2]
    assert math.isnan(shares[3])  # no malignant nodule was drawn
    assert one.score(times)["malignant_false_positives"].tolist() == [2, 0, 3, 3]
    # The thresholds are the system's own; a scan that could not be read counts as missed.
    assert once(system(found, nodules, ["a"], malignant_threshold=0.4))["malignant_sensitivity"] == 1.0
    assert once(system({"a": found["a"]}, nodules, ["a", "b"]))["malignant_sensitivity"] == pytest.approx(1 / 3)


def test_a_scan_with_thresholds_of_its_own_is_judged_at_them() -> None:
    nodules = {uid: [nodule(0, True), nodule(50, False)] for uid in ("a", "b")}
    found = {uid: [at(0, 0.4, 0.3), at(50, 0.6, 0.2), at(90, 0.45, 0.9)] for uid in nodules}
    probs = {uid: [0.5, 0.5] for uid in nodules}
    one = build_system(found, nodules, {}, ["a", "b"], prob_malignant=probs, thresholds_per_scan={"b": (0.4, 0.3)})
    assert (one.found.tolist(), one.false_positives.tolist()) == ([1, 2], [0, 1])
    assert (one.malignant_flagged.tolist(), one.malignant_false_positives.tolist()) == ([0, 1], [0, 1])
    # Malignant 0 and 0.3 against benign 0.2 twice: b's own is found at 0.4.
    assert once(one)["end_to_end_malignancy_auc"] == 0.5
    assert once(system(found, nodules, ["a", "b"]))["end_to_end_malignancy_auc"] == 0.0


def test_probabilities_must_belong_to_the_nodules() -> None:
    with pytest.raises(ValueError, match="a: 1 probabilities for 2 nodules"):
        system({}, {"a": [nodule(0), nodule(50)]}, ["a"], {"a": [0.5]})


# --- differences ---

SERIES = [f"scan-{i}" for i in range(20)]
TRUTH = {uid: [nodule(0, True, 9.0), nodule(50, False, 11.0)] for uid in SERIES}


def finding_first(count: int) -> dict[str, list[ScoredFinding]]:
    """Marks on both nodules of the first so many scans, none elsewhere."""
    return {uid: [at(0), at(50)] if place < count else [] for place, uid in enumerate(SERIES)}


def test_equal_systems_do_not_differ() -> None:
    one = system(finding_first(10), TRUTH, SERIES)
    for name, difference in compare(one, one, generator=generator(), resamples=200).items():
        assert (difference.difference, difference.band, difference.p_value) == (0.0, (0.0, 0.0), 1.0), name
        assert (difference.resamples, difference.left_out) == (200, 0)


def test_a_system_that_is_better_on_every_scan_is_better_on_every_resample() -> None:
    worse, better = system(finding_first(0), TRUTH, SERIES), system(finding_first(20), TRUTH, SERIES)
    differences = compare(worse, better, generator=generator(), resamples=999)
    cpm, found = differences["cpm"], differences["found"]
    assert (cpm.first, cpm.second, cpm.difference, cpm.band) == (0.0, 1.0, 1.0, (1.0, 1.0))
    assert (found.first, found.second, found.difference, found.band) == (0, 40, 40, (40, 40))
    assert cpm.p_value == found.p_value == 2 / 1000  # never 0
    back = compare(better, worse, generator=generator(), resamples=999)["found"]
    assert (back.difference, back.band, back.p_value) == (-40, (-40, -40), 2 / 1000)


def test_the_band_is_the_binomial_one_where_half_of_the_scans_differ() -> None:
    # One scan of 20 differs, by 2 nodules: it is drawn k times, k binomial of 20 draws at 1/20.
    one, other = system(finding_first(10), TRUTH, SERIES), system(finding_first(11), TRUTH, SERIES)
    found = compare(one, other, generator=generator(), resamples=2000)["found"]
    assert (found.difference, found.band) == (2, (0, 6))
    # k is 0 with probability 0.95 ** 20 = 0.358, where the difference is 0; it is never below.
    assert found.p_value == pytest.approx(2 * 0.95**20, abs=0.05)


def test_the_pairing_is_what_makes_a_small_difference_visible() -> None:
    # Unpaired, "found" of either system varies by +-9 nodules; the difference is one scan in three everywhere.
    one, other = system(finding_first(8), TRUTH, SERIES), system(finding_first(14), TRUTH, SERIES)
    times = draw_resamples(20, 2000, generator())
    first, second = sample(one, times)["found"], sample(other, times)["found"]
    assert first.band[1] > second.band[0]  # the single bands overlap
    assert paired_difference(first, second).band[0] > 0
    assert paired_difference(first, second).p_value < 0.05


def test_every_resample_of_three_scans_by_hand() -> None:
    # All 27 draws with replacement, each as likely as another, instead of random ones.
    draws = [np.bincount(draw, minlength=3) for draw in itertools.product(range(3), repeat=3)]
    series = ["a", "b", "c"]
    truth = {uid: [nodule(0)] for uid in series}
    one = system({"a": [at(0)], "b": [], "c": []}, truth, series)
    other = system({"a": [], "b": [at(0)], "c": [at(0)]}, truth, series)
    times = np.array(draws)
    found = paired_difference(sample(one, times)["found"], sample(other, times)["found"])
    # Other finds 3 - a where a counts the draws of "a", one finds a: 3 - 2a is -3 (1 way), -1 (6), 1 (12), 3 (8).
    assert found.difference == 1
    assert found.p_value == pytest.approx(2 * (1 + 7) / 28)
    assert found.band == (pytest.approx(-1.7), 3.0)  # 2.5 % of 26 steps is 0.65 of the step from -3 to -1


def test_resamples_without_both_classes_are_left_out() -> None:
    # Malignant nodules in three scans, benign ones in three others.
    series = [*"abcdef"]
    truth = {uid: [nodule(0, uid in "abc", 5.0 if uid in "abc" else 9.0)] for uid in series}
    one = system({}, truth, series, {uid: [0.2 if uid in "abc" else 0.8] for uid in series})
    other = system({}, truth, series, {uid: [0.9 if uid in "abc" else 0.8] for uid in series})
    times = np.array([[1] * 6, [6, 0, 0, 0, 0, 0], [0, 0, 0, 2, 2, 2], [0, 0, 3, 3, 0, 0]])
    auc = paired_difference(sample(one, times)["malignancy_auc"], sample(other, times)["malignancy_auc"])
    assert (auc.first, auc.second, auc.difference) == (0.0, 1.0, 1.0)
    assert (auc.resamples, auc.left_out) == (2, 2)
    assert (auc.band, auc.p_value) == ((1.0, 1.0), pytest.approx(2 / 3))
    assert sample(one, times)["malignancy_auc"].left_out == 2
    # Of fewer than half of the resamples there is neither.
    few = np.concatenate([times, [[0, 0, 0, 6, 0, 0]]])
    auc = paired_difference(sample(one, few)["malignancy_auc"], sample(other, few)["malignancy_auc"])
    assert (auc.resamples, auc.left_out, auc.difference) == (2, 3, 1.0)
    assert np.isnan([*auc.band, auc.p_value]).all()
    assert against_diameter(sample(one, times)).difference == 0.0
    assert against_diameter(sample(other, times)).difference == 1.0


def test_scans_without_nodules_only_add_false_alarms() -> None:
    series = ["a", "b", "c", "healthy"]
    truth = {uid: [nodule(0)] for uid in "abc"}
    found = {uid: [at(0)] for uid in "abc"}
    one = system({**found, "healthy": []}, truth, series)
    other = system({**found, "healthy": [at(0), at(50)]}, truth, series)
    differences = compare(one, other, generator=generator(), resamples=2000)
    assert (differences["found"].difference, differences["false_positives"].difference) == (0, 2)
    assert differences["found"].p_value == 1.0
    # A resample of nothing but the healthy scan, one in 256, has no sensitivity.
    assert 0 < differences["cpm"].left_out < 25
    assert differences["false_positives"].left_out == 0


def test_fewer_than_three_scans_tell_no_band() -> None:
    # Scan "a" has two malignant nodules, "b" a benign one, "c" nothing; marks on all, and a false positive in "c".
    series = ["a", "b", "c"]
    truth = {"a": [nodule(0, True), nodule(50, True)], "b": [nodule(0)]}
    one = system({"a": [at(0), at(50)], "b": [at(0, 0.2)], "c": [at(0)]}, truth, series)
    none = system({"a": [], "b": [], "c": []}, truth, series)
    times = draw_resamples(3, 300, generator())
    samples = sample(one, times)
    held = {name: samples[name].scans for name in STATISTICS}
    assert held == {
        "cpm": 2, "sensitivity_at_1_fps": 2, "found": 2, "false_positives": 3, "malignancy_auc": 1, "diameter_auc": 1,
        "end_to_end_malignancy_auc": 1, "malignant_sensitivity": 1, "malignant_false_positives": 3,
    }  # fmt: skip
    assert np.isnan(samples["found"].band).all()
    assert samples["found"].observed == 2
    assert samples["false_positives"].band == (0, 3)
    differences = {name: paired_difference(sample(none, times)[name], samples[name]) for name in STATISTICS}
    assert np.isnan([*differences["found"].band, differences["found"].p_value]).all()
    assert differences["false_positives"].band == (0, 3)
    assert json.loads(json.dumps(samples["found"].as_dict(), allow_nan=False)) == {
        "observed": 2.0, "band": [None, None], "left_out": 0, "scans": 2,
    }  # fmt: skip


def test_a_score_that_never_varies_has_no_band_and_half_of_the_resamples_are_needed() -> None:
    always = Sampled(observed=1.0, resampled=np.ones(100), scans=20)
    assert np.isnan(always.band).all()
    assert always.tells
    # But a difference that never varies is one: a tie is no gain, see `lungml.gate`.
    assert paired_difference(always, always).band == (0.0, 0.0)
    half = Sampled(observed=0.5, resampled=np.array([0.0, 1.0, math.nan, math.nan]), scans=20)
    assert half.band == pytest.approx((0.025, 0.975))
    less = replace(half, resampled=np.append(half.resampled, math.nan))
    assert np.isnan(less.band).all()
    assert (less.tells, less.left_out) == (False, 3)
    assert np.isnan(replace(half, resampled=np.empty(0)).band).all()
    # Where nobody counted the scans they are not asked for.
    assert np.isnan(replace(half, scans=2).band).all()
    assert replace(half, scans=None).band == half.band


def test_what_is_not_defined_is_nan_and_null() -> None:
    one = system({"a": []}, {}, ["a"])
    difference = compare(one, one, generator=generator(), resamples=10)["cpm"]
    assert math.isnan(difference.difference)
    assert math.isnan(difference.p_value)
    assert (difference.resamples, difference.left_out) == (0, 10)
    said: dict[str, Any] = json.loads(json.dumps(difference.as_dict(), allow_nan=False))
    assert said == {
        "first": None,
        "second": None,
        "difference": None,
        "band": [None, None],
        "p_value": None,
        "resamples": 0,
        "left_out": 10,
    }


def test_only_systems_of_the_same_scans_are_compared() -> None:
    one = system({}, TRUTH, SERIES)
    with pytest.raises(ValueError, match="same scans"):
        compare(one, replace(one, series_uids=tuple(reversed(SERIES))), generator=generator())
    with pytest.raises(ValueError, match="no pairs"):
        paired_difference(Sampled(observed=0, resampled=np.zeros(3)), Sampled(observed=0, resampled=np.zeros(4)))


def test_one_seed_gives_one_answer_for_every_statistic() -> None:
    one, other = system(finding_first(8), TRUTH, SERIES), system(finding_first(14), TRUTH, SERIES)
    first, again = (compare(one, other, generator=generator(4), resamples=50) for _ in range(2))
    assert first == again
    assert tuple(first) == STATISTICS
