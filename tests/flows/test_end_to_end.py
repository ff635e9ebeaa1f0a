"""The whole pipeline on nine tiny drawn scans, one of them damaged: once, then again with everything there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from mlflow import MlflowClient
from prefect.settings import get_current_settings
from prefect.testing.utilities import prefect_test_harness
from rich.console import Console

from flows.end_to_end import Summary, end_to_end
from flows.show import show_summary
from lungml import recipes
from lungml.findings import read_findings
from lungml.home import Home
from lungml.luna import read_luna
from lungml.phantom import PhantomSettings, write_phantoms
from lungml.quarantine import read_quarantine
from tasks import registry, tracking
from tasks.caching import digest
from tasks.finding import NamedBundle

STRIDE = 4  # nine scans: three validate, two test, four train


def tiny() -> recipes.Recipe:
    """The demo's recipe, cut to seconds; the U-Net learns just enough not to mark every voxel."""
    recipe = recipes.demo()
    lengths = {"segmentation": (2, 480), "classification": (2, 16), "finetuned": (1, 16), "scratch": (1, 16)}
    cut = {}
    for stage, (epochs, samples) in lengths.items():
        settings = getattr(recipe, stage)
        cut[stage] = replace(settings, fit=replace(settings.fit, epochs=epochs, samples_per_epoch=samples))
    return replace(recipe, **cut)


@pytest.fixture(scope="module")
def luna_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("luna16")
    settings = PhantomSettings(size_irc=(40, 96, 96), nodules=(3, 4), malignant_share=0.5, negatives_per_nodule=6)
    write_phantoms(folder, scans=9, seed=3, settings=settings, workers=2)
    return folder


@pytest.fixture(scope="module")
def damaged(luna_dir: Path) -> str:
    """The uid of a validation scan whose voxels break off."""
    series_uid = sorted(read_luna(luna_dir).scans)[STRIDE]
    raw = next(luna_dir.rglob(f"{series_uid}.raw"))
    os.truncate(raw, raw.stat().st_size - 1)
    return series_uid


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    home = Home(tmp_path_factory.mktemp("artifacts"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUNA_HOME", str(home.root))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setitem(recipes.RECIPES, "demo", tiny)
        with prefect_test_harness(server_startup_timeout=180):
            yield home


@pytest.fixture(scope="module")
def first(home: Home, luna_dir: Path, damaged: str) -> Summary:
    return end_to_end(str(luna_dir), val_stride=STRIDE)


def states() -> dict[str, Counter[str]]:
    """How many runs of each task ended in which state, in all pipeline runs so far."""
    url = f"{get_current_settings().api.url}/task_runs/filter"
    runs: list[dict[str, Any]] = []
    while True:  # the server tells of 200 at a time
        asked = {"sort": "EXPECTED_START_TIME_DESC", "offset": len(runs)}
        page = httpx.post(url, json=asked, timeout=60.0).raise_for_status().json()
        runs += page
        if not page:
            break
    counts: dict[str, Counter[str]] = {}
    for run in runs:
        task = run["task_key"].rsplit("-", 1)[0].rsplit(".", 1)[-1]
        counts.setdefault(task, Counter())[run["state_name"]] += 1
    return counts


def test_models_bundle_and_tables_come_out(first: Summary, home: Home, luna_dir: Path, damaged: str) -> None:
    trained = first.trained
    assert first.origin == "phantom"  # whatever folder they lie in
    assert [score.split for score in first.scores] == ["val", "test"]
    val, test = first.scores
    assert (val.table.scans, val.table.scans_without_findings, test.table.scans) == (3, 1, 2)

    # The damaged scan is set aside with its reason, and its nodules count as missed.
    (row,) = read_quarantine(home.quarantine_csv)
    assert row["series_uid"] == damaged
    assert "too short" in row["reason"]
    lost = sum(nodule.series_uid == damaged for nodule in read_luna(luna_dir).nodules)
    assert lost
    assert sum(line[0] for line in val.table.counts) >= lost

    # Findings lie where the tables were made from.
    judged = home.reports / "findings" / digest(NamedBundle.of(home, trained.bundle_uri).content)
    found = {file.parent.name: len(read_findings(file)) for file in judged.rglob("findings.csv")}
    assert len(found) == 4
    candidates = sum(
        score.card.funnel.candidates * (score.table.scans - len(score.card.set_aside)) for score in (val, test)
    )
    assert sum(found.values()) == candidates
    # Where each nodule was lost adds up, the damaged scan's included.
    assert val.card.losses.lost["quarantine"] == lost
    assert sum(val.card.losses.lost.values()) + val.card.losses.right == val.table.nodules

    bundle = registry.read_bundle(home, trained.bundle_uri)
    uris = [uri for member in registry.BUNDLE_MEMBERS for uri in registry.member_uris(bundle, member)]
    assert uris == [model.uri for model in trained.members]
    assert (bundle["recipe"], bundle["origin"]) == ("demo", "phantom")
    # The gate made it the demo: the first one needs no more than to be whole.
    assert registry.read_bundle(home, "models:/luna@demo") == bundle
    decision = first.evaluated.decision
    assert decision is not None
    assert (decision.promoted, decision.alias) == (True, "demo")
    # Two reports can be read, and nothing in them names a folder.
    for report, split in zip(first.evaluated.reports, ("val", "test"), strict=True):
        text = report.page.read_text(encoding="utf-8")
        assert (report.split, "Not for clinical use" in text) == (split, True)
        assert str(home.root) not in text
        assert str(luna_dir) not in text


def test_mlflow_holds_flat_runs_to_compare(first: Summary, home: Home) -> None:
    client = MlflowClient(tracking_uri=tracking.tracking_uri(home))
    runs = {}
    for stage in tracking.EXPERIMENTS:
        experiment = client.get_experiment_by_name(f"luna-{stage}")
        assert experiment is not None
        runs[stage] = client.search_runs([experiment.experiment_id])
    assert [len(runs[stage]) for stage in tracking.EXPERIMENTS] == [1, 1, 2, 2]
    every = [run for found in runs.values() for run in found]
    assert {run.info.status for run in every} == {"FINISHED"}
    assert len({run.data.tags["luna.pipeline"] for run in every}) == 1
    assert not any("mlflow.parentRunId" in run.data.tags for run in every)
    (segmentation,) = runs["segmentation"]
    history = client.get_metric_history(segmentation.info.run_id, "train/loss")
    assert [point.step for point in history] == [1, 2]
    assert {"val/recall", "val/best_recall", "test/recall", "best_epoch"} <= segmentation.data.metrics.keys()
    assert segmentation.data.params["fit.epochs"] == "2"
    pictures = {file.path for file in client.list_artifacts(segmentation.info.run_id, "figures")}
    assert pictures == {f"figures/{name}.png" for name in ("augmentation", "worst_invented", "worst_missed")}
    (nodule,) = runs["classification"]
    pictures = {file.path for file in client.list_artifacts(nodule.info.run_id, "figures")}
    assert {f"figures/{name}.png" for name in ("roc_pr", "confusion", "calibration", "augmentation")} <= pictures
    assert {"val/best_brier", "test/average_precision", "val/best_threshold"} <= nodule.data.metrics.keys()
    for run in runs["malignancy"]:
        assert {"test/diameter_auc", "val/best_auc"} <= run.data.metrics.keys()
    (row,) = (run for run in runs["end-to-end"] if not run.info.run_name.startswith("gate"))
    files = {file.path for file in client.list_artifacts(row.info.run_id, "test")}
    assert {"test/report.html", "test/report.md", "test/scorecard.json", "test/table.txt", "test/figures"} == files
    assert {"val/cpm", "test/cpm", "test/candidates_per_scan"} <= row.data.metrics.keys()
    assert row.data.params["bundle"] == first.trained.bundle_uri


def cards(summary: Summary) -> list[dict[str, Any]]:
    return [score.card.as_dict() for score in summary.scores]


def test_a_second_run_repeats_nothing(first: Summary, home: Home, luna_dir: Path) -> None:
    before = states()
    again = end_to_end(str(luna_dir), val_stride=STRIDE)
    assert str(again.trained) == str(first.trained)  # as text: a NaN equals a NaN
    assert cards(again) == cards(first)
    assert again.evaluated.decision is None  # it is the demo already
    after = states()
    work = ("build_mask", "cache_crops", "train_segmentation", "mine_candidates", "train_classification")
    for task in (*work, "train_malignancy", "find_nodules"):
        assert after[task]["Completed"] == before[task]["Completed"], task
        assert after[task]["Cached"] == sum(before[task].values()), task


def test_a_deleted_store_is_made_again(first: Summary, home: Home, luna_dir: Path) -> None:
    victim = sorted(home.scans.glob("*.zarr"))[0]
    (victim / "zarr.json").unlink()
    before = states()["convert_scan"]["Completed"]
    again = end_to_end(str(luna_dir), val_stride=STRIDE)
    assert states()["convert_scan"]["Completed"] == before + 2  # the damaged scan is always looked at
    assert cards(again) == cards(first)
    assert (victim / "zarr.json").exists()


def test_the_terminal_shows_it_all(first: Summary, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    show_summary(first, home, Console(width=80, highlight=False))
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines()[:14])) <= 80
    assert "…" not in told
    for words in ("malignancy-scratch", "predicted malignant", "CPM", "Not for clinical use", str(home.root)):
        assert words in told


def test_a_stage_is_done_anew_and_another_is_given(first: Summary, home: Home, luna_dir: Path) -> None:
    before = states()
    unet = first.trained.segmentation
    again = end_to_end(
        str(luna_dir),
        val_stride=STRIDE,
        refresh=["prepare", "malignancy"],
        reuse_models={"segmentation": [unet.uri]},
    )
    after = states()
    assert again.trained.segmentation.uri == unet.uri
    assert again.trained.segmentation.val["recall"] == unet.val["recall"]
    assert [model.uri for model in again.trained.nodules] == [model.uri for model in first.trained.nodules]
    # Trained anew from the same data with the same seed: other models of the same worth.
    uris = {model.uri for model in (*again.trained.malignancies, *again.trained.others)}
    assert uris.isdisjoint(model.uri for model in (*first.trained.malignancies, *first.trained.others))
    assert cards(again) == cards(first)
    done = {task: after[task]["Completed"] - before.get(task, Counter())["Completed"] for task in after}
    assert (done["build_mask"], done["cache_crops"]) == (8, 8)
    assert (done["train_segmentation"], done["train_classification"], done["train_malignancy"]) == (0, 0, 2)
    assert (done["reuse_models"], done["mine_candidates"]) == (1, 0)
    assert not list(home.rounds.glob("*/round.json"))  # it came to its end
