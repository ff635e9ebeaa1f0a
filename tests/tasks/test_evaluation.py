"""What a toy scan's findings are worth, and what is kept of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from lungml import scorecard, store
from lungml.annotated import Annotated, write_annotated
from lungml.answers import Answers, write_answers
from lungml.candidates import Candidates
from lungml.findings import Finding, write_findings
from lungml.geometry import Grid
from lungml.home import Home
from lungml.marked import Marked
from lungml.scorecard import SegmentedNodule, SegmentedScan
from tasks import evaluation, tracking
from tasks.comparison import EvaluatedScan
from tasks.evaluation import SplitScore, log_end_to_end, score_findings
from tasks.finding import FoundScan, NamedBundle
from tasks.pipeline import Pipeline, TrainedModel
from tasks.truth import ScanTruth

BUNDLE = NamedBundle(name="models:/luna/7", fields={"nodule_threshold": 0.5, "malignant_threshold": 0.5})


def pipeline_in(home: Home) -> Pipeline:
    return Pipeline(home=home, pipeline_id="p1", origin="phantom", seed=0, device="cpu")


@pytest.fixture
def scan(tmp_path: Path, toy: Callable[..., ScanTruth], grid: Grid) -> EvaluatedScan:
    truth = toy(tmp_path, "1.0", "val")
    volume = tmp_path / "1.0.zarr"
    store.write_scan(volume, np.zeros(grid.shape_irc, np.int16), grid, key={})
    return EvaluatedScan(
        series_uid="1.0", store=volume, nodules=truth.nodules, unrated=(), excluded=truth.excluded, textures=()
    )


def mark(center_xyz: tuple[float, float, float], prob_nodule: float, prob_malignant: float) -> Finding:
    stage = "filtered" if prob_nodule < 0.5 else "malignant" if prob_malignant >= 0.5 else "benign"
    return Finding(
        center_irc=(0, 0, 0),
        center_xyz=center_xyz,
        prob_nodule=prob_nodule,
        prob_malignant=prob_malignant,
        stage=stage,  # type: ignore[arg-type]
    )


@pytest.fixture
def score(
    tmp_path: Path, home: Home, scan: EvaluatedScan, toy: Callable[..., ScanTruth], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., SplitScore]:
    """Score the toy scan's findings beside so many scans that were set aside."""
    given = scorecard.score_scans

    def fewer(*arguments: object, **settings: object) -> scorecard.Scorecard:
        return given(*arguments, **settings, resamples=20, bootstraps=20)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluation, "score_scans", fewer)

    def run(found: Sequence[Finding], aside: int = 0) -> SplitScore:
        files = FoundScan(
            series_uid="1.0",
            answers=tmp_path / "answers.npz",
            annotated=tmp_path / "annotated.npz",
            findings=tmp_path / "findings.csv",
            key="key",
            truth_key="key",
        )
        write_findings(files.findings, "1.0", tuple(found))
        nothing = np.empty(0)
        answers = Answers(
            marked=Marked.of_mask(np.zeros((2, 2, 2), bool)),
            candidates=Candidates(centers_irc=np.empty((0, 3)), diameters_mm=nothing, scores=nothing),
            prob_nodule=nothing,
            prob_malignant=nothing,
        )
        write_answers(files.answers, answers, "key")
        segmented = SegmentedScan(
            voxels=1000,
            flagged=50,
            tp=30,
            fp=20,
            fn=10,
            slices=4,
            nodules=(SegmentedNodule(touched=True, dice=0.8), SegmentedNodule(touched=False, dice=0)),
        )
        write_annotated(files.annotated, Annotated(prob_malignant=np.array([0.9, 0.2]), segmented=segmented), "key")
        truths = [toy(tmp_path, f"2.{n}", "val") for n in range(aside)]
        return score_findings.fn("val", [scan], [files], truths, BUNDLE, pipeline_in(home))

    return run


FAR = (500.0, 500.0, 500.0)


def test_every_finding_is_counted_once(score: Callable[..., SplitScore], scan: EvaluatedScan) -> None:
    (malignant, benign), (excluded,) = scan.nodules, scan.excluded
    marks = [
        mark(malignant.center_xyz, 0.9, 0.8),
        mark(benign.center_xyz, 0.8, 0.1),
        mark(excluded.center_xyz, 0.7, 0.9),
        mark(FAR, 0.6, 0.7),
        mark(FAR, 0.2, math.nan),
    ]
    result = score(marks)
    assert result.split == "val"
    # Rows non-nodule, benign, malignant; columns missed, filtered, predicted benign, predicted malignant.
    # The report's table knows no excluded findings: the mark on one is a non-nodule there, and nothing in the FROC.
    assert result.table.counts == ((0, 1, 0, 2), (0, 0, 1, 0), (0, 0, 0, 1))
    assert (result.froc.false_positives, result.froc.ignored_on_excluded) == (2, 1)
    assert (result.table.scans, result.card.funnel.candidates) == (1, 5)
    assert result.froc.cpm == 1.0  # both nodules come before the first false positive


def test_the_nodules_of_a_scan_set_aside_are_missed(score: Callable[..., SplitScore], scan: EvaluatedScan) -> None:
    marks = [mark(scan.nodules[0].center_xyz, 0.9, 0.8), mark(scan.nodules[1].center_xyz, 0.8, 0.1)]
    result = score(marks, 3)
    assert result.table.counts == ((0, 0, 0, 0), (3, 0, 1, 0), (3, 0, 0, 1))
    assert (result.table.scans, result.table.scans_without_findings) == (4, 3)
    assert (result.froc.scans, result.froc.nodules, result.froc.true_positives) == (4, 8, 2)
    assert result.froc.cpm == 0.25
    assert result.card.losses.lost["quarantine"] == 6


def test_the_same_seed_gives_the_same_band(score: Callable[..., SplitScore], scan: EvaluatedScan) -> None:
    marks = [mark(scan.nodules[0].center_xyz, 0.9, 0.8), mark(FAR, 0.95, 0.7)]
    assert score(marks, 2).froc.cpm_band == score(marks, 2).froc.cpm_band


def test_one_row_holds_what_the_pipeline_reaches(
    score: Callable[..., SplitScore], scan: EvaluatedScan, home: Home
) -> None:
    marks = [
        mark(scan.nodules[0].center_xyz, 0.9, 0.8),
        mark(scan.nodules[1].center_xyz, 0.8, 0.1),
        mark(FAR, 0.6, 0.7),
    ]
    val = score(marks, 1)
    test = SplitScore(split="test", card=score([]).card)
    model = TrainedModel(
        stage="segmentation", name="unet", uri="models:/m-1", best_epoch=1, val={"f1": math.nan}, test={}
    )
    run_id = log_end_to_end.fn([val, test], "models:/luna/7", [model], pipeline_in(home))
    client = MlflowClient(tracking_uri=tracking.tracking_uri(home))
    experiment = client.get_experiment_by_name("luna-end-to-end")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.status, run.info.run_name) == (run_id, "FINISHED", "luna-7")
    assert run.data.tags["luna.pipeline"] == "p1"
    assert run.data.params["bundle"] == "models:/luna/7"
    assert run.data.params["segmentation"] == "models:/m-1"
    expected = {
        "val/nodules": 4,
        "val/found": 2,
        "val/malignant": 2,
        "val/malignant_flagged": 1,
        "val/malignant_sensitivity": 0.5,
        "val/false_positives_per_scan": 0.5,
        "val/candidates_per_scan": 3,
        "val/cpm": 0.5,
        "val/sensitivity_at_0.125_fps": 0.5,
        "val/pixel_precision": 0.6,
        "val/pixel_recall": 0.75,
        "val/nodules_touched": 1,
        "val/lost_to_quarantine": 2,
        "test/nodules": 2,
        "test/found": 0,
        "test/cpm": 0,
        "test/lost_to_segmentation": 1,
        "test/lost_to_grouping": 1,
    }
    assert {name: run.data.metrics[name] for name in expected} == expected
    kept = Path(client.download_artifacts(run.info.run_id, "val/scorecard.json"))
    assert json.loads(kept.read_text()) == json.loads(json.dumps(val.card.as_dict()))
    assert val.table.to_text() in Path(client.download_artifacts(run.info.run_id, "val/table.txt")).read_text()
