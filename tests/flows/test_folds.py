"""Cross-validation on twelve tiny drawn scans: everything but training and finding is done."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prefect.settings import get_current_settings
from prefect.testing.utilities import prefect_test_harness
from rich.console import Console

from flows import folds as fold_flow
from flows.folds import CrossValidation, cross_validate
from flows.show import show_folds
from lungml import scorecard
from lungml.annotated import Annotated, write_annotated
from lungml.answers import Answers, write_answers
from lungml.candidates import Candidates
from lungml.findings import Finding, write_findings
from lungml.folds import FoldError
from lungml.home import Home
from lungml.leaks import LeakError
from lungml.luna import read_luna
from lungml.marked import Marked
from lungml.phantom import PhantomSettings, write_phantoms
from lungml.recipes.data import PreparedScan
from lungml.segmentation_score import SegmentedNodule, SegmentedScan
from tasks import folds as fold_tasks
from tasks import tracking
from tasks.finding import FoundScan, NamedBundle

FOLDS = 3  # of ten subsets: 0, 3, 6, 9; 1, 4, 7; 2, 5, 8
FIELDS = {"grouping": {"rule": "report"}, "recipe": "demo", "origin": "phantom", "malignant_threshold": 0.5}

NOTHING = Answers(
    marked=Marked.of_mask(np.zeros((2, 2, 2), np.bool_)),
    candidates=Candidates(centers_irc=np.zeros((0, 3)), diameters_mm=np.zeros(0), scores=np.zeros(0)),
    prob_nodule=np.zeros(0),
    prob_malignant=np.zeros(0),
)


@dataclass(frozen=True)
class Stub:
    """Stands in for training: a bundle is a number, and what it was shown is kept."""

    shown: list[dict[str, str]] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def train(self, scans: Sequence[PreparedScan], recipe: Any, pipeline: Any) -> Any:
        self.shown.append({scan.series_uid: scan.split for scan in scans})
        return type("Trained", (), {"bundle_uri": f"models:/luna/{len(self.shown)}"})()

    def bundle(self, home: Home, uri: str) -> NamedBundle:
        model = f"models:/m-{uri.rpartition('/')[2]}"
        models = {"segmentation": model, "nodule": model, "malignancy": model}
        # Each fold has its own curve, and so its own threshold.
        threshold = [0.5, 0.9, 0.3][(int(uri.rpartition("/")[2]) - 1) % 3]
        return NamedBundle(name=uri, fields={**FIELDS, **models, "nodule_threshold": threshold})

    def saw(self, home: Home, uri: str) -> dict[str, str]:
        return self.shown[int(uri.rpartition("-")[2]) - 1]

    def find(self, scan: PreparedScan, bundle: NamedBundle, folder: Path) -> FoundScan:
        """Every nodule of the scan, surely, and nothing else."""
        self.asked.append((bundle.name, scan.series_uid))
        files = {name: folder / scan.series_uid / name for name in ("answers", "annotated", "findings")}
        found = FoundScan(series_uid=scan.series_uid, key="key", truth_key="key", **files)
        write_answers(found.answers, NOTHING, "key")
        marks = [
            Finding(center_irc=(0, 0, 0), center_xyz=n.center_xyz, prob_nodule=0.9, prob_malignant=0.9, stage="benign")
            for n in scan.nodules
        ]
        write_findings(found.findings, scan.series_uid, tuple(marks))
        nodules = tuple(SegmentedNodule(touched=True, dice=1.0) for _ in marks)
        segmented = SegmentedScan(voxels=1, flagged=1, tp=1, fp=0, fn=0, slices=1, nodules=nodules)
        write_annotated(found.annotated, Annotated(prob_malignant=np.full(len(marks), 0.9), segmented=segmented), "key")
        return found


@pytest.fixture(scope="module")
def luna_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("luna16")
    settings = PhantomSettings(size_irc=(32, 64, 64), nodules=(3, 4), malignant_share=0.5, negatives_per_nodule=3)
    write_phantoms(folder, scans=12, seed=3, settings=settings, workers=1)
    return folder


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stub]:
    home, stub = Home(tmp_path_factory.mktemp("artifacts")), Stub()

    class Find:
        @staticmethod
        def map(scans: Sequence[PreparedScan], bundle: Any, pipeline: Any) -> list[FoundScan]:
            return [stub.find(scan, bundle.value, home.root / "found") for scan in scans]

    def fewer(*arguments: Any, **settings: Any) -> scorecard.Scorecard:
        return scorecard.score_scans(*arguments, **settings, resamples=20, bootstraps=20)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUNA_HOME", str(home.root))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(fold_flow, "train", stub.train)
        patch.setattr(fold_flow, "find_nodules", Find)
        patch.setattr(fold_flow, "gather", lambda found, doing: found)
        patch.setattr(NamedBundle, "of", stub.bundle)
        patch.setattr(tracking, "model_scans", stub.saw)
        patch.setattr(fold_tasks, "score_scans", fewer)
        with prefect_test_harness(server_startup_timeout=180):
            yield stub


@pytest.fixture(scope="module")
def first(stub: Stub, luna_dir: Path) -> CrossValidation:
    return cross_validate(str(luna_dir), folds=FOLDS, recipe="demo")


def states() -> dict[str, Counter[str]]:
    """How many runs of each task ended in which state."""
    api = get_current_settings().api.url
    runs = httpx.post(f"{api}/task_runs/filter", json={}).raise_for_status().json()
    counts: dict[str, Counter[str]] = {}
    for run in runs:
        task = run["task_key"].rsplit("-", 1)[0].rsplit(".", 1)[-1]
        counts.setdefault(task, Counter())[run["state_name"]] += 1
    return counts


def test_every_scan_is_tested_once_by_models_that_never_saw_it(
    first: CrossValidation, stub: Stub, luna_dir: Path
) -> None:
    data = read_luna(luna_dir)
    assert (first.chosen, first.folds.words, first.origin) == ((0, 1, 2), "LUNA16's own subsets modulo 3", "phantom")
    assert sorted(uid for _, uid in stub.asked) == list(data.series_uids)
    for name, uid in stub.asked:
        assert stub.saw(Home.from_env(), name.replace("luna/", "m-"))[uid] == "test"
    for shown in stub.shown:
        assert shown.keys() == set(data.series_uids)
    tested = [{uid for uid, side in shown.items() if side == "test"} for shown in stub.shown]
    chose = [{uid for uid, side in shown.items() if side == "val"} for shown in stub.shown]
    assert chose == [tested[1], tested[2], tested[0]]
    score = first.score
    assert score.card.series_uids == data.series_uids
    assert (score.table.nodules, score.table.found, score.froc.cpm) == (len(data.nodules), len(data.nodules), 1.0)
    # The textures that were drawn came all the way.
    assert sum(group.nodules for group in score.card.by_texture) == len(data.nodules)


def test_the_homes_split_is_not_touched_and_scans_are_converted_once(first: CrossValidation, luna_dir: Path) -> None:
    home, scans = Home.from_env(), len(read_luna(luna_dir).scans)
    assert not home.split_csv.exists()
    counts = states()
    assert counts["convert_scan"] == {"Completed": scans, "Cached": 2 * scans}
    assert counts["build_mask"] == {"Completed": scans, "Cached": 2 * scans}
    # Twice each: as it trains, and as it is held back; nothing is cut for a fold alone.
    assert counts["cache_crops"] == {"Completed": 2 * scans, "Cached": scans}


def test_a_report_tells_of_all_folds_together(first: CrossValidation) -> None:
    assert first.report.folder.parent == Home.from_env().reports / "evaluations"
    assert first.report.page.is_file()
    assert first.report.markdown.startswith("# cross-validation on synthetic scans ")
    assert ", all 3 folds" in first.report.markdown
    assert [f"models:/m-{number}" in first.report.markdown for number in (1, 2, 3)] == [True] * 3
    client = tracking.client_of(Home.from_env())
    kept = {file.path for file in client.list_artifacts(first.run_id, "folds")}
    assert kept >= {"folds/report.html", "folds/report.md", "folds/figures", "folds/scorecard.json", "folds/folds.json"}
    assert client.get_run(first.run_id).data.tags[tracking.RUN_NOTE].startswith("# cross-validation on")


def test_the_terminal_shows_each_folds_own_thresholds(first: CrossValidation) -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    show_folds(first, Home.from_env(), console)
    told = console.export_text()
    assert "each is judged at its own thresholds" in told
    assert "fold 1     models:/luna/2, nodule 0.9, malignant 0.5" in told
    assert f"report     {first.report.page}" in told.replace("\n", "")
    assert "Not for clinical use." in told


def test_some_folds_alone_say_which(first: CrossValidation, stub: Stub, luna_dir: Path) -> None:
    before = states()["cache_crops"]["Completed"]
    part = cross_validate(str(luna_dir), folds=FOLDS, only=[2], recipe="demo")
    assert part.chosen == (2,)
    assert part.score.card.series_uids == tuple(uid for uid, fold in first.folds.fold_of.items() if fold == 2)
    assert states()["cache_crops"]["Completed"] == before
    run = tracking.client_of(Home.from_env()).get_run(part.run_id)
    assert run.data.params["folds"] == "fold 2 of 3"


def test_a_model_that_saw_a_test_scan_ends_the_run(
    first: CrossValidation, stub: Stub, luna_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the model of another fold had been taken for this one's.
    monkeypatch.setattr(tracking, "model_scans", lambda home, uri: stub.shown[1])
    with pytest.raises(LeakError, match=r"(learned from|was chosen on) .*, which this fold (tests|validates)"):
        cross_validate(str(luna_dir), folds=FOLDS, only=[2], recipe="demo")


def test_folds_that_cannot_be_had_train_nothing(first: CrossValidation, stub: Stub, luna_dir: Path) -> None:
    before = len(stub.shown)
    with pytest.raises(FoldError, match="there is no fold 3 of 3"):
        cross_validate(str(luna_dir), folds=FOLDS, only=[0, 3], recipe="demo")
    assert len(stub.shown) == before
