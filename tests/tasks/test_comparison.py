"""Trees to be judged on, what a bundle may not be judged on, and what is said at the annotated centres."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from lungml import compare, store
from lungml import findings as finding
from lungml.candidates import GroupingSettings
from lungml.classify import classify
from lungml.findings import Finding, write_findings
from lungml.geometry import Grid, xyz_to_irc
from lungml.home import Home
from lungml.models.nodule_net import NoduleNet
from lungml.models.unet import UNet
from tasks import registry, tracking
from tasks.bundles import load_bundle, stage_example
from tasks.comparison import (
    EvaluatedScan,
    Evaluation,
    EvaluationError,
    Tree,
    check_unseen,
    judge_annotated,
    log_evaluation,
    read_tree,
    score_bundle,
)
from tasks.data import convert_scan
from tasks.pipeline import Pipeline
from tasks.truth import ScanTruth
from tests.tasks.outcomes import done

UIDS = ["1.1", "1.2", "1.3"]


def pipeline_in(home: Home) -> Pipeline:
    return Pipeline(home=home, pipeline_id="p1", origin="phantom", seed=0, device="cpu")


# read_tree


@pytest.fixture
def luna_dir(tmp_path: Path, toy: Callable[..., ScanTruth]) -> Path:
    """Three toy scans with their table of nodules."""
    folder = tmp_path / "fresh"
    lines = ["seriesuid,coordX,coordY,coordZ,diameter_mm,mal_bool,mal_details"]
    for number, uid in enumerate(UIDS):
        for nodule in toy(folder, uid, number=number).nodules:
            x, y, z = nodule.center_xyz
            lines.append(f'{uid},{x},{y},{z},{nodule.diameter_mm},{nodule.malignant},"{list(nodule.ratings)}"')
    (folder / "annotations_with_malignancy.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_all_of_a_fresh_tree_is_judged_and_none_of_it_joins_the_split(luna_dir: Path, home: Home) -> None:
    notes, tree = read_tree(luna_dir, None, "all", home)
    assert [truth.series_uid for truth in tree.truths] == UIDS
    assert [len(truth.nodules) for truth in tree.truths] == [2, 2, 2]
    assert (tree.name, tree.words) == ("fresh", "real scans")  # no series of ours
    assert any("annotations.csv is missing" in note for note in notes)
    assert not home.split_csv.exists()


def test_one_side_of_the_homes_split_is_judged_alone(luna_dir: Path, home: Home) -> None:
    text = "series_uid,split\n1.1,train\n1.3,val\n9.9,val\n"
    home.split_csv.write_text(text)
    _, tree = read_tree(luna_dir, None, "val", home)
    assert [truth.series_uid for truth in tree.truths] == ["1.3"]
    assert home.split_csv.read_text() == text
    with pytest.raises(EvaluationError, match=r"none of its 3 scans is on the test side of .*--split all"):
        read_tree(luna_dir, None, "test", home)
    with pytest.raises(EvaluationError, match="'other' is none of all, train, val, test"):
        read_tree(luna_dir, None, "other", home)  # type: ignore[arg-type]


# check_unseen


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """What the bundle says of itself."""

    def say(recipe: str = "demo", origin: str = "real") -> None:
        members = dict.fromkeys(registry.BUNDLE_MEMBERS, "models:/m-1")
        monkeypatch.setattr(tracking, "read_bundle", lambda *_: {"recipe": recipe, "origin": origin, **members})
        monkeypatch.setattr(tracking, "model_scans", lambda *_: {})  # of an older run, which does not say

    say()
    return say


def test_a_bundle_is_not_judged_on_what_it_learned_from(luna_dir: Path, home: Home, told: Callable[..., None]) -> None:
    home.split_csv.write_text("series_uid,split\n1.1,train\n1.2,test\n1.3,val\n")
    _, tree = read_tree(luna_dir, None, "all", home)
    with pytest.raises(EvaluationError, match=r"models:/luna/1 learned from 1 of these 3.*such as 1\.1\)") as said:
        check_unseen(tree, "models:/luna/1", home)
    assert "\n" not in str(said.value)
    for chosen, words in (
        ("test", []),
        ("val", ["1 of 1 scans helped to choose"]),
        ("train", ["no measure of new ones"]),
    ):
        _, part = read_tree(luna_dir, None, chosen, home)  # type: ignore[arg-type]
        notes = check_unseen(part, "models:/luna/1", home)
        assert len(notes) == len(words)
        assert all(word in note for word, note in zip(words, notes))


def test_what_a_model_says_that_it_learned_from_counts_in_any_home(
    luna_dir: Path, home: Home, told: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, tree = read_tree(luna_dir, None, "all", home)  # this home's split.csv knows none of them
    monkeypatch.setattr(tracking, "model_scans", lambda *_: {"1.2": "train", "1.3": "val"})
    with pytest.raises(EvaluationError, match=r"learned from 1 of these 3 scans.*such as 1\.2"):
        check_unseen(tree, "models:/luna/1", home)


def test_a_scan_of_a_patient_it_learned_from_is_refused_too(
    luna_dir: Path, home: Home, told: Callable[..., None]
) -> None:
    _, tree = read_tree(luna_dir, None, "all", home)
    assert check_unseen(tree, "models:/luna/1", home) == ()
    of_one = replace(tree.truths[2], patient="p-7")
    known = replace(tree, truths=(*tree.truths[:2], of_one), trained_patients=frozenset(["p-7"]))
    with pytest.raises(EvaluationError, match=r"or from their patients \(such as 1\.3"):
        check_unseen(known, "models:/luna/1", home)


def test_of_weights_from_elsewhere_nothing_is_known(luna_dir: Path, home: Home, told: Callable[..., None]) -> None:
    home.split_csv.write_text("series_uid,split\n1.1,train\n")
    _, tree = read_tree(luna_dir, None, "all", home)
    told(recipe="published")
    (note,) = check_unseen(tree, "models:/luna/1", home)
    assert "not known which scans" in note


# judge_annotated, score_bundle, log_evaluation


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, new_home: Callable[[Path], Home]) -> Home:
    return new_home(tmp_path_factory.mktemp("comparison"))


@pytest.fixture(scope="module")
def truths(shared: Home, toy: Callable[..., ScanTruth]) -> tuple[ScanTruth, ...]:
    return tuple(toy(shared.root / "luna16", uid, number=number) for number, uid in enumerate(UIDS))


@pytest.fixture(scope="module")
def scans(shared: Home, truths: Sequence[ScanTruth], no_prefect_run: None) -> list[EvaluatedScan]:
    """The first two; the third could not be read."""
    return [EvaluatedScan.of(done(convert_scan.fn(truth, shared))) for truth in truths[:2]]


@pytest.fixture(scope="module")
def bundle_uri(shared: Home) -> str:
    def log(stage: str, model: Any) -> str:
        with tracking.open_run(shared, stage, name="toy") as run:
            arch = {"stage": stage, "config": asdict(model.config)}
            return tracking.log_model(run, model, arch=arch, example=stage_example(model), name="toy")

    fields = {
        "segmentation": log("segmentation", UNet(generator=torch.Generator().manual_seed(1))),
        "nodule": log("classification", NoduleNet(generator=torch.Generator().manual_seed(2))),
        "malignancy": log("malignancy", NoduleNet(generator=torch.Generator().manual_seed(3))),
        "grouping": asdict(GroupingSettings(rule="report")),
        "nodule_threshold": 0.5,
        "malignant_threshold": 0.5,
        "recipe": "toy",
        "origin": "phantom",
    }
    return registry.register_bundle(shared, fields)


def test_every_annotated_nodule_is_judged_where_it_is_annotated(
    shared: Home, scans: list[EvaluatedScan], bundle_uri: str, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipeline_in(shared)
    said = judge_annotated.fn(scans, bundle_uri, pipeline)
    bundle = load_bundle(shared, bundle_uri, "cpu")
    assert list(said) == UIDS[:2]
    for scan in scans:
        hu, centers = store.read_volume(scan.store), [n.center_xyz for n in scan.nodules]
        (expected,) = classify(hu, xyz_to_irc(np.array(centers), grid), bundle.malignancy)
        assert said[scan.series_uid] == pytest.approx(expected, abs=1e-8)
    (file, _) = sorted(shared.reports.rglob("annotated.csv"))
    with file.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [(row["series_uid"], row["diameter_mm"], row["malignant"]) for row in rows] == [
        ("1.1", "10.0000", "True"),
        ("1.1", "6.0000", "False"),
    ]

    def again(*_: Any, **__: Any) -> None:
        raise AssertionError("judged again")

    monkeypatch.setattr(finding, "classify", again)
    assert judge_annotated.fn(scans, bundle_uri, pipeline) == said
    fewer = [replace(scans[0], nodules=scans[0].nodules[:1])]
    with pytest.raises(AssertionError, match="judged again"):
        judge_annotated.fn(fewer, bundle_uri, pipeline)


def test_a_scan_without_nodules_is_judged_nowhere(shared: Home, scans: list[EvaluatedScan], bundle_uri: str) -> None:
    healthy = [replace(scans[0], series_uid="1.8", nodules=())]
    assert judge_annotated.fn(healthy, bundle_uri, pipeline_in(shared)) == {"1.8": ()}


def mark(center_xyz: tuple[float, float, float], prob_nodule: float, prob_malignant: float) -> Finding:
    return Finding(
        center_irc=(0, 0, 0),
        center_xyz=center_xyz,
        prob_nodule=prob_nodule,
        prob_malignant=prob_malignant,
        stage="benign",
    )


@pytest.fixture
def evaluation(
    tmp_path: Path, shared: Home, truths: tuple[ScanTruth, ...], scans: list[EvaluatedScan], bundle_uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Evaluation:  # fmt: skip
    """Of three scans one could not be read, on one both nodules are found, on one none; one false alarm."""
    monkeypatch.setattr(compare, "RESAMPLES", 60)
    malignant, benign = (nodule.center_xyz for nodule in truths[0].nodules)
    marks = [(mark(malignant, 0.9, 0.7), mark(benign, 0.8, 0.1)), (mark((500, 500, 500), 0.9, 0.9),)]
    files = [tmp_path / f"{scan.series_uid}.csv" for scan in scans]
    for file, scan, found in zip(files, scans, marks):
        write_findings(file, scan.series_uid, found)
    tree = Tree(
        name="few", chosen="all", truths=truths, origin="phantom", sides={}, trained_patients=frozenset()
    )  # fmt: skip
    judged = {"1.1": (0.7, 0.4), "1.2": (0.3, 0.5)}
    score = score_bundle.fn(tree, scans, files, judged, bundle_uri, pipeline_in(shared))
    return Evaluation(
        tree=tree,
        bundles=(score, score),
        differences=(compare.paired_differences(score.samples, score.samples),),
        seed=0,
        set_aside=("1.3",),
    )


def test_a_bundle_is_scored_with_the_scans_that_could_not_be_read(evaluation: Evaluation) -> None:
    score = evaluation.bundles[0]
    assert (score.score.table.scans, score.score.table.nodules, score.score.table.found) == (3, 6, 2)
    observed = {name: sampled.observed for name, sampled in score.samples.items()}
    assert (observed["found"], observed["false_positives"]) == (2, 1)
    assert observed["cpm"] == score.score.froc.cpm
    # Read at the annotated centres: malignant 0.7 and 0.3 against benign 0.4 and 0.5. By diameter all are in order.
    assert (observed["malignancy_auc"], observed["diameter_auc"]) == (0.5, 1.0)
    # End to end: malignant 0.7, 0, 0 against benign 0.1, 0, 0: 3 won and 4 tied of 9.
    assert observed["end_to_end_malignancy_auc"] == pytest.approx(5 / 9)
    assert score.over_diameter.difference == -0.5
    assert score.score.froc.band_low == ()  # the bands are those of the paired resamples


def test_an_evaluation_is_kept_as_json_and_a_row_for_every_bundle(
    evaluation: Evaluation, shared: Home, tmp_path: Path, bundle_uri: str
) -> None:
    file = log_evaluation.fn(evaluation, tmp_path / "out", pipeline_in(shared))
    assert file == tmp_path / "out" / "evaluation.json"
    said = json.loads(file.read_text())
    assert (said["data"], said["tree"], said["split"], said["scans"]) == ("synthetic scans", "few", "all", 3)
    assert (said["set_aside"], said["series_uids"]) == (["1.3"], UIDS)
    assert said["bundles"][0]["scores"]["malignancy_auc"]["observed"] == 0.5
    assert said["bundles"][0]["table"]["found"] == 2
    (difference,) = said["differences"]
    assert (difference["first"], difference["second"]) == (bundle_uri, bundle_uri)
    assert (difference["cpm"]["difference"], difference["cpm"]["p_value"]) == (0.0, 1.0)

    under_home = log_evaluation.fn(evaluation, None, pipeline_in(shared))
    assert under_home.is_relative_to(shared.reports / "evaluations")
    client = MlflowClient(tracking_uri=tracking.tracking_uri(shared))
    experiment = client.get_experiment_by_name("luna-end-to-end")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 4
    assert {run.info.run_name for run in runs} == {"luna-1 on few all"}
    low, high = evaluation.bundles[0].samples["cpm"].band
    metrics = runs[0].data.metrics
    assert (metrics["all/malignancy_auc"], metrics["all/diameter_auc"]) == (0.5, 1.0)
    assert (metrics["all/cpm_low"], metrics["all/cpm_high"]) == (low, high)
    assert runs[0].data.params["bundle"] == bundle_uri
