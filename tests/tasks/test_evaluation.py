"""Findings and scores of toy scans; the bundle's networks have random weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from lungml import findings as finding
from lungml import store
from lungml.candidates import GroupingSettings
from lungml.findings import Finding, read_findings, write_findings
from lungml.home import Home
from lungml.models.nodule_net import NoduleNet
from lungml.models.unet import UNet
from lungml.recipes.data import PreparedScan
from lungml.sampling import NegativePlan
from tasks import evaluation, registry, tracking
from tasks.bundles import stage_example
from tasks.data import build_mask, cache_crops, convert_scan
from tasks.evaluation import SplitScore, find_nodules, log_end_to_end, score_findings
from tasks.pipeline import Pipeline, TrainedModel
from tasks.truth import ScanTruth
from tests.tasks.outcomes import done, kept


def pipeline_in(home: Home) -> Pipeline:
    return Pipeline(home=home, pipeline_id="p1", origin="phantom", seed=0, device="cpu")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, new_home: Callable[[Path], Home]) -> Home:
    return new_home(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def scan(home: Home, toy: Callable[..., ScanTruth], no_prefect_run: None) -> PreparedScan:
    stored = convert_scan.fn(toy(home.root / "luna16", "1.0", "val"), home)
    build_mask.fn(stored, "bounded")
    settings = {"negatives": NegativePlan(kind="fixed", per_scan=4), "negative_slabs_per_scan": 2, "seed": 0}
    return cache_crops.fn(stored, home, recipe_name="tiny", rule="bounded", **settings)


@pytest.fixture(scope="module")
def fields(home: Home) -> dict[str, Any]:
    """A bundle that is not registered yet."""

    def log(stage: str, model: Any) -> str:
        with tracking.open_run(home, stage, name="toy") as run:
            arch = {"stage": stage, "config": asdict(model.config)}
            return tracking.log_model(run, model, arch=arch, example=stage_example(model), name="toy")

    def seeded(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    return {
        "segmentation": log("segmentation", UNet(generator=seeded(1))),
        "nodule": log("classification", NoduleNet(generator=seeded(2))),
        "malignancy": log("malignancy", NoduleNet(generator=seeded(3))),
        "grouping": asdict(GroupingSettings(rule="report")),
        "nodule_threshold": 0.0,
        "malignant_threshold": 0.5,
        "recipe": "toy",
        "origin": "phantom",
    }


@pytest.fixture(scope="module")
def bundle_uri(home: Home, fields: dict[str, Any]) -> str:
    return registry.register_bundle(home, fields)


# find_nodules


@pytest.fixture(autouse=True)
def two_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of random weights marks hundreds of places; here it marks two boxes of 27 voxels."""

    def segment(hu: np.ndarray, model: UNet, **_: Any) -> np.ndarray:
        mask = np.zeros(hu.shape, dtype=bool)
        mask[7:10, 13:16, 13:16] = mask[15:18, 33:36, 29:32] = True
        return mask

    monkeypatch.setattr(finding, "segment", segment)


def test_a_scans_findings_are_written_once(home: Home, scan: PreparedScan, bundle_uri: str) -> None:
    pipeline = pipeline_in(home)
    file = done(find_nodules.fn(scan, bundle_uri, pipeline))
    assert file.is_relative_to(home.reports)
    assert (file.parent.name, file.name) == ("1.0", "findings.csv")
    found = read_findings(file)
    assert sorted(tuple(np.rint(f.center_irc)) for f in found) == [(8, 14, 14), (16, 34, 30)]
    assert all(f.stage in ("benign", "malignant") for f in found)  # the bundle's nodule threshold is 0
    assert kept(find_nodules.fn(scan, bundle_uri, pipeline)) == file
    text = file.read_text()
    file.unlink()
    assert done(find_nodules.fn(scan, bundle_uri, pipeline)) == file
    assert file.read_text() == text


def test_equal_bundles_share_findings_and_others_do_not(
    home: Home, scan: PreparedScan, fields: dict[str, Any], bundle_uri: str
) -> None:
    pipeline = pipeline_in(home)
    find_nodules.fn(scan, bundle_uri, pipeline)
    alarmed = registry.register_bundle(home, {**fields, "malignant_threshold": 0.0})
    equal = registry.register_bundle(home, fields)  # a version of its own: the newest one is another
    assert equal != bundle_uri
    file = kept(find_nodules.fn(scan, equal, pipeline))
    other = done(find_nodules.fn(scan, alarmed, pipeline))
    assert other != file
    assert {f.stage for f in read_findings(file)} == {"benign"}
    assert {f.stage for f in read_findings(other)} == {"malignant"}  # mistake 13: the threshold was ignored
    assert kept(find_nodules.fn(scan, bundle_uri, pipeline)) == file


def test_newer_code_or_data_finds_again(
    home: Home, scan: PreparedScan, bundle_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipeline_in(home)
    find_nodules.fn(scan, bundle_uri, pipeline)
    kept(find_nodules.fn(replace(scan, digest="other"), bundle_uri, pipeline))  # crops for training change no finding
    other = home.scans / "other.zarr"
    store.write_scan(other, store.read_volume(scan.store), store.read_grid(scan.store), key=store.scan_key("other"))
    changed = replace(scan, store=other)
    done(find_nodules.fn(changed, bundle_uri, pipeline))
    kept(find_nodules.fn(changed, bundle_uri, pipeline))
    monkeypatch.setattr(evaluation, "code_digest", lambda modules: "newer")
    done(find_nodules.fn(changed, bundle_uri, pipeline))


def test_an_alias_that_moved_on_is_judged_by_its_newer_bundle(
    home: Home, scan: PreparedScan, fields: dict[str, Any]
) -> None:
    # The findings of the older one would lie under the newer one's key for good.
    pipeline = pipeline_in(home)
    for threshold, stage in ((0.5, "benign"), (0.0, "malignant")):
        bundle = {**fields, "recipe": "alias", "malignant_threshold": threshold}
        registry.register_bundle(home, bundle, aliases=["demo"])
        file = done(find_nodules.fn(scan, "models:/luna@demo", pipeline))
        assert {f.stage for f in read_findings(file)} == {stage}


def test_a_scan_that_fails_leaves_no_findings(
    home: Home, scan: PreparedScan, bundle_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = replace(scan, series_uid="1.9")

    def out_of_memory(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(finding, "find_nodules", out_of_memory)
        with pytest.raises(MemoryError):
            find_nodules.fn(broken, bundle_uri, pipeline_in(home))
    assert list(home.reports.rglob("1.9/*")) == []
    done(find_nodules.fn(broken, bundle_uri, pipeline_in(home)))


# score_findings


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
    tmp_path: Path,
    home: Home,
    scan: PreparedScan,
    toy: Callable[..., ScanTruth],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Sequence[Finding], int], SplitScore]:
    """Score the toy scan's findings beside so many scans that were set aside."""
    monkeypatch.setattr(evaluation, "BOOTSTRAPS", 20)
    monkeypatch.setattr(tracking, "read_bundle", lambda *_: {"nodule_threshold": 0.5, "malignant_threshold": 0.5})

    def run(found: Sequence[Finding], aside: int = 0) -> SplitScore:
        file = tmp_path / "findings.csv"
        write_findings(file, scan.series_uid, tuple(found))
        truths = [toy(tmp_path, f"2.{n}", "val") for n in range(aside)]
        return score_findings.fn("val", [scan], [file], truths, "models:/luna/1", pipeline_in(home))

    return run


def places(scan: PreparedScan) -> tuple[Any, Any, Any]:
    """Centres of the malignant nodule, the benign nodule and the excluded finding."""
    malignant, benign = scan.nodules
    (excluded,) = scan.excluded
    return malignant.center_xyz, benign.center_xyz, excluded.center_xyz


FAR = (500.0, 500.0, 500.0)


def test_every_finding_is_counted_once(score: Callable[..., SplitScore], scan: PreparedScan) -> None:
    malignant, benign, excluded = places(scan)
    marks = [
        mark(malignant, 0.9, 0.8),
        mark(benign, 0.8, 0.1),
        mark(excluded, 0.7, 0.9),
        mark(FAR, 0.6, 0.7),
        mark(FAR, 0.2, 0.1),
    ]
    result = score(marks)
    assert result.split == "val"
    # Rows non-nodule, benign, malignant; columns missed, filtered, predicted benign, predicted malignant.
    # The report's table knows no excluded findings: the mark on one is a non-nodule there, and nothing in the FROC.
    assert result.table.counts == ((0, 1, 0, 2), (0, 0, 1, 0), (0, 0, 0, 1))
    assert (result.froc.false_positives, result.froc.ignored_on_excluded) == (2, 1)
    assert (result.table.scans, result.candidates) == (1, 5)
    assert result.froc.cpm == 1.0  # both nodules come before the first false positive


def test_the_nodules_of_a_scan_set_aside_are_missed(score: Callable[..., SplitScore], scan: PreparedScan) -> None:
    malignant, benign, _ = places(scan)
    marks = [mark(malignant, 0.9, 0.8), mark(benign, 0.8, 0.1)]
    table = score(marks, 1).table
    assert table.counts == ((0, 0, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1))
    assert (table.scans, table.scans_without_findings) == (2, 1)
    result = score(marks, 3)
    assert (result.froc.scans, result.froc.nodules, result.froc.true_positives) == (4, 8, 2)
    assert result.froc.cpm == 0.25


def test_a_scan_without_findings_is_no_scan_set_aside(score: Callable[..., SplitScore]) -> None:
    result = score([])
    assert result.table.counts == ((0, 0, 0, 0), (1, 0, 0, 0), (1, 0, 0, 0))
    assert (result.table.scans, result.table.scans_without_findings, result.candidates) == (1, 0, 0)
    assert result.froc.cpm == 0.0


def test_the_same_seed_gives_the_same_band(score: Callable[..., SplitScore], scan: PreparedScan) -> None:
    malignant, _, _ = places(scan)
    marks = [mark(malignant, 0.9, 0.8), mark(FAR, 0.95, 0.7)]
    assert score(marks, 2).froc.cpm_band == score(marks, 2).froc.cpm_band


# log_end_to_end


def test_one_row_holds_what_the_pipeline_reaches(
    score: Callable[..., SplitScore], scan: PreparedScan, home: Home
) -> None:
    malignant, benign, _ = places(scan)
    marks = [mark(malignant, 0.9, 0.8), mark(benign, 0.8, 0.1), mark(FAR, 0.6, 0.7)]
    val = score(marks, 1)
    test = replace(score([]), split="test")
    model = TrainedModel(
        stage="segmentation", name="unet", uri="models:/m-1", best_epoch=1, val={"f1": math.nan}, test={}
    )
    log_end_to_end.fn([val, test], "models:/luna/7", [model], pipeline_in(home))
    client = MlflowClient(tracking_uri=tracking.tracking_uri(home))
    experiment = client.get_experiment_by_name("luna-end-to-end")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "luna-7")
    assert run.data.tags["luna.pipeline"] == "p1"
    assert run.data.params["bundle"] == "models:/luna/7"
    assert run.data.params["segmentation"] == "models:/m-1"
    expected = {
        "val/nodules": 4,
        "val/found": 2,
        "val/malignant": 2,
        "val/malignant_flagged": 1,
        "val/false_positives_per_scan": 0.5,
        "val/candidates_per_scan": 1.5,
        "val/cpm": 0.5,
        "val/sensitivity_at_0.125_fps": 0.5,
        "test/nodules": 2,
        "test/found": 0,
        "test/cpm": 0,
    }
    assert {name: run.data.metrics[name] for name in expected} == expected
    assert val.table.to_text() in Path(client.download_artifacts(run.info.run_id, "val/table.txt")).read_text()
