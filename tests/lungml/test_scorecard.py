"""Scans along a line, whose nodules are lost one at each stage, counted by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from lungml.compare import STATISTICS
from lungml.evidence import Evidence
from lungml.findings import Finding
from lungml.froc import FPS_PER_SCAN, froc
from lungml.score import score_table
from lungml.scorecard import Scorecard, score_scans
from lungml.segmentation_score import SegmentedNodule, SegmentedScan


@dataclass(frozen=True)
class Nodule:
    center_xyz: tuple[float, float, float]
    diameter_mm: float = 10.0
    malignant: bool = False


def nodule(x: float, malignant: bool = False, diameter_mm: float = 10.0) -> Nodule:
    return Nodule((x, 0.0, 0.0), diameter_mm, malignant)


def at(x: float, prob: float = 0.9, malignant: float = 0.1) -> Finding:
    return Finding(
        center_irc=(0.0, 0.0, x),
        center_xyz=(x, 0.0, 0.0),
        prob_nodule=prob,
        prob_malignant=malignant,
        stage="benign",
    )


def scan(
    uid: str,
    nodules: Sequence[Nodule] = (),
    findings: Sequence[Finding] = (),
    *,
    touched: Sequence[bool] | None = None,
    probs: Sequence[float] | None = None,
    **also: Any,
) -> Evidence:
    touched = [True] * len(nodules) if touched is None else touched
    return Evidence(
        series_uid=uid,
        nodules=tuple(nodules),
        findings=tuple(findings),
        segmented=SegmentedScan(
            voxels=1000,
            flagged=50,
            tp=8,
            fp=2,
            fn=8,
            slices=2,
            nodules=tuple(SegmentedNodule(touched=t, dice=0.5 * t) for t in touched),
        ),
        prob_malignant=tuple([0.5] * len(nodules) if probs is None else probs),
        **also,
    )


def set_aside(uid: str, nodules: Sequence[Nodule] = (), **also: Any) -> Evidence:
    return Evidence(series_uid=uid, nodules=tuple(nodules), findings=None, segmented=None, prob_malignant=None, **also)


def score(*evidence: Evidence, nodule: float = 0.5, malignant: float = 0.5, **also: Any) -> Scorecard:
    draws = {"seed": 0, "resamples": 40, "bootstraps": 20} | also
    return score_scans(evidence, nodule_threshold=nodule, malignant_threshold=malignant, **draws)


def as_json(card: Scorecard) -> Any:
    return json.loads(json.dumps(card.as_dict(), allow_nan=False))


# One nodule lost at every stage, three right; four findings on none of them.
EVERY_STAGE = (
    scan(
        "a",
        [nodule(0), nodule(100, True), nodule(200), nodule(300, True), nodule(400, True), nodule(500)],
        [
            at(199, 0.4, math.nan),  # filtered out
            at(300, 0.8, 0.4),  # called benign
            at(400, 0.7, 0.5), at(401, 0.9, 0.1),  # thresholds are inclusive, and the one that came furthest decides
            at(506.9, 0.5, 0.9),  # within 0.7 diameters and not within the radius: right by the report's rule
            at(900, 0.9), at(950, 0.3, math.nan),
        ],
        touched=[False, True, True, True, True, False],
        textures=("solid", "solid", "", "", "", ""),
        slice_spacing_mm=2.5,
    ),
    scan("b", [], [at(0, 0.6, 0.6)], slice_spacing_mm=1.0),
    scan("c", [nodule(0, diameter_mm=25.0)], [at(3, 0.95)], slice_spacing_mm=1.0),
    set_aside("d", [nodule(0, True)]),
)  # fmt: skip


def test_each_nodule_is_lost_at_exactly_one_stage() -> None:
    card = score(*EVERY_STAGE)
    assert dict(card.losses.lost) == {
        "quarantine": 1, "segmentation": 1, "grouping": 1, "classifier": 1, "malignancy": 1,
    }  # fmt: skip
    assert (card.losses.nodules, card.losses.right) == (8, 3)
    assert dict(card.malignant_losses.lost) == {
        "quarantine": 1, "segmentation": 0, "grouping": 1, "classifier": 0, "malignancy": 1,
    }  # fmt: skip
    assert (card.malignant_losses.nodules, card.malignant_losses.right) == (4, 1)


def test_the_tables_by_both_rules() -> None:
    card = score(*EVERY_STAGE)
    assert card.table.counts == ((0, 1, 1, 1), (1, 1, 1, 1), (2, 0, 1, 1))
    # By the radius the finding at 506.9 mm is on nothing, and the more probable finding at 401 mm decides.
    assert card.official_table.counts == ((0, 1, 1, 2), (2, 1, 1, 0), (2, 0, 2, 0))
    assert (card.series_uids, card.set_aside) == (("a", "b", "c", "d"), ("d",))


def test_the_funnel_leaves_out_what_was_not_read() -> None:
    funnel = score(*EVERY_STAGE).funnel
    assert (funnel.voxels, funnel.flagged) == (1000, 50)
    assert (funnel.candidates, funnel.nodules, funnel.malignant) == (9 / 3, 7 / 3, 3 / 3)


def test_sensitivity_of_each_kind_is_read_where_all_scans_have_one_false_positive_a_scan() -> None:
    card = score(*EVERY_STAGE)
    # False positives by the official rules at 0.9, 0.6, 0.5 and 0.3: all four pass at one in each of four scans.
    by_diameter = {group.name: group for group in card.by_diameter}
    assert (by_diameter["10 to 20 mm"].nodules, by_diameter["10 to 20 mm"].found) == (7, 3)
    assert by_diameter["10 to 20 mm"].sensitivity == 3 / 7
    assert by_diameter["20 mm or more"].sensitivity == 1.0
    assert [(g.name, g.nodules) for g in card.by_spacing] == [
        ("1 mm or less", 1), ("over 1 to 2 mm", 0), ("over 2 mm", 6), ("not known", 1),
    ]  # fmt: skip
    assert [(g.name, g.nodules, g.sensitivity) for g in card.by_texture] == [("solid", 2, 0.0), ("not known", 6, 4 / 6)]
    # Three further ones are two more than the further scan may have: the threshold rises above the nodule at 0.4.
    crowded = score(*EVERY_STAGE, scan("e", [], [at(50 * i, 0.45, 0) for i in range(3)]))
    assert {g.name: g.sensitivity for g in crowded.by_diameter}["10 to 20 mm"] == 2 / 7


def test_pixels_and_nodules_of_the_segmentation_are_those_of_the_scans_that_were_read() -> None:
    segmentation = score(*EVERY_STAGE).segmentation
    assert segmentation is not None
    assert (segmentation.slices, segmentation.nodules, segmentation.touched) == (6, 7, 5)
    assert (segmentation.precision, segmentation.recall) == (0.8, 0.5)


def test_findings_and_nodules_are_judged_for_curves_and_calibration() -> None:
    card = score(
        scan(
            "a",
            [nodule(0, True, 12.0), nodule(50, False, 6.0)],
            [at(0, 0.9), at(52, 0.8), at(60, 0.3), at(100, 0.7), at(204.9, 0.6), at(300, 0.2)],
            probs=[0.8, 0.3],
            unrated=(nodule(100),),
            excluded=(nodule(200, diameter_mm=-1), nodule(0, diameter_mm=30)),
        ),
        set_aside("b", [nodule(0)]),
    )
    # At 0 the nodule comes before the excluded finding; at 204.9 there is nothing but an excluded one.
    assert card.nodule.targets.tolist() == [True, True, False, True, False]
    assert card.nodule.probs.tolist() == [0.9, 0.8, 0.3, 0.7, 0.2]
    assert card.malignancy.targets.tolist() == [True, False]
    assert (card.malignancy.probs.tolist(), card.diameters_mm.tolist()) == ([0.8, 0.3], [12.0, 6.0])
    said = as_json(card)
    assert (said["nodule"]["positives"], said["nodule"]["negatives"], said["nodule"]["auc"]) == (3, 2, 1.0)
    assert said["malignancy"]["calibration"]["samples"] == [0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
    assert said["malignancy"]["calibration"]["brier"] == pytest.approx((0.2**2 + 0.3**2) / 2)


def test_only_the_official_score_counts_nodules_that_nobody_rated() -> None:
    evidence = scan("a", [nodule(0)], [at(0), at(100), at(200)], unrated=(nodule(100), nodule(150)))
    card = score(evidence)
    assert (card.froc.nodules, card.froc.true_positives, card.froc.false_positives) == (3, 2, 1)
    assert card.samples["cpm"].observed == card.froc.cpm
    assert (card.losses.nodules, sum(group.nodules for group in card.by_diameter)) == (1, 1)
    # The report's table knows nothing of them; by the official radius they are neither hits nor false positives.
    assert card.table.counts == ((0, 0, 2, 0), (0, 0, 1, 0), (0, 0, 0, 0))
    assert card.official_table.counts == ((0, 0, 1, 0), (0, 0, 1, 0), (0, 0, 0, 0))
    assert card.official_table.ignored_on_excluded == 1


def test_a_nodules_own_mark_decides_whatever_stands_beside_it_in_the_list() -> None:
    first = scan("a", [nodule(0, diameter_mm=7.0)], [at(100)], unrated=(nodule(100), nodule(150)))
    second = scan("b", [nodule(0, diameter_mm=9.0), nodule(50, diameter_mm=12.0)], [at(50)])
    kinds = {group.name: group.sensitivity for group in score(first, second).by_diameter if group.nodules}
    assert kinds == {"6 to 8 mm": 0.0, "8 to 10 mm": 0.0, "10 to 20 mm": 1.0}


def test_excluded_findings_count_in_the_reports_table_only() -> None:
    card = score(scan("a", [nodule(0)], [at(0), at(104.9)], excluded=(nodule(100, diameter_mm=-1),)))
    assert (card.table.false_positives, card.official_table.false_positives, card.froc.false_positives) == (1, 0, 0)
    assert (card.official_table.ignored_on_excluded, card.froc.ignored_on_excluded) == (1, 1)


def test_the_threshold_that_is_asked_for_decides() -> None:
    lower = replace(EVERY_STAGE[0], findings=tuple(replace(f, prob_malignant=0.45) for f in EVERY_STAGE[0].findings))
    card = score(lower, nodule=0.4, malignant=0.45)
    assert (card.losses.lost["classifier"], card.losses.lost["malignancy"]) == (0, 0)
    assert (card.nodule_threshold, card.malignant_threshold) == (0.4, 0.45)


def test_a_scan_with_thresholds_of_its_own_is_judged_at_them_everywhere() -> None:
    a, b = (
        scan(
            uid,
            [nodule(0, True), nodule(50)],
            [at(0, 0.6, 0.4), at(50, 0.55, 0.1), at(100, 0.52, 0.7), at(150, 0.2, math.nan)],
        )
        for uid in "ab"
    )
    lenient, strict = replace(a, thresholds=(0.5, 0.4)), replace(b, thresholds=(0.58, 0.6))
    card = score(lenient, strict, nodule=0.1, malignant=0.9)  # which would ask for a malignancy that nobody gave
    assert card.own_thresholds == ((0.5, 0.4), (0.58, 0.6))
    assert (card.nodule_threshold, card.malignant_threshold) == (0.1, 0.9)
    alone = [score(a, nodule=0.5, malignant=0.4), score(b, nodule=0.58, malignant=0.6)]
    assert [one.table.counts for one in alone] == [
        ((0, 1, 0, 1), (0, 0, 1, 0), (0, 0, 0, 1)),
        ((0, 2, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0)),
    ]
    for name in ("table", "official_table"):
        counts = [np.array(getattr(one, name).counts) for one in (*alone, card)]
        np.testing.assert_array_equal(counts[0] + counts[1], counts[2])
    for losses in ("losses", "malignant_losses"):
        parts = [getattr(one, losses) for one in alone]
        whole = getattr(card, losses)
        assert {stage: sum(part.lost[stage] for part in parts) for stage in whole.lost} == dict(whole.lost)
        assert whole.right == sum(part.right for part in parts)
    for name in ("candidates", "nodules", "malignant"):
        assert getattr(card.funnel, name) == np.mean([getattr(one.funnel, name) for one in alone])
    for name in ("found", "false_positives", "malignant_false_positives"):
        assert card.samples[name].observed == sum(one.samples[name].observed for one in alone)
    assert card.samples["malignant_sensitivity"].observed == 0.5
    assert as_json(card)["own_thresholds"] == [[0.5, 0.4], [0.58, 0.6]]


def test_without_thresholds_of_their_own_those_of_the_call_decide() -> None:
    evidence = random_evidence(np.random.default_rng(9), 12)
    own = [replace(one, thresholds=(0.4, 0.6)) for one in evidence]
    whole = as_json(score(*evidence, nodule=0.4, malignant=0.6))
    assert as_json(score(*own, nodule=0.4, malignant=0.6)) == whole | {"own_thresholds": [[0.4, 0.6]]}
    assert whole["own_thresholds"] == []


def random_evidence(rng: np.random.Generator, scans: int) -> list[Evidence]:
    evidence = []
    for number in range(scans):
        nodules = [nodule(100 * i, rng.random() < 0.4, rng.uniform(3, 30)) for i in range(rng.integers(0, 4))]
        near = [n for n in nodules if rng.random() < 0.7 for _ in range(rng.integers(1, 3))]
        findings = [at(n.center_xyz[0] + rng.uniform(0, n.diameter_mm), rng.beta(3, 2), rng.random()) for n in near]
        findings += [at(-20 * i, rng.beta(2, 3), rng.random()) for i in range(1, int(rng.integers(1, 12)))]
        one = scan(
            f"1.{number}",
            nodules,
            findings,
            touched=(rng.random(len(nodules)) < 0.7).tolist(),
            probs=rng.random(len(nodules)).tolist(),
            unrated=(nodule(900),) if rng.random() < 0.3 else (),
            excluded=(nodule(-60, diameter_mm=-1),),
            textures=tuple(rng.choice(["solid", "part-solid", ""], len(nodules)).tolist()),
            slice_spacing_mm=float(rng.choice([0.6, 1.25, 2.5])),
        )
        evidence.append(
            one
            if rng.random() < 0.9
            else set_aside(one.series_uid, one.nodules, unrated=one.unrated, textures=one.textures)
        )
    return evidence


def test_all_parts_agree_on_random_scans() -> None:
    evidence = random_evidence(np.random.default_rng(3), 60)
    card = score(*evidence)
    read = {e.series_uid: e.findings for e in evidence if e.findings is not None}
    truth = {e.series_uid: e.nodules for e in evidence}
    assert card.table == score_table(read, truth)
    both = {e.series_uid: (*e.nodules, *e.unrated) for e in evidence}
    official = froc(read, both, {e.series_uid: e.excluded for e in evidence}, sorted(truth))
    assert (card.froc.sensitivity_at, card.froc.thresholds) == (official.sensitivity_at, official.thresholds)

    lost, (_, benign, malignant) = card.losses.lost, card.table.counts
    assert min(lost.values()) > 0
    assert lost["quarantine"] + lost["segmentation"] + lost["grouping"] == benign[0] + malignant[0]
    assert (lost["classifier"], lost["malignancy"]) == (benign[1] + malignant[1], malignant[2])
    assert card.losses.right == benign[2] + benign[3] + malignant[3]
    assert card.malignant_losses.right == malignant[3]

    for groups in (card.by_diameter, card.by_spacing, card.by_texture):
        assert sum(group.nodules for group in groups) == card.table.nodules
        assert sum(group.found for group in groups) == card.table.found
        found = sum(round(group.sensitivity * group.nodules) for group in groups if group.nodules)
        at_1_fps = card.froc.sensitivity_at[FPS_PER_SCAN.index(1)] * card.froc.nodules
        assert found <= at_1_fps < found + 2  # the curve is interpolated to the next point
    assert card.funnel.nodules * len(read) == card.table.false_positives + sum(
        f.prob_nodule >= 0.5 and any(abs(f.center_xyz[0] - n.center_xyz[0]) < 0.7 * n.diameter_mm for n in truth[uid])
        for uid, findings in read.items()
        for f in findings
    )
    assert tuple(card.samples) == STATISTICS
    assert card.samples["found"].observed == card.table.found
    assert card.samples["cpm"].observed == card.froc.cpm
    assert card.samples["malignancy_auc"].observed == pytest.approx(card.malignancy.auc)
    assert card.over_diameter.second == card.samples["malignancy_auc"].observed


def test_pooled_folds_are_one_list_whatever_their_order() -> None:
    evidence = random_evidence(np.random.default_rng(5), 30)
    folds = [evidence[start::10] for start in range(10)]
    pooled = score(*[one for fold in folds for one in fold])
    assert as_json(pooled) == as_json(score(*reversed(evidence)))
    # Not the mean of ten scores: one curve of all marks.
    one_by_one = [score(*fold).froc for fold in folds]
    assert pooled.froc.nodules == sum(result.nodules for result in one_by_one)
    assert pooled.table.found == sum(score(*fold).table.found for fold in folds)
    assert pooled.froc.cpm != pytest.approx(np.nanmean([result.cpm for result in one_by_one]), abs=1e-3)


def test_one_seed_gives_one_card_and_equal_resamples_for_every_bundle() -> None:
    evidence = random_evidence(np.random.default_rng(6), 20)
    assert as_json(score(*evidence)) == as_json(score(*evidence))
    assert as_json(score(*evidence)) != as_json(score(*evidence, seed=1))
    other = [replace(e, findings=() if e.findings is not None else None) for e in evidence]
    first, second = (score(*bundle).samples["diameter_auc"] for bundle in (evidence, other))
    np.testing.assert_array_equal(first.resampled, second.resampled)  # what no bundle changes is resampled alike


def test_the_band_of_the_curve_is_there_to_be_drawn() -> None:
    card = score(*random_evidence(np.random.default_rng(7), 20))
    fps, low, high = card.curve_band
    assert (np.diff(fps) > 0).all()
    assert (low <= high).all()
    assert as_json(card)["froc"]["curve_band"] == card.curve_band.tolist()
    assert score(*EVERY_STAGE, bootstraps=0).curve_band.shape == (3, 0)


# --- bad input ---


def test_no_findings_anywhere() -> None:
    card = score(scan("a", [nodule(0, True)]), scan("b", [nodule(0)], touched=[False]), scan("c"))
    assert (card.froc.cpm, card.table.found, card.losses.right) == (0.0, 0, 0)
    assert (card.losses.lost["grouping"], card.losses.lost["segmentation"]) == (1, 1)
    said = as_json(card)
    assert (said["nodule"]["positives"], said["nodule"]["auc"]) == (0, None)
    assert (said["funnel"]["candidates"], said["samples"]["cpm"]["observed"]) == (0.0, 0.0)


def test_no_nodules_anywhere() -> None:
    card = score(scan("a", [], [at(0)]), scan("b"))
    assert math.isnan(card.froc.cpm)
    assert (card.losses.nodules, card.table.false_positives, card.by_texture, card.by_spacing) == (0, 1, (), ())
    assert as_json(card)["segmentation"]["mean_dice"] is None


def test_every_scan_set_aside() -> None:
    card = score(set_aside("a", [nodule(0, True)]), set_aside("b", [nodule(0)]))
    assert dict(card.losses.lost)["quarantine"] == card.losses.nodules == 2
    assert (card.froc.cpm, card.segmentation, card.set_aside) == (0.0, None, ("a", "b"))
    said = as_json(card)
    assert (said["segmentation"], said["malignancy"]["auc"], said["funnel"]["voxels"]) == (None, None, None)
    assert said["samples"]["malignancy_auc"]["observed"] is None


def test_one_class_has_no_auc() -> None:
    said = as_json(score(scan("a", [nodule(0), nodule(50)], [at(0), at(50)])))
    assert said["malignancy"]["auc"] is said["nodule"]["auc"] is said["over_diameter"]["difference"] is None
    assert said["malignant_losses"] == {
        "nodules": 0,
        "lost": dict.fromkeys(("quarantine", "segmentation", "grouping", "classifier", "malignancy"), 0),
        "right": 0,
    }


def test_marks_that_are_there_twice_count_as_the_rules_say() -> None:
    card = score(scan("a", [nodule(0)], [at(0), at(0), at(50), at(50)]))
    assert (card.froc.true_positives, card.froc.ignored_double_hits, card.froc.false_positives) == (1, 1, 2)
    assert card.table.counts == ((0, 0, 2, 0), (0, 0, 1, 0), (0, 0, 0, 0))


WHOLE = scan("1.2", [nodule(0)], [at(0)])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (replace(WHOLE, findings=(at(0, math.nan),)), "1.2: a probability is NaN"),
        (replace(WHOLE, findings=(at(0, 1.2),)), "1.2: a probability is NaN or not in"),
        (replace(WHOLE, findings=(at(0, 0.9, math.nan),)), "1.2: a finding above the nodule threshold"),
        (replace(WHOLE, findings=(at(0, 0.1, -1.0),)), "1.2: a probability is NaN or not in"),
        (replace(WHOLE, prob_malignant=(math.nan,)), "1.2: a probability is NaN"),
        (replace(WHOLE, findings=(at(math.inf),)), "1.2: a centre or diameter is not finite"),
        (replace(WHOLE, thresholds=(0.5, math.nan)), "1.2: a threshold is NaN or not in"),
        (replace(WHOLE, thresholds=(1.5, 0.5)), "1.2: a threshold is NaN or not in"),
        (replace(WHOLE, prob_malignant=()), "1.2: 0 probabilities of malignancy for 1 nodules"),
        (replace(WHOLE, textures=("solid", "solid")), "1.2: 2 textures for 1 nodules"),
        (replace(WHOLE, nodules=()), "1.2: 1 probabilities of malignancy for 0 nodules"),
        (replace(WHOLE, segmented=None), "1.2: some answers are there and some are not"),
        (replace(WHOLE, findings=None), "1.2: some answers are there and some are not"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(wrong: Evidence, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        score(scan("1.1", [nodule(0)]), wrong)


def test_no_scan_and_a_scan_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="no scan to score"):
        score()
    with pytest.raises(ValueError, match=r"1\.2: this scan is there twice"):
        score(WHOLE, scan("1.1"), WHOLE)
