"""Three stages on four toy scans; networks of full size, epochs of four samples."""

from __future__ import annotations

import functools
import math
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from prefect.states import Failed

from lungml import groups, recipes
from lungml.candidates import GroupingSettings
from lungml.errors import LunaError, TrainingError
from lungml.geometry import Grid, irc_to_xyz
from lungml.home import Home
from lungml.job import run_job
from lungml.luna import Excluded
from lungml.marked import Marked
from lungml.recipes import Recipe
from lungml.recipes.data import PreparedScan
from lungml.recipes.segmentation import SegmentationProblem
from lungml.sampling import NegativePlan
from tasks import child, fitting, registry, tracking, training
from tasks import pipeline as pipelines
from tasks.assembly import draft_bundle, register_bundle
from tasks.data import build_mask, cache_crops, convert_scan
from tasks.pipeline import Pipeline, TrainedModel
from tasks.rounds import open_round
from tasks.tracking import TrackingError
from tasks.training import (
    mine_candidates,
    train_classification,
    train_malignancy,
    train_segmentation,
)
from tasks.truth import ScanTruth
from tests.tasks.outcomes import done, kept


def tiny() -> Recipe:
    """The demo's recipe: two epochs of four samples."""
    recipe = recipes.demo()

    def cut(settings: Any) -> Any:
        short = replace(settings.fit, epochs=2, samples_per_epoch=4, batch_size=2, validate_every=1)
        return replace(settings, fit=short)

    return replace(
        recipe,
        name="tiny",
        segmentation=cut(recipe.segmentation),
        classification=cut(recipe.classification),
        finetuned=cut(recipe.finetuned),
        scratch=cut(recipe.scratch),
    )


@pytest.fixture(scope="module")
def scans(
    tmp_path_factory: pytest.TempPathFactory, toy: Callable[..., ScanTruth], no_prefect_run: None
) -> list[PreparedScan]:
    """Two to learn from, one to validate and one to test on."""
    folder = tmp_path_factory.mktemp("scans")
    home = Home(folder / "artifacts")
    prepared = []
    for number, split in enumerate(("train", "train", "val", "test")):
        stored = convert_scan.fn(toy(folder, f"1.{number}", split, number), home)
        build_mask.fn(stored, "bounded")
        settings = {"negatives": NegativePlan(kind="fixed", per_scan=4), "negative_slabs_per_scan": 2, "seed": 0}
        prepared.append(cache_crops.fn(stored, home, recipe_name="tiny", rule="bounded", **settings))
    return prepared


@pytest.fixture(autouse=True, scope="module")
def no_artifacts() -> Iterator[None]:
    """Progress bars are kept by a Prefect server; there is none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "create_progress_artifact", lambda *_, **__: None)
        patch.setattr(fitting, "update_progress_artifact", lambda *_, **__: None)
        yield


@pytest.fixture(autouse=True, scope="module")
def in_this_process() -> Iterator[None]:
    """A process of its own takes four seconds to start; `test_child.py` starts some."""

    def run_here(folder: Path, on_event: Callable[[dict[str, Any]], None], **limits: Any) -> None:
        assert limits == {"time_limit_s": None, "environment": {}}  # no GPU is held on a CPU
        run_job(folder, lambda event, **fields: on_event({"event": event, **fields}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "run_child", run_here)
        yield


def pipeline_in(home: Home, **change: Any) -> Pipeline:
    return Pipeline(**{"home": home, "pipeline_id": "p1", "origin": "phantom", "seed": 0, "device": "cpu", **change})


@dataclass(frozen=True)
class Trained:
    """One pipeline's models, each trained once."""

    pipeline: Pipeline
    segmentation: TrainedModel
    nodule: TrainedModel
    finetuned: TrainedModel
    scratch: TrainedModel
    unet_weights: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
    new_home: Callable[[Path], Home],
    scans: list[PreparedScan],
    no_artifacts: None,
    in_this_process: None,
) -> Trained:
    pipeline, recipe = pipeline_in(new_home(tmp_path_factory.mktemp("trained"))), tiny()
    segmentation = done(train_segmentation.fn(scans, recipe, pipeline))
    nodule = done(train_classification.fn(scans, recipe, pipeline, segmentation.uri))
    ways = [done(train_malignancy.fn(scans, recipe, way, pipeline, nodule.uri)) for way in ("finetuned", "scratch")]
    return Trained(pipeline, segmentation, nodule, *ways, weights(pipeline.home, segmentation))


def client_of(home: Home) -> MlflowClient:
    return MlflowClient(tracking_uri=tracking.tracking_uri(home))


def runs(home: Home, stage: str) -> list[Run]:
    """A stage's runs, oldest first."""
    experiment = client_of(home).get_experiment_by_name(f"luna-{stage}")
    if experiment is None:
        return []
    return list(client_of(home).search_runs([experiment.experiment_id], order_by=["attributes.start_time"]))


def steps(home: Home, run: Run, metric: str) -> list[int]:
    return [point.step for point in client_of(home).get_metric_history(run.info.run_id, metric)]


def weights(home: Home, model: TrainedModel) -> dict[str, torch.Tensor]:
    return tracking.load_model(home, model.uri, expect_stage=model.stage)[1]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# What a training leaves


def test_a_training_leaves_a_model_and_a_finished_run(trained: Trained) -> None:
    model, home = trained.segmentation, trained.pipeline.home
    assert model.uri.startswith("models:/m-")
    assert (model.stage, model.name) == ("segmentation", "tiny-unet")
    assert model.best_epoch in (1, 2)
    assert model.val.keys() == model.test.keys() >= {"loss", "precision", "recall", "f1"}
    (run,) = runs(home, "segmentation")
    assert run.info.status == "FINISHED"
    assert run.data.tags["luna.pipeline"] == "p1"
    assert run.data.tags["luna.origin"] == "phantom"
    for metric in ("train/loss", "val/loss", "val/recall"):
        assert steps(home, run, metric) == [1, 2]
    assert run.data.params["fit.epochs"] == "2"
    assert run.data.params["mask_rule"] == "bounded"
    assert (run.data.params["seed"], run.data.params["device"]) == ("0", "cpu")
    assert run.data.metrics["best_epoch"] == model.best_epoch
    for split, name in (("val", "val/best_recall"), ("test", "test/recall")):
        assert run.data.metrics[name] == getattr(model, split)["recall"]
    arch, _ = tracking.load_model(home, model.uri)
    assert arch == {"stage": "segmentation", "config": asdict(tiny().segmentation.model)}


def test_a_classifier_names_the_segmenter_whose_mistakes_it_learned_from(trained: Trained) -> None:
    assert trained.nodule.name == "tiny-nodule"
    (run,) = runs(trained.pipeline.home, "classification")
    assert run.data.tags["luna.parent.segmentation"] == trained.segmentation.uri
    assert {"precision", "recall", "f1", "auc"} <= trained.nodule.val.keys()


def test_malignancy_stands_beside_the_diameter_alone(trained: Trained) -> None:
    finetuned, scratch = runs(trained.pipeline.home, "malignancy")
    assert (trained.finetuned.name, trained.scratch.name) == ("tiny-malignancy-finetuned", "tiny-malignancy-scratch")
    assert finetuned.data.tags["luna.parent.classification"] == trained.nodule.uri
    assert "luna.parent.classification" not in scratch.data.tags
    # Of the toy's two nodules the larger is malignant.
    for model in (trained.finetuned, trained.scratch):
        assert model.val["diameter_auc"] == model.test["diameter_auc"] == 1.0
    assert scratch.data.metrics["test/diameter_auc"] == scratch.data.metrics["val/best_diameter_auc"] == 1.0


def test_the_bundle_holds_the_three_and_gets_no_alias(trained: Trained) -> None:
    home, recipe = trained.pipeline.home, tiny()
    draft = draft_bundle(trained.segmentation, [trained.nodule], [trained.finetuned], recipe, trained.pipeline)
    fields = registry.read_bundle(home, register_bundle.fn(draft, trained.pipeline))
    uris = [trained.segmentation.uri, trained.nodule.uri, trained.finetuned.uri]
    assert [fields[m] for m in ("segmentation", "nodule", "malignancy")] == uris
    assert fields["nodule_threshold"] == trained.nodule.val["threshold"]
    assert fields["grouping"] == asdict(recipe.grouping)
    assert "inference" not in fields  # the default needs no word
    assert (fields["recipe"], fields["origin"]) == ("tiny", "phantom")
    with pytest.raises(TrackingError, match="no such model"):
        registry.read_bundle(home, "models:/luna@demo")  # the gate decides


# What is trained anew and what is kept


def test_an_equal_training_is_kept_and_opens_no_run(trained: Trained, scans: list[PreparedScan]) -> None:
    pipeline, recipe = replace(trained.pipeline, pipeline_id="p2"), tiny()
    before = {stage: len(runs(pipeline.home, stage)) for stage in tracking.EXPERIMENTS}
    again = kept(train_segmentation.fn(scans, recipe, pipeline))
    assert (again.uri, again.best_epoch) == (trained.segmentation.uri, trained.segmentation.best_epoch)
    assert again.test == pytest.approx(trained.segmentation.test, nan_ok=True)
    uri = trained.segmentation.uri
    assert kept(train_classification.fn(scans, recipe, pipeline, uri)).uri == trained.nodule.uri
    again = train_malignancy.fn(scans, recipe, "scratch", pipeline, trained.nodule.uri)
    assert kept(again).uri == trained.scratch.uri
    assert {stage: len(runs(pipeline.home, stage)) for stage in tracking.EXPERIMENTS} == before


class Opened(Exception):
    """A training that was about to begin."""


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise Opened

    monkeypatch.setattr(tracking, "open_run", refuse)


def longer(recipe: Recipe) -> Recipe:
    fit = replace(recipe.segmentation.fit, epochs=3)
    return replace(recipe, segmentation=replace(recipe.segmentation, fit=fit))


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    "change", ["seed", "setting", "data", "fewer scans", "code", "precision", "fresh", "model gone"]
)
def test_a_change_trains_again(
    trained: Trained, scans: list[PreparedScan], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    pipeline, recipe = trained.pipeline, tiny()
    if change == "seed":
        pipeline = replace(pipeline, seed=1)
    elif change == "setting":
        recipe = longer(recipe)
    elif change == "data":
        assert scans[3].reads is not None
        scans = [*scans[:3], replace(scans[3], reads=replace(scans[3].reads, slices="other"))]
    elif change == "fewer scans":
        scans = scans[1:]
    elif change == "code":
        # Mistake 16: cache keys held no code version.
        monkeypatch.setattr(fitting, "code_digest", lambda modules: "newer")
    elif change == "precision":
        pipeline = replace(pipeline, precision="bf16")
    elif change == "fresh":
        pipeline = replace(pipeline, round=open_round(pipeline.home, ["segmentation"], {}))
    else:
        monkeypatch.setattr(tracking, "model_exists", lambda home, uri: False)
    with pytest.raises(Opened):
        train_segmentation.fn(scans, recipe, pipeline)


@pytest.mark.usefixtures("no_training")
def test_another_parent_trains_again_where_it_matters(trained: Trained, scans: list[PreparedScan]) -> None:
    recipe = tiny()
    with pytest.raises(Opened):
        train_classification.fn(scans, recipe, trained.pipeline, "models:/m-other")
    with pytest.raises(Opened):
        train_malignancy.fn(scans, recipe, "finetuned", trained.pipeline, "models:/m-other")
    kept(train_malignancy.fn(scans, recipe, "scratch", trained.pipeline, "models:/m-other"))


def test_fresh_trains_once_more_and_a_retry_of_it_does_not(trained: Trained, scans: list[PreparedScan]) -> None:
    home = trained.pipeline.home
    again = open_round(home, ["segmentation"], {"run": "p3"})
    assert again is not None
    pipeline = replace(trained.pipeline, round=again, pipeline_id="p3")
    fresh = done(train_segmentation.fn(scans, tiny(), pipeline))
    assert fresh.uri != trained.segmentation.uri
    assert equal(weights(home, fresh), trained.unet_weights)  # seeded: the same once more
    # Cut short, the pipeline is gone on with by the next one of the same wish; finished, it is not.
    next_run = replace(pipeline, round=open_round(home, ["segmentation"], {"run": "p3"}), pipeline_id="p4")
    assert kept(train_segmentation.fn(scans, tiny(), next_run)).uri == fresh.uri
    again.close()
    later = open_round(home, ["segmentation"], {"run": "p3"})
    assert later is not None
    assert later.id != again.id
    assert kept(train_segmentation.fn(scans, tiny(), trained.pipeline)).uri == trained.segmentation.uri


# Failure


def test_a_killed_training_goes_on_as_if_nothing_had_happened(
    trained: Trained, scans: list[PreparedScan], home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipeline_in(home)

    def pull_the_plug(*_: Any, **__: Any) -> None:
        raise OSError("no power")

    with monkeypatch.context() as patch:
        patch.setattr(fitting._Events, "_show", pull_the_plug)
        with pytest.raises(OSError, match="no power"):
            train_segmentation.fn(scans, tiny(), pipeline)
    model = done(train_segmentation.fn(scans, tiny(), pipeline))
    assert equal(weights(home, model), trained.unet_weights)
    assert model.best_epoch == trained.segmentation.best_epoch
    assert model.test == pytest.approx(trained.segmentation.test, nan_ok=True)
    (run,) = runs(home, "segmentation")  # it goes on in the run that it began
    assert run.info.status == "FINISHED"
    assert steps(home, run, "train/loss") == [1, 2]
    # A finished training is closed: nothing of it is gone on with.
    assert sorted(file.name for file in home.checkpoints.rglob("*.*") if file.suffix != ".lock") == [
        "augmentation.png", "finished.json", "worst_invented.png", "worst_missed.png",
    ]  # fmt: skip


def test_a_progress_bar_that_fails_costs_no_training(
    scans: list[PreparedScan], home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no server")

    monkeypatch.setattr(fitting, "update_progress_artifact", unreachable)
    assert done(train_segmentation.fn(scans, tiny(), pipeline_in(home))).uri.startswith("models:/m-")


def test_a_training_that_dies_while_it_is_logged_repeats_no_epoch(
    scans: list[PreparedScan], home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipeline_in(home)

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(tracking, "log_model", full)
        with pytest.raises(OSError, match="no space left"):
            train_segmentation.fn(scans, tiny(), pipeline)
    logged = []
    monkeypatch.setattr(tracking, "log_model", lambda run, model, **_: logged.append(model) or "models:/m-1")
    model = done(train_segmentation.fn(scans, tiny(), pipeline))
    (run,) = runs(home, "segmentation")
    assert (run.info.status, steps(home, run, "train/loss")) == ("FINISHED", [1, 2])
    select_by = tiny().segmentation.fit.select_by
    history = client_of(home).get_metric_history(run.info.run_id, f"val/{select_by}")
    assert model.val[select_by] == max(point.value for point in history)
    assert len(logged) == 1


def test_no_nodule_to_learn_from_fails_aloud_and_is_not_tried_again(scans: list[PreparedScan], home: Home) -> None:
    held_out = [scan for scan in scans if scan.split != "train"]
    with pytest.raises(TrainingError, match="hold no nodule for segmentation") as caught:
        train_segmentation.fn(held_out, tiny(), pipeline_in(home))
    (run,) = runs(home, "segmentation")
    assert run.info.status == "FAILED"
    assert not may_pass(caught.value)


def test_a_parent_that_is_not_there_is_one_line(scans: list[PreparedScan], home: Home) -> None:
    with pytest.raises(TrackingError, match="models:/m-none: no such model"):
        train_malignancy.fn(scans, tiny(), "finetuned", pipeline_in(home), "models:/m-none")


def may_pass(error: BaseException) -> bool:
    """What Prefect asks before it tries again."""
    return pipelines.may_pass(None, None, Failed(data=error, message="failed"))


def test_only_what_may_pass_is_tried_again() -> None:
    assert all(may_pass(error) for error in (OSError("disk"), RuntimeError("CUDA out of memory"), ValueError("x")))
    assert not any(may_pass(error) for error in (LunaError("x"), TrainingError("no nodule"), TrackingError("gone")))
    for task in (train_segmentation, train_classification, train_malignancy):
        assert task.retries == 1
        assert task.retry_condition_fn is pipelines.may_pass


# Mistakes 9 and 11


def test_the_best_epochs_weights_are_tested_and_logged(
    scans: list[PreparedScan], home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Mistake 11: the test set was scored with the last epoch's weights; mistake 9: a NaN became the best score.
    scores = iter([math.nan, 0.75, 0.25])
    seen: dict[str, list[dict[str, torch.Tensor]]] = {"val": [], "test": []}

    def scripted(self: SegmentationProblem, split: Literal["val", "test"]) -> dict[str, float]:
        seen[split].append({name: value.clone() for name, value in self.model.state_dict().items()})
        f1 = next(scores) if split == "val" else 0.5
        select_by = tiny().segmentation.fit.select_by
        return {"loss": 1.0, "precision": f1, "recall": f1, "f1": f1, select_by: f1}

    monkeypatch.setattr(SegmentationProblem, "evaluate", scripted)
    model = done(train_segmentation.fn(scans, longer(tiny()), pipeline_in(home)))
    assert (model.best_epoch, model.val["f1"], model.test["f1"]) == (2, 0.75, 0.5)
    assert equal(weights(home, model), seen["val"][1])
    assert not equal(weights(home, model), seen["val"][2])
    assert [equal(tested, seen["val"][1]) for tested in seen["test"]] == [True]
    (run,) = runs(home, "segmentation")
    assert run.data.metrics["val/best_f1"] == 0.75
    assert steps(home, run, "val/f1") == [2, 3]  # MLflow cannot chart a NaN


# mine_candidates

UNION = GroupingSettings(rule="union", min_voxels=1)


@pytest.fixture
def mining(tmp_path: Path, scans: list[PreparedScan], monkeypatch: pytest.MonkeyPatch) -> functools.partial[Any]:
    """Mine a training scan whose segmenter marks the given boxes of voxels (index, row, col, each 3 wide)."""
    home = Home(tmp_path / "artifacts")
    crops = home.crops / "tiny.zarr" / scans[0].series_uid
    shutil.copytree(scans[0].crops, crops)
    monkeypatch.setattr(training, "load_unet", lambda *_: None)

    own = replace(scans[0], crops=crops, excluded=())

    def mine(
        *centers: tuple[int, int, int],
        scan: PreparedScan = own,
        uri: str = "models:/m-1",
        grouping: GroupingSettings = UNION,
        **change: Any,
    ) -> Any:
        def segment(hu: np.ndarray, model: None, *, floor: float) -> Marked:
            mask = np.zeros(hu.shape, dtype=bool)
            for center in centers:
                mask[tuple(slice(c - 1, c + 2) for c in center)] = True
            return Marked.of_mask(mask)

        monkeypatch.setattr(training, "segment", segment)
        return mine_candidates.fn(replace(scan, **change), uri, grouping, pipeline_in(home))

    return functools.partial(mine, scan=own)


def mined_labels(scan: PreparedScan) -> list[int]:
    assert scan.mined is not None
    return groups.map_array(scan.mined, "labels").tolist()


@pytest.mark.parametrize(
    ("center", "label"),
    [
        ((8, 14, 14), 2),
        ((8, 18, 14), 2),  # 4 mm from the malignant nodule's centre, its radius is 5 mm
        ((8, 20, 14), 0),  # 6 mm
        ((11, 14, 14), 2),  # three slices of 1.5 mm
        ((12, 14, 14), 0),  # four of them
        ((16, 34, 32), 1),  # 2 mm from the benign one's, its radius is 3 mm
        ((16, 34, 34), 0),  # 4 mm
    ],
)
def test_a_candidate_within_a_nodules_radius_shows_the_nodule(
    mining: Callable[..., Any], scans: list[PreparedScan], grid: Grid, center: tuple[int, int, int], label: int
) -> None:
    found = done(mining(center))
    assert mined_labels(found) == [label]
    assert np.linalg.norm(groups.map_array(found.mined, "centers_xyz") - irc_to_xyz(center, grid)) < 0.5
    assert groups.map_array(found.mined, "diameters_mm").tolist() == pytest.approx(
        [{2: 10, 1: 6, 0: math.nan}[label]], nan_ok=True
    )
    assert re.fullmatch(r"tiny-mined-[0-9a-f]{8}\.zarr", found.mined.parent.name)
    assert found.digest != scans[0].digest


def test_around_a_small_nodule_three_mm_are_near_enough(mining: functools.partial[Any]) -> None:
    # Its radius is 1 mm, less than the segmenter's own error.
    (nodule, *_) = mining.keywords["scan"].nodules
    small = (replace(nodule, diameter_mm=2.0),)
    assert mined_labels(done(mining((8, 16, 14), nodules=small))) == [2]
    assert mined_labels(done(mining((8, 18, 14), nodules=small, uri="models:/m-2"))) == [0]


def test_a_candidate_on_an_excluded_finding_is_left_out(mining: Callable[..., Any], grid: Grid) -> None:
    x, y, z = irc_to_xyz((12, 24, 24), grid).tolist()
    excluded = (Excluded(series_uid="1.0", center_xyz=(x, y, z), diameter_mm=8),)
    assert mined_labels(done(mining((12, 24, 27), (12, 24, 34), excluded=excluded))) == [0]


def test_a_segmenter_that_marks_nothing_gives_no_candidate(mining: Callable[..., Any]) -> None:
    # Mistake 4: an empty result fell through to the whole data set.
    assert mined_labels(done(mining())) == []


def test_mined_crops_are_kept_until_what_they_come_from_changes(
    mining: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = done(mining((8, 14, 14)))
    assert kept(mining((8, 14, 14))) == first
    other_model = done(mining((8, 20, 14), uri="models:/m-2"))
    assert mined_labels(other_model) == [0]
    assert other_model.digest != first.digest
    done(mining((8, 20, 14), uri="models:/m-2", grouping=replace(UNION, min_voxels=2)))
    assert kept(mining((8, 14, 14))) == first  # another segmenter's crops lie apart
    shutil.rmtree(first.mined)
    assert done(mining((8, 14, 14))) == first


def test_mined_crops_are_cut_again_by_newer_code(mining: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # Mistake 16: cache keys held no code version.
    done(mining((8, 14, 14)))
    monkeypatch.setattr(training, "code_digest", lambda modules: "newer")
    done(mining((8, 14, 14)))


def test_mined_crops_follow_the_excluded_findings(mining: Callable[..., Any], grid: Grid) -> None:
    x, y, z = irc_to_xyz((12, 24, 24), grid).tolist()
    small, large = (
        (Excluded(series_uid="1.0", center_xyz=(x, y, z), diameter_mm=diameter_mm),) for diameter_mm in (2, 8)
    )
    assert mined_labels(done(mining((12, 24, 27), excluded=small))) == [0]
    assert mined_labels(done(mining((12, 24, 27), excluded=large))) == []


# In a process of its own


@pytest.mark.slow
def test_a_training_process_killed_at_any_step_is_gone_on_with(
    scans: list[PreparedScan], tmp_path: Path, new_home: Callable[[Path], Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = replace(tiny().segmentation.fit, epochs=2, samples_per_epoch=40, validate_every=2)  # 20 steps an epoch
    recipe = replace(tiny(), segmentation=replace(tiny().segmentation, fit=fit))
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole_home, home = new_home(tmp_path / "whole"), new_home(tmp_path / "killed")
    whole = done(train_segmentation.fn(scans, recipe, pipeline_in(whole_home)))
    monkeypatch.setattr(fitting, "run_child", child.run_child)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as this process has: other sums would end in other weights
    pipeline, died = pipeline_in(home, checkpoint_steps=3), []

    def train() -> None:
        try:
            train_segmentation.fn(scans, recipe, pipeline)
        except child.ChildDied as error:
            died.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    deadline = time.monotonic() + 120
    while not list(home.checkpoints.rglob("last.pt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    (process,) = child._running
    os.kill(process.pid, signal.SIGKILL)
    thread.join(60)
    assert "SIGKILL" in str(died[0])
    assert may_pass(died[0])  # so that Prefect tries again, and goes on
    (state,) = (torch.load(path, weights_only=True) for path in home.checkpoints.rglob("last.pt"))
    assert 0 < state["step"] + 20 * (state["epoch"] - 1) < 40
    model = done(train_segmentation.fn(scans, recipe, pipeline))
    assert equal(weights(home, model), weights(whole_home, whole))
    (run,) = runs(home, "segmentation")
    assert (run.info.status, steps(home, run, "train/loss")) == ("FINISHED", [1, 2])
