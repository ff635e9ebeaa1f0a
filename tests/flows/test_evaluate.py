"""Two bundles of random weights on three tiny drawn scans: compared, kept as JSON, and found again without work."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from prefect.testing.utilities import prefect_test_harness
from rich.console import Console
from typer.testing import CliRunner

from flows import cli_evaluate
from flows.evaluate import evaluate_bundles
from flows.show_scores import show_evaluation
from lungml import findings as finding
from lungml.candidates import GroupingSettings
from lungml.data_folders import DataFolders, remember_folders
from lungml.home import Home
from lungml.luna import read_luna
from lungml.marked import Marked
from lungml.models.nodule_net import NoduleNet
from lungml.models.unet import UNet
from lungml.phantom import PhantomSettings, write_phantoms
from tasks import registry, tracking
from tasks.bundles import stage_example
from tasks.comparison import Evaluation, EvaluationError

SCANS = 3


@pytest.fixture(scope="module")
def luna_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trees") / "fresh"
    settings = PhantomSettings(size_irc=(40, 96, 96), nodules=(3, 4), malignant_share=0.5, negatives_per_nodule=6)
    write_phantoms(folder, scans=SCANS, seed=5, settings=settings, workers=1)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    home = Home(tmp_path_factory.mktemp("artifacts"))

    def segment(hu: np.ndarray, models: Any, **_: Any) -> Marked:
        """What random weights would mark is everything; here it is two boxes and no more."""
        mask = np.zeros(hu.shape, dtype=bool)
        mask[12:15, 40:43, 30:33] = mask[20:23, 50:53, 60:63] = True
        return Marked.of_mask(mask)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUNA_HOME", str(home.root))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(finding, "segment", segment)
        with prefect_test_harness(server_startup_timeout=180):
            yield home


@pytest.fixture(scope="module")
def bundles(home: Home) -> list[str]:
    """Two that differ in the malignancy model alone."""

    def log(stage: str, model: Any) -> str:
        with tracking.open_run(home, stage, name="tiny") as run:
            arch = {"stage": stage, "config": asdict(model.config)}
            return tracking.log_model(run, model, arch=arch, example=stage_example(model), name="tiny")

    def net(seed: int) -> NoduleNet:
        model = NoduleNet(generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            model.head.weight.mul_(1e-4)  # as drawn, every answer to a crop is 0 or 1
        return model

    fields = {
        "segmentation": log("segmentation", UNet(generator=torch.Generator().manual_seed(1))),
        "nodule": log("classification", net(2)),
        "grouping": asdict(GroupingSettings(rule="report")),
        "nodule_threshold": 0.5,
        "malignant_threshold": 0.5,
        "recipe": "tiny",
        "origin": "phantom",
    }
    return [registry.register_bundle(home, {**fields, "malignancy": log("malignancy", net(seed))}) for seed in (3, 4)]


@pytest.fixture(scope="module")
def first(home: Home, bundles: list[str], luna_dir: Path) -> tuple[Evaluation, Path]:
    return evaluate_bundles(bundles, str(luna_dir), device="cpu")


def test_two_bundles_are_scored_and_compared(
    first: tuple[Evaluation, Path], home: Home, bundles: list[str], luna_dir: Path
) -> None:
    evaluation, file = first
    nodules = len(read_luna(luna_dir).nodules)
    assert [judged.bundle.name for judged in evaluation.bundles] == bundles
    assert [judged.score.table.nodules for judged in evaluation.bundles] == [nodules] * 2
    assert {judged.score.card.funnel.candidates for judged in evaluation.bundles} == {2}
    (differences,) = evaluation.differences
    # The same segmenter and nodule classifier: what is found is the same, what is thought of it is not.
    assert (differences["cpm"].difference, differences["cpm"].p_value) == (0.0, 1.0)
    assert differences["malignancy_auc"].first == evaluation.bundles[0].score.card.samples["malignancy_auc"].observed
    assert differences["malignancy_auc"].first != differences["malignancy_auc"].second
    assert differences["diameter_auc"].band == (0.0, 0.0)
    said = json.loads(file.read_text())
    assert (said["data"], said["tree"], said["scans"]) == ("synthetic scans", evaluation.tree.name, SCANS)
    assert "fresh" not in file.read_text()  # no folder is named
    assert file.is_relative_to(home.reports / "evaluations")


def test_each_page_says_what_limits_its_bundle_and_the_file_all_of_it(
    first: tuple[Evaluation, Path], bundles: list[str], luna_dir: Path
) -> None:
    _, file = first
    notes = json.loads(file.read_text())["notes"]
    assert any("which scans models:/luna/2 learned from" in note for note in notes)
    assert str(luna_dir.parent) not in " ".join(notes)
    pages = [(file.parent / bundle.removeprefix("models:/").replace("/", "-") / "report.md") for bundle in bundles]
    texts = [page.read_text(encoding="utf-8").replace("\\", "") for page in pages]
    limits = [text.split("## Limits")[1].split("\n## ")[0] for text in texts]
    of_second = [note for note in notes if bundles[1] in note]
    assert [note for note in notes if f"- {note}\n" not in limits[0]] == of_second
    assert all(f"- {note}\n" in limits[1] for note in notes)  # it stands beside the first
    assert "- learned from: synthetic scans" in pages[0].read_text(encoding="utf-8")


def test_scans_to_be_judged_on_get_stores_and_nothing_that_trains(first: tuple[Evaluation, Path], home: Home) -> None:
    assert len(list(home.scans.glob("*.zarr"))) == SCANS
    assert not home.split_csv.exists()
    assert not home.crops.exists()
    assert list(home.scans.glob("*.zarr/mask*")) == []


def test_a_second_evaluation_finds_nothing_anew(
    first: tuple[Evaluation, Path], home: Home, bundles: list[str], luna_dir: Path, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in home.reports.rglob("*.[cn][sp][vz]")}
    assert len(before) == 2 * 3 * SCANS  # findings.csv, answers.npz and annotated.npz of each
    _, file = evaluate_bundles(bundles, str(luna_dir), device="cpu", out=str(tmp_path / "out"))
    assert {path: path.stat().st_mtime_ns for path in home.reports.rglob("*.[cn][sp][vz]")} == before
    assert file == tmp_path / "out" / "evaluation.json"
    assert file.read_text() == first[1].read_text()


def test_the_terminal_shows_it_all(first: tuple[Evaluation, Path], capsys: pytest.CaptureFixture[str]) -> None:
    evaluation, file = first
    show_evaluation(evaluation, file, Console(width=100, highlight=False))
    told = capsys.readouterr().out
    assert told.count(f"({SCANS} {evaluation.tree.name}, all)") == 3  # two tables and their difference
    for words in ("CPM", "annotated diameter alone", "candidates a scan", "95 % band", str(file)):
        assert words in told
    (line,) = (line for line in told.splitlines() if line.strip().startswith("CPM") and "1.000" in line)
    assert "+0.000 to +0.000" in line


@pytest.fixture
def command(home: Home, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run `luna evaluate` in this process."""
    monkeypatch.setattr(cli_evaluate, "start", lambda: home)
    app = typer.Typer()
    app.command()(cli_evaluate.evaluate)
    return lambda *words: CliRunner().invoke(app, list(words))


def test_what_cannot_be_judged_is_said_before_anything_starts(
    command: Callable[..., Any], home: Home, bundles: list[str], luna_dir: Path
) -> None:
    tree = ("--luna-dir", str(luna_dir))
    series = sorted(read_luna(luna_dir).scans)
    home.split_csv.write_text(f"series_uid,split\n{series[0]},train\n{series[1]},val\n")
    try:
        refused = command(bundles[0], *tree)
        assert isinstance(refused.exception, EvaluationError)
        assert "learned from 1 of these 3 scans" in str(refused.exception)
        empty = command(bundles[0], *tree, "--split", "test")
        assert "none of its 3 scans is on the test side" in str(empty.exception)
        unknown = command("models:/luna/99", *tree, "--split", "validation")
        assert isinstance(unknown.exception, tracking.TrackingError)
        nowhere = command(bundles[0])
        assert "no scans were prepared here yet" in str(nowhere.exception)
        none = command(*tree, "--split", "val")
        assert "no bundle is @champion or @demo" in str(none.exception)
    finally:
        home.split_csv.unlink()


def test_loose_models_are_judged_on_the_homes_validation_scans_and_told_as_json(
    first: tuple[Evaluation, Path], command: Callable[..., Any], home: Home, bundles: list[str], luna_dir: Path
) -> None:
    series = sorted(read_luna(luna_dir).scans)
    home.split_csv.write_text(f"series_uid,split\n{series[0]},train\n{series[1]},val\n{series[2]},test\n")
    remember_folders(home, DataFolders(luna_dir=luna_dir))
    fields = registry.read_bundle(home, bundles[1])
    members = [f"--{stage}={fields[member]}" for member, stage in registry.BUNDLE_MEMBERS.items()]
    client = tracking.client_of(home)
    client.set_registered_model_alias("luna", "demo", "1")
    try:
        done = command(*members, "--grouping", "report", "--bundle", bundles[0], "--json", "--device", "cpu")
        alone = command("--json", "--device", "cpu", "--split", "test")
    finally:
        client.delete_registered_model_alias("luna", "demo")
        home.split_csv.unlink()
        home.data_json.unlink()
    assert done.exit_code == 0, done.exception
    said = json.loads(done.stdout)
    assert (said["split"], said["series_uids"]) == ("val", [series[1]])
    one, other = said["bundles"]
    assert (one["bundle"], one["recipe"], other["recipe"]) == (bundles[0], "tiny", "loose")
    assert f"{other['bundle']} is segmentation {fields['segmentation']}" in done.stderr
    assert (other["table"]["nodules"], other["funnel"]["candidates"]) == (one["table"]["nodules"], 2)
    assert said["differences"][0]["second"] == other["bundle"]
    said = json.loads(alone.stdout)
    assert (said["series_uids"], [judged["bundle"] for judged in said["bundles"]]) == ([series[2]], [bundles[0]])
    assert f"no bundle was named: {bundles[0]} is judged, which is @demo" in alone.stderr.replace("\n", " ")
