"""What the bundles of two folds reach together on toy scans, and whether each is new to what its fold tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from lungml import scorecard, store
from lungml.annotated import Annotated, write_annotated
from lungml.answers import Answers, write_answers
from lungml.calibration import Calibration, Platt
from lungml.candidates import Candidates
from lungml.findings import Finding, read_findings, write_findings
from lungml.folds import FoldError, Folds
from lungml.geometry import Grid
from lungml.home import Home
from lungml.leaks import LeakError
from lungml.luna import Annotation
from lungml.marked import Marked
from lungml.recipes.data import PreparedScan
from lungml.segmentation_score import SegmentedNodule, SegmentedScan
from tasks import folds as fold_tasks
from tasks import tracking
from tasks.finding import FoundScan, NamedBundle
from tasks.folds import (
    FoldEvidence,
    check_fresh,
    find_folds,
    fold_table,
    in_words,
    log_folds,
    mean_thresholds,
    pooled_bundle,
    pooled_evidence,
    report_folds,
    score_folds,
)
from tasks.pipeline import Pipeline
from tasks.reporting import WrittenReport
from tasks.truth import ScanTruth
from tests.tasks.toy_bundles import toy_fields, toy_model

Toy = Callable[..., ScanTruth]
MODELS = {"segmentation": "models:/m-s", "nodule": ["models:/m-n1", "models:/m-n2"], "malignancy": "models:/m-m"}
FAR = (400.0, 400.0, 400.0)  # on no nodule
NOTHING = Answers(
    marked=Marked.of_mask(np.zeros((2, 2, 2), np.bool_)),
    candidates=Candidates(centers_irc=np.zeros((0, 3)), diameters_mm=np.zeros(0), scores=np.zeros(0)),
    prob_nodule=np.zeros(0),
    prob_malignant=np.zeros(0),
)
UNRATED = Annotation(series_uid="1.1", center_xyz=(300.0, 300.0, 300.0), diameter_mm=8)


def bundle(number: int, nodule_threshold: float, malignant_threshold: float = 0.5, **also: Any) -> NamedBundle:
    thresholds = {"nodule_threshold": nodule_threshold, "malignant_threshold": malignant_threshold}
    shared = {"grouping": {"rule": "report"}, "recipe": "demo", "origin": "phantom"}
    return NamedBundle(name=f"models:/luna/{number}", fields={**MODELS, **thresholds, **shared, **also})


def pipeline_in(home: Home) -> Pipeline:
    return Pipeline(home=home, pipeline_id="p1", origin="phantom", seed=0, device="cpu")


def mark(center_xyz: tuple[float, float, float], prob_nodule: float, prob_malignant: float = float("nan")) -> Finding:
    return Finding(
        center_irc=(0, 0, 0),
        center_xyz=center_xyz,
        prob_nodule=prob_nodule,
        prob_malignant=prob_malignant,
        stage="benign",
    )


@pytest.fixture
def tested(tmp_path: Path, toy: Toy, grid: Grid) -> Callable[..., tuple[PreparedScan, FoundScan]]:
    """A toy scan and what was found in it."""

    def make(uid: str, findings: list[Finding]) -> tuple[PreparedScan, FoundScan]:
        truth, folder = toy(tmp_path / "luna16", uid, "test"), tmp_path / uid
        store.write_scan(folder / "store.zarr", np.zeros(grid.shape_irc, np.int16), grid, key={})
        files = {name: folder / file for name, file in (("answers", "a.npz"), ("annotated", "b.npz"))}
        found = FoundScan(series_uid=uid, findings=folder / "findings.csv", key="key", truth_key="key", **files)
        write_findings(found.findings, uid, tuple(findings))
        write_answers(found.answers, NOTHING, "key")
        nodules = tuple(SegmentedNodule(touched=True, dice=0.5) for _ in truth.nodules)
        segmented = SegmentedScan(voxels=9, flagged=1, tp=1, fp=0, fn=0, slices=1, nodules=nodules)
        annotated = Annotated(prob_malignant=np.array([0.9, 0.2]), segmented=segmented)
        write_annotated(found.annotated, annotated, "key")
        prepared = PreparedScan(
            series_uid=uid,
            split="test",
            store=folder / "store.zarr",
            mask_name="mask",
            crops=folder / "crops",
            crops_digest="",
            digest="",
            nodules=truth.nodules,
            excluded=truth.excluded,
            unrated=(UNRATED,) if uid == UNRATED.series_uid else (),
        )
        return prepared, found

    return make


@pytest.fixture
def evidence(tmp_path: Path, toy: Toy, tested: Any) -> list[FoldEvidence]:
    """Fold 0 tests 1.0, fold 2 tests 1.1 and 1.2, which could not be read."""
    aside = replace(toy(tmp_path / "luna16", "1.2", "test"), reason="damaged")
    malignant, benign = (nodule.center_xyz for nodule in aside.nodules)
    first = tested("1.0", [mark(malignant, 0.9, 0.8), mark(FAR, 0.5)])
    second = tested("1.1", [mark(benign, 0.6, 0.1), mark(FAR, 0.7, 0.9), mark(UNRATED.center_xyz, 0.95, 0.1)])
    return [
        FoldEvidence(fold=0, bundle=bundle(1, 0.6), scans=first[:1], found=first[1:], set_aside=()),
        FoldEvidence(fold=2, bundle=bundle(2, 0.55, 0.7), scans=second[:1], found=second[1:], set_aside=(aside,)),
    ]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    def fewer(*arguments: Any, **settings: Any) -> scorecard.Scorecard:
        return scorecard.score_scans(*arguments, **settings, resamples=20, bootstraps=20)

    monkeypatch.setattr(fold_tasks, "score_scans", fewer)


def test_all_folds_are_scored_as_one_list(evidence: list[FoldEvidence], home: Home, quick: None) -> None:
    score = score_folds.fn(evidence, pipeline_in(home))
    assert score.split == "all"
    assert score.card.series_uids == ("1.0", "1.1", "1.2")
    assert score.card.set_aside == ("1.2",)
    # By probability, whoever's models said it: unrated nodule, malignant one, false one, benign one, false one; of
    # seven nodules in three scans. Up to 1/3 false positives a scan two are found, from there on three.
    counts = (score.froc.true_positives, score.froc.misses, score.froc.false_positives)
    assert counts == (3, 4, 2)
    assert score.froc.sensitivity_at == pytest.approx([2 / 7] * 2 + [3 / 7] * 5)
    assert (score.froc.nodules, score.table.nodules, score.table.scans) == (7, 6, 3)


def test_each_fold_is_judged_at_its_own_thresholds(evidence: list[FoldEvidence], home: Home, quick: None) -> None:
    # Row by row: non-nodule, benign, malignant; missed, filtered out, predicted benign, predicted malignant.
    assert fold_table(evidence[0]).counts == ((0, 1, 0, 0), (1, 0, 0, 0), (0, 0, 0, 1))
    assert fold_table(evidence[1]).counts == ((0, 0, 1, 1), (1, 0, 1, 0), (2, 0, 0, 0))
    strict = replace(evidence[1], bundle=bundle(2, 0.65))
    assert fold_table(strict).counts == ((0, 0, 1, 1), (1, 1, 0, 0), (2, 0, 0, 0))
    assert [one.thresholds for one in pooled_evidence(evidence)] == [(0.6, 0.5), (0.55, 0.7), (0.55, 0.7)]
    # The benign nodule at 0.6 is found by its own fold, and was not at the highest threshold of both: 0.65.
    folds = [replace(evidence[0], bundle=bundle(1, 0.65)), evidence[1]]
    card = score_folds.fn(folds, pipeline_in(home)).card
    assert card.table.found == 2
    assert card.own_thresholds == ((0.55, 0.7), (0.65, 0.5))
    assert (card.nodule_threshold, card.malignant_threshold) == (pytest.approx(0.6), pytest.approx(0.6))


def test_a_lower_threshold_of_another_fold_asks_for_no_malignancy(
    evidence: list[FoldEvidence], home: Home, quick: None
) -> None:
    # The first fold's finding at 0.5 has none: it is below its own threshold, and above the mean of both.
    folds = [evidence[0], replace(evidence[1], bundle=bundle(2, 0.2))]
    assert mean_thresholds(folds) == pytest.approx((0.4, 0.5))
    card = score_folds.fn(folds, pipeline_in(home)).card
    assert card.table.counts == ((0, 1, 1, 1), (2, 0, 1, 0), (2, 0, 0, 1))


@pytest.mark.parametrize(
    "thresholds", [((0.6, 0.5), (0.55, 0.7)), ((0.95, 0.5), (0.3, 0.05)), ((0.55, 0.9), (0.96, 0.5))]
)
def test_the_pooled_table_is_the_sum_of_those_of_the_folds(
    thresholds: tuple[tuple[float, float], ...], evidence: list[FoldEvidence], home: Home, quick: None
) -> None:
    folds = [replace(fold, bundle=bundle(fold.fold, *own)) for fold, own in zip(evidence, thresholds)]
    card, tables = score_folds.fn(folds, pipeline_in(home)).card, [fold_table(fold) for fold in folds]
    np.testing.assert_array_equal(card.table.counts, np.sum([table.counts for table in tables], axis=0))
    assert card.losses.lost["classifier"] == sum(table.counts[1][1] + table.counts[2][1] for table in tables)
    assert card.losses.lost["malignancy"] == sum(table.counts[2][2] for table in tables)
    assert card.samples["found"].observed == sum(table.found for table in tables)
    taken = {
        uid: sum(finding.prob_nodule >= fold.thresholds[0] for finding in read_findings(found.findings))
        for fold in folds
        for uid, found in zip((scan.series_uid for scan in fold.scans), fold.found)
    }
    assert card.funnel.nodules == np.mean(list(taken.values()))


def test_a_series_that_two_folds_test_is_refused(evidence: list[FoldEvidence]) -> None:
    again = replace(evidence[0], fold=1)
    with pytest.raises(LeakError, match=r"folds 0 and 1 both test 1\.0"):
        pooled_evidence([evidence[0], again])
    aside = replace(evidence[1], fold=1, scans=(), found=())
    with pytest.raises(LeakError, match=r"folds 2 and 1 both test 1\.2"):
        pooled_evidence([evidence[1], aside])


def sides(**splits: str) -> list[Any]:
    return [
        PreparedScan(
            series_uid=uid,
            split=split,  # type: ignore[arg-type]
            store=Path(uid),
            mask_name="mask",
            crops=Path(uid),
            crops_digest="",
            digest="",
            nodules=(),
            excluded=(),
        )
        for uid, split in splits.items()
    ]


OWN = {"a": "train", "b": "val", "c": "test"}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, str]]:
    """What the runs of the models say of the scans they saw; all of them at first what is true of the fold."""
    runs = {uri: dict(OWN) for uri in ("models:/m-s", "models:/m-n1", "models:/m-n2", "models:/m-m")}
    monkeypatch.setattr(tracking, "model_scans", lambda home, uri: runs[uri])
    return runs


def test_models_of_their_own_fold_are_fresh(told: dict[str, dict[str, str]], home: Home) -> None:
    check_fresh.fn(bundle(1, 0.5), sides(**OWN), [], home)
    # What the fold leaves out, or has validated, may have been anything, or tested.
    told["models:/m-s"] |= {"gone": "train", "b": "test"}
    told["models:/m-m"] |= {"a": "test"}
    check_fresh.fn(bundle(1, 0.5), sides(**OWN), [], home)


@pytest.mark.parametrize(
    ("uri", "uid", "side", "words", "holds"),
    [
        ("models:/m-s", "c", "train", "segmentation model models:/m-s learned from c", "tests"),
        ("models:/m-n2", "c", "val", "nodule model models:/m-n2 was chosen on c", "tests"),
        ("models:/m-m", "b", "train", "malignancy model models:/m-m learned from b", "validates"),
    ],
)
def test_a_model_that_saw_what_its_fold_holds_back_is_refused(
    told: dict[str, dict[str, str]], home: Home, uri: str, uid: str, side: str, words: str, holds: str
) -> None:
    told[uri][uid] = side
    with pytest.raises(LeakError, match=rf"^models:/luna/1: its {words} or its patient, which this fold {holds}; tr"):
        check_fresh.fn(bundle(1, 0.5), sides(**OWN), [], home)


def test_a_scan_that_could_not_be_read_is_held_back_too(
    told: dict[str, dict[str, str]], home: Home, toy: Toy, tmp_path: Path
) -> None:
    told["models:/m-m"]["1.2"] = "train"
    check_fresh.fn(bundle(1, 0.5), sides(**OWN), [], home)
    with pytest.raises(LeakError, match=r"learned from 1\.2 or its patient, which this fold tests"):
        check_fresh.fn(bundle(1, 0.5), sides(**OWN), [toy(tmp_path, "1.2", "test")], home)


def test_a_model_that_says_nothing_proves_nothing(told: dict[str, dict[str, str]], home: Home) -> None:
    told["models:/m-n2"].clear()
    with pytest.raises(LeakError, match=r"nodule model models:/m-n2, or of what it started from, does not say which"):
        check_fresh.fn(bundle(1, 0.5), sides(**OWN), [], home)


def test_another_scan_of_a_patient_that_a_fold_tests_is_held_back_too(
    told: dict[str, dict[str, str]], home: Home
) -> None:
    told["models:/m-m"] |= {"elsewhere": "train"}
    check_fresh.fn(bundle(1, 0.5), sides(**OWN), [], home)
    home.split_csv.write_text("series_uid,split,patient\nelsewhere,train,p-7\nc,test,p-7\n")
    with pytest.raises(LeakError, match="malignancy model models:/m-m learned from c or its patient, which this fold"):
        check_fresh.fn(bundle(1, 0.5), sides(**OWN), [], home)


def test_what_a_model_started_from_must_be_fresh_too(home: Home) -> None:
    parent = toy_model(home, "classification", scans={"a": "train", "c": "train"})
    fields = toy_fields(home, malignancy=toy_model(home, "malignancy", scans=OWN, parent=parent))
    with pytest.raises(LeakError, match=r"its malignancy model .* learned from c or its patient, which this fold"):
        check_fresh.fn(NamedBundle(name="it", fields=fields), sides(**OWN), [], home)


def test_a_row_in_mlflow_says_which_folds_and_what_each_reached(
    evidence: list[FoldEvidence], home: Home, quick: None
) -> None:
    score = score_folds.fn(evidence, pipeline_in(home))
    folds = Folds(count=3, fold_of={"1.0": 0, "1.1": 2, "1.2": 2, "1.3": 1}, by="order")
    run_id = log_folds.fn(score, evidence, folds, "demo", pipeline_in(home))
    client = MlflowClient(tracking_uri=tracking.tracking_uri(home))
    run = client.get_run(run_id)
    assert run.data.params["folds"] == "folds 0, 2 of 3"
    assert run.data.params["bundle"] == "models:/luna/1, models:/luna/2"
    assert run.data.tags["luna.folds"] == "2 of 3"
    assert run.data.metrics["folds/cpm"] == pytest.approx(score.froc.cpm)
    file = client.download_artifacts(run_id, "folds/folds.json", str(home.root))
    said = json.loads(Path(file).read_text())
    assert (said["folds"], said["folds_are"]) == (3, folds.words)
    assert said["run"]["2"]["series_uids"] == ["1.1", "1.2"]
    assert said["run"]["2"]["set_aside"] == ["1.2"]
    assert said["run"]["0"]["table"] == fold_table(evidence[0]).as_dict()
    assert (said["run"]["2"]["nodule_threshold"], said["run"]["2"]["malignant_threshold"]) == (0.55, 0.7)


def test_the_report_tells_of_all_folds_and_is_kept_with_the_run(
    evidence: list[FoldEvidence], home: Home, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def report(split: str, card: Any, told: Any, stores: Any, bundle: NamedBundle, pipeline: Any, **also: Any) -> Any:
        asked.update(split=split, card=card, cases=told, stores=stores, bundle=bundle, **also)
        also["folder"].mkdir(parents=True, exist_ok=True)
        (also["folder"] / "report.html").write_text("<p>all folds</p>")
        return WrittenReport(split="all", folder=also["folder"], markdown="# all folds")

    monkeypatch.setattr(fold_tasks, "report_evaluation", report)
    score = score_folds.fn(evidence, pipeline_in(home))
    folds = Folds(count=3, fold_of={"1.0": 0, "1.1": 2, "1.2": 2, "1.3": 1}, by="order")
    written = report_folds(score, evidence, folds, pipeline_in(home))
    assert asked["data"].startswith("synthetic scans ")
    assert asked["data"].endswith(", folds 0, 2 of 3")
    assert asked["folder"].parent == home.reports / "evaluations"
    assert asked["folder"].name.startswith("folds-3-")
    assert (asked["split"], asked["card"], asked["cases"]) == ("all", score.card, score.cases)
    assert score.cases
    assert asked["stores"] == {scan.series_uid: scan.store for fold in evidence for scan in fold.scans}
    assert any("its own fold's bundle" in note for note in asked["notes"])
    run_id = log_folds.fn(score, evidence, folds, "demo", pipeline_in(home), written)
    client = MlflowClient(tracking_uri=tracking.tracking_uri(home))
    assert "folds/report.html" in {file.path for file in client.list_artifacts(run_id, "folds")}
    assert client.get_run(run_id).data.tags[tracking.RUN_NOTE] == "# all folds"
    # The same once more lies in the same folder; another seed or another bundle in another one.
    changed = [evidence[0], replace(evidence[1], bundle=bundle(2, 0.3))]
    assert report_folds(score, evidence, folds, pipeline_in(home)).folder == written.folder
    others = [
        report_folds(score, evidence, folds, replace(pipeline_in(home), seed=1)).folder,
        report_folds(score, changed, folds, pipeline_in(home)).folder,
        report_folds(score, evidence[:1], folds, pipeline_in(home)).folder,
    ]
    assert len({written.folder, *others}) == 4


def test_the_bundles_of_all_folds_have_one_name_and_all_models() -> None:
    curve = Calibration(nodule=Platt(slope=1.0, intercept=0.0)).as_dict()
    first = bundle(1, 0.6, code="abc", sha256={"a": "1"})
    second = bundle(2, 0.4, 0.7, code="abc", sha256={"a": "2"}, segmentation="models:/m-s2", calibration=curve)
    folds = [FoldEvidence(fold=n, bundle=b, scans=(), found=(), set_aside=()) for n, b in enumerate((first, second))]
    pooled = pooled_bundle(folds)
    assert (pooled.name, pooled.slug) == ("cross-validation", "cross-validation")
    assert pooled.fields["segmentation"] == ["models:/m-s", "models:/m-s2"]
    assert pooled.fields["nodule"] == ["models:/m-n1", "models:/m-n2"] * 2
    assert (pooled.fields["recipe"], pooled.fields["grouping"]) == ("demo", {"rule": "report"})
    assert (pooled.fields["code"], "sha256" in pooled.fields) == ("abc", False)  # what all share, and nothing else
    assert Calibration.from_dict(pooled.fields["calibration"]) == Calibration(nodule=Platt(slope=1.0, intercept=0.0))
    assert Calibration.from_dict(pooled_bundle(folds[:1]).fields["calibration"]).method == "none"


def test_what_cannot_be_run_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    for number in (0, 1, 3):
        (tmp_path / f"subset{number}").mkdir()
        (tmp_path / f"subset{number}" / f"s{number}.mhd").touch()
    assert find_folds.fn(tmp_path, None, 10, [0]).fold_of == {"s0": 0, "s1": 1, "s3": 3}
    with pytest.raises(FoldError, match="fold 1 of 10 has no val scan"):
        find_folds.fn(tmp_path, None, 10, [0, 1])
    with pytest.raises(FoldError, match="none of 10 folds was asked for"):
        find_folds.fn(tmp_path, None, 10, [])


def test_folds_in_words() -> None:
    assert [in_words(chosen, 10) for chosen in (range(10), [0, 3], [4])] == [
        "all 10 folds",
        "folds 0, 3 of 10",
        "fold 4 of 10",
    ]
