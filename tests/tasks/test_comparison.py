"""Trees to be judged on, what a bundle may not be judged on, and what is kept of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from lungml import compare
from lungml.candidates import GroupingSettings
from lungml.findings import Finding
from lungml.home import Home
from lungml.phantom import UID_ROOT
from lungml.scorecard import Evidence, SegmentedNodule, SegmentedScan, score_scans
from tasks import tracking
from tasks.comparison import (
    BundleScore,
    Evaluation,
    EvaluationError,
    Tree,
    check_unseen,
    evaluation_key,
    log_evaluation,
    read_tree,
    without_folders,
)
from tasks.contenders import LOOSE
from tasks.evaluation import SplitScore
from tasks.finding import NamedBundle
from tasks.pipeline import Pipeline
from tasks.truth import ScanTruth, data_name
from tests.tasks.toy_bundles import toy_fields, toy_model

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
    assert (tree.name, tree.words) == (data_name(UIDS, "real"), "real scans")  # no series of ours, and no folder
    assert data_name(UIDS[:2], "real") != tree.name == data_name(reversed(UIDS), "real")
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


def named(recipe: str = "demo", origin: str = "real") -> NamedBundle:
    """What a bundle says of itself."""
    members = {"segmentation": "models:/m-1", "nodule": ["models:/m-2", "models:/m-3"], "malignancy": "models:/m-4"}
    settings = {"grouping": asdict(GroupingSettings()), "nodule_threshold": 0.5, "malignant_threshold": 0.5}
    return NamedBundle(name="models:/luna/1", fields={"recipe": recipe, "origin": origin, **settings, **members})


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """What the runs of its models say that they learned from; those of an older version say nothing."""

    def say(**scans: dict[str, str]) -> None:
        names = {f"models:/m-{number}": scans.get(f"m{number}", {}) for number in range(1, 5)}
        monkeypatch.setattr(tracking, "model_scans", lambda _, uri: names[uri])

    say()
    return say


def test_a_bundle_is_not_judged_on_what_it_learned_from(luna_dir: Path, home: Home, told: Callable[..., None]) -> None:
    home.split_csv.write_text("series_uid,split\n1.1,train\n1.2,test\n1.3,val\n")
    _, tree = read_tree(luna_dir, None, "all", home)
    with pytest.raises(EvaluationError, match=r"models:/luna/1 learned from 1 of these 3.*such as 1\.1\)") as said:
        check_unseen(tree, named(), home)
    assert "\n" not in str(said.value)
    for chosen, words in (
        ("test", ["not known which scans"]),
        ("val", ["not known which scans", "1 of 1 scans helped to choose"]),
        ("train", ["no measure of new ones"]),
    ):
        _, part = read_tree(luna_dir, None, chosen, home)  # type: ignore[arg-type]
        notes = check_unseen(part, named(), home)
        assert len(notes) == len(words)
        assert all(word in note for word, note in zip(words, notes))


def test_what_any_model_says_that_it_learned_from_counts_in_any_home(
    luna_dir: Path, home: Home, told: Callable[..., None]
) -> None:
    _, tree = read_tree(luna_dir, None, "all", home)  # this home's split.csv knows none of them
    told(m3={"1.2": "train", "1.3": "val"})
    with pytest.raises(EvaluationError, match=r"learned from 1 of these 3 scans.*such as 1\.2"):
        check_unseen(tree, named(), home)


def test_a_scan_of_a_patient_it_learned_from_is_refused_too(
    luna_dir: Path, home: Home, told: Callable[..., None]
) -> None:
    _, tree = read_tree(luna_dir, None, "all", home)
    told(**{f"m{number}": {"9.9": "train", "9.8": "val"} for number in range(1, 5)})
    assert check_unseen(tree, named(), home) == ()
    # Where the home keeps them apart no more than the models did: by the scans that they name.
    home.split_csv.write_text("series_uid,split,patient\n9.9,test,p-7\n1.3,test,p-7\n9.8,train,p-8\n1.2,train,p-8\n")
    with pytest.raises(EvaluationError, match=r"learned from 1 of .* or from their patients \(such as 1\.3"):
        check_unseen(tree, named(), home)
    _, part = read_tree(luna_dir, None, "train", home)
    assert check_unseen(part, named(), home) == (f"1 of 1 scans helped to choose {named().name}: they flatter it",)
    # Or where the tree's own table knows the patients.
    home.split_csv.unlink()
    (luna_dir / "patients.csv").write_text("series_uid,patient\n1.1,Doe\n1.2,Roe\n1.3,Doe\n")
    _, tree = read_tree(luna_dir, None, "all", home)
    told(m1={"1.1": "train"}, m2={"9.9": "train"}, m3={"9.9": "train"}, m4={"9.9": "train"})
    with pytest.raises(EvaluationError, match=r"learned from 1 of these 1 .* \(such as 1\.3"):
        check_unseen(replace(tree, truths=tree.truths[2:]), named(), home)
    assert check_unseen(replace(tree, truths=tree.truths[1:2]), named(), home) == ()


def test_what_a_model_started_from_learned_from_counts_too(luna_dir: Path, home: Home) -> None:
    parent = toy_model(home, "classification", scans={"1.2": "train"})
    fields = toy_fields(home, malignancy=toy_model(home, "malignancy", parent=parent))
    _, tree = read_tree(luna_dir, None, "all", home)
    with pytest.raises(EvaluationError, match=r"learned from 1 of these 3 scans.*such as 1\.2"):
        check_unseen(tree, NamedBundle(name="it", fields=fields), home)


def test_scans_helped_to_choose_a_bundle_when_its_models_say_so(
    luna_dir: Path, home: Home, told: Callable[..., None]
) -> None:
    home.split_csv.write_text("series_uid,split\n1.1,val\n1.2,test\n1.3,test\n")  # what was not theirs
    told(**{f"m{number}": {"1.2": "val"} for number in range(1, 4)}, m4={"1.3": "val"})
    _, tree = read_tree(luna_dir, None, "all", home)
    (note,) = check_unseen(tree, named(), home)
    assert note == "2 of 3 scans helped to choose models:/luna/1: they flatter it"


def test_scans_of_another_kind_are_told_of(luna_dir: Path, home: Home, told: Callable[..., None]) -> None:
    drawn = f"{UID_ROOT}.1.1{'0' * 24}0001"
    home.split_csv.write_text(f"series_uid,split\n{drawn},train\n")
    _, real = read_tree(luna_dir, None, "all", home)
    synthetic = replace(
        real, truths=(replace(real.truths[0], series_uid=drawn),), origin="phantom", sides={drawn: "train"}
    )
    told(**{f"m{number}": {"9.9": "train"} for number in range(1, 5)})
    (note,) = check_unseen(real, named(origin="phantom"), home)
    assert note == "models:/luna/1 is made for synthetic scans, and is judged on real scans"
    (note,) = check_unseen(synthetic, named(origin="real"), home)
    assert note == "models:/luna/1 is made for real scans, and is judged on synthetic scans"
    assert check_unseen(synthetic, named(origin="phantom"), home) == check_unseen(real, named(), home) == ()
    # A bundle of real scans whose models say nothing learned from none that were drawn here; one of synthetic ones may.
    told()
    for recipe in ("demo", "published"):
        assert len(check_unseen(synthetic, named(recipe=recipe, origin="real"), home)) == 1
    with pytest.raises(EvaluationError, match="learned from 1 of these 1 scans"):
        check_unseen(synthetic, named(origin="phantom"), home)


def test_of_weights_from_elsewhere_nothing_is_known(luna_dir: Path, home: Home, told: Callable[..., None]) -> None:
    home.split_csv.write_text("series_uid,split\n1.1,train\n1.3,val\n")
    _, tree = read_tree(luna_dir, None, "all", home)
    (note,) = check_unseen(tree, named(recipe="published"), home)
    assert "not known which scans models:/luna/1 learned from" in note


def test_of_loose_models_each_one_counts(luna_dir: Path, home: Home, told: Callable[..., None]) -> None:
    home.split_csv.write_text("series_uid,split\n1.1,train\n1.3,val\n")
    loose = named(recipe=LOOSE)
    _, every = read_tree(luna_dir, None, "all", home)
    _, val = read_tree(luna_dir, None, "val", home)
    # None of them says anything: what trains here may have been what they learned from.
    with pytest.raises(EvaluationError, match="learned from 1 of these 3"):
        check_unseen(every, loose, home)
    unknown, chose = check_unseen(val, loose, home)
    assert ("not known which scans" in unknown, "1 of 1 scans helped" in chose) == (True, True)
    told(**{f"m{number}": {"9.9": "train"} for number in range(1, 5)})
    assert check_unseen(every, loose, home) == ()  # they say that they learned from others
    told(m1={"9.9": "train"}, m2={"1.2": "train"}, m3={"9.9": "train"}, m4={"9.9": "train"})
    with pytest.raises(EvaluationError, match=r"such as 1\.2"):
        check_unseen(every, loose, home)


def test_what_is_said_aloud_leaves_the_machine_without_folders(luna_dir: Path, home: Home, tmp_path: Path) -> None:
    notes, _ = read_tree(luna_dir, None, "all", home)
    shown = without_folders((*notes, *notes[:2]), luna_dir, None)
    assert len(shown) == len(notes)  # each once
    assert any(note.startswith("annotations.csv is missing") for note in shown)
    assert str(tmp_path) not in " ".join(shown)
    # Through a link as well, and of two folders the inner one first.
    link = tmp_path / "link"
    link.symlink_to(luna_dir)
    said = (f"{luna_dir}/tables/a.csv is missing", f"{link}/b.mhd: damaged", "models:/luna/1 learned from them")
    assert without_folders(said, link, luna_dir / "tables") == (
        "a.csv is missing", "b.mhd: damaged", "models:/luna/1 learned from them",
    )  # fmt: skip


# log_evaluation


@pytest.fixture
def judged(toy: Callable[..., ScanTruth], tmp_path: Path) -> Evaluation:
    """Of three scans one could not be read, on one both nodules are found, on one none; one false alarm."""
    truths = tuple(toy(tmp_path / "luna16", uid, number=number) for number, uid in enumerate(UIDS))
    malignant, benign = (nodule.center_xyz for nodule in truths[0].nodules)
    found = [(mark(malignant, 0.9, 0.7), mark(benign, 0.8, 0.1)), (mark((500, 500, 500), 0.9, 0.9),), None]
    untouched = tuple(SegmentedNodule(touched=False, dice=0.0) for _ in range(2))
    segmented = SegmentedScan(voxels=100, flagged=9, tp=4, fp=5, fn=6, slices=3, nodules=untouched)
    evidence = [
        Evidence(
            series_uid=truth.series_uid,
            nodules=truth.nodules,
            excluded=truth.excluded,
            findings=findings,
            segmented=None if findings is None else segmented,
            prob_malignant=None if findings is None else (0.7, 0.4) if truth.series_uid == "1.1" else (0.3, 0.5),
        )
        for truth, findings in zip(truths, found)
    ]
    card = score_scans(
        evidence, nodule_threshold=0.5, malignant_threshold=0.5, seed=0, resamples=60, bootstraps=20
    )  # fmt: skip
    score = BundleScore(bundle=named(recipe="toy"), score=SplitScore(split="all", card=card))
    tree = Tree(
        name="few", chosen="all", truths=truths, origin="phantom", sides={}, patients={}
    )  # fmt: skip
    difference = compare.paired_differences(card.samples, card.samples)
    return Evaluation(
        tree=tree,
        bundles=(score, score),
        differences=(difference,),
        seed=0,
        set_aside=("1.3",),
        notes=("nothing is known of it",),
    )


def mark(center_xyz: tuple[float, float, float], prob_nodule: float, prob_malignant: float) -> Finding:
    return Finding(
        center_irc=(0, 0, 0),
        center_xyz=center_xyz,
        prob_nodule=prob_nodule,
        prob_malignant=prob_malignant,
        stage="benign",
    )


def test_an_evaluation_is_kept_as_json_and_a_row_for_every_bundle(
    judged: Evaluation, home: Home, tmp_path: Path
) -> None:
    file = log_evaluation.fn(judged, tmp_path / "out", pipeline_in(home))
    assert file == tmp_path / "out" / "evaluation.json"
    said = json.loads(file.read_text())
    assert (said["data"], said["tree"], said["split"], said["scans"]) == ("synthetic scans", "few", "all", 3)
    assert (said["set_aside"], said["series_uids"]) == (["1.3"], UIDS)
    assert said["notes"] == ["nothing is known of it"]
    assert "not corrected for how many" in said["p_value"]
    assert (said["bundles"][0]["bundle"], said["bundles"][0]["recipe"]) == ("models:/luna/1", "toy")
    assert (said["bundles"][0]["table"]["nodules"], said["bundles"][0]["table"]["found"]) == (6, 2)
    (difference,) = said["differences"]
    assert (difference["first"], difference["second"]) == ("models:/luna/1", "models:/luna/1")
    assert (difference["cpm"]["difference"], difference["cpm"]["p_value"]) == (0.0, 1.0)

    client = MlflowClient(tracking_uri=tracking.tracking_uri(home))
    experiment = client.get_experiment_by_name("luna-end-to-end")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 2
    assert {run.info.run_name for run in runs} == {"luna-1 on few all"}
    metrics = runs[0].data.metrics
    # Read at the annotated centres: malignant 0.7 and 0.3 against benign 0.4 and 0.5. By diameter all are in order.
    assert (metrics["all/malignancy_auc"], metrics["all/diameter_auc"]) == (0.5, 1.0)
    assert (metrics["all/found"], metrics["all/lost_to_quarantine"]) == (2, 2)
    assert runs[0].data.params["bundle"] == "models:/luna/1"
    assert runs[0].data.params["nodule"] == "['models:/m-2', 'models:/m-3']"


def test_the_same_bundles_on_the_same_scans_are_the_same_evaluation(judged: Evaluation) -> None:
    bundles = [score.bundle for score in judged.bundles]
    key = evaluation_key(judged.tree, bundles, 0)
    renamed = [replace(bundle, name="models:/luna/7") for bundle in bundles]
    assert evaluation_key(replace(judged.tree, name="elsewhere"), renamed, 0) == key
    fewer = replace(judged.tree, truths=judged.tree.truths[:2])
    moved = [bundles[0], replace(bundles[1], fields={**bundles[1].fields, "nodule_threshold": 0.25})]
    others = [
        evaluation_key(fewer, bundles, 0),
        evaluation_key(judged.tree, moved, 0),
        evaluation_key(judged.tree, bundles, 1),
    ]
    assert len({key, *others}) == 4
