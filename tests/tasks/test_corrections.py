"""A correction changes what is learned from its own training scan, and nothing else at all."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from lungml import crop_cache, groups, store
from lungml.candidates import GroupingSettings
from lungml.crop_cache import IGNORED
from lungml.data_folders import DataFolders
from lungml.devices import Hardware
from lungml.frozen_split import SplitError
from lungml.geometry import Grid, irc_to_xyz
from lungml.groups import StoreError
from lungml.home import Home
from lungml.job import TrainingJob, read_result, run_job, write_job
from lungml.luna import Annotation, Excluded, LunaData, Nodule
from lungml.marked import Marked
from lungml.reading.corrections import CorrectionStoreError, Undo, Version, corrections_folder, read_versions
from lungml.recipes.classification import classification_problem, demo
from lungml.recipes.data import PreparedScan, Stage, data_read
from lungml.recipes.malignancy import demo_finetuned, demo_scratch, malignancy_problem
from lungml.recipes.segmentation import SegmentationProblem
from lungml.recipes.segmentation import demo as unet_demo
from lungml.sampling import NegativePlan
from tasks import corrections, tracking, training
from tasks.corrections import add_files, correct_truths, list_corrections, metrics_of, undo, used_corrections, words_of
from tasks.data import build_mask, cache_crops, convert_scan, mask_key
from tasks.evaluation import log_end_to_end
from tasks.fitting import Training
from tasks.pipeline import Pipeline
from tasks.recorded import sizes_of
from tasks.summary_pages import summary_page
from tasks.training import mine_candidates
from tasks.truth import ScanTruth
from tests.lungml.reading.test_correction_schema import file, row
from tests.tasks.conftest import BENIGN_IRC, MALIGNANT_IRC, NEGATIVES_IRC, at
from tests.tasks.outcomes import done

Toy = Callable[..., ScanTruth]
SPLITS = {"1.1": "train", "1.2": "train", "1.3": "val", "1.4": "test"}
UID = "1.1"
NOWHERE_IRC = (12, 36, 14)
ADDED = row(kind="add", finding=None, center_xyz=list(at(NOWHERE_IRC)), diameter_mm=8)
ADDED_BENIGN = {**ADDED, "label": "benign"}
REJECTED = row(kind="reject", center_xyz=list(at(NOWHERE_IRC)), diameter_mm=4)
RELABELLED = row(kind="relabel", center_xyz=list(at(BENIGN_IRC)), diameter_mm=6, label="malignant")
TABLES_REJECTED = row(kind="reject", center_xyz=list(at(BENIGN_IRC)), diameter_mm=6)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles 3 and 7 are registered in every home."""

    def resolve(home: Home, uri: str) -> str:
        if uri not in ("models:/luna/3", "models:/luna/7"):
            raise tracking.TrackingError(f"{uri}: no such bundle; see `luna model list`")
        return uri

    monkeypatch.setattr(corrections.promotion, "resolve", resolve)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Four scans with a split."""
    home = Home(tmp_path / "artifacts")
    home.root.mkdir()
    lines = ["series_uid,split", *(f"{uid},{split}" for uid, split in SPLITS.items())]
    home.split_csv.write_text("\n".join(lines) + "\n")
    return home


@pytest.fixture
def truths(tmp_path: Path, toy: Toy) -> list[ScanTruth]:
    return [toy(tmp_path / "luna16", uid, split, number) for number, (uid, split) in enumerate(SPLITS.items())]


def write(folder: Path, *rows: Mapping[str, Any], uid: str = UID, reader: str = "r", name: str = "c.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(file(*rows, series_uid=uid, reader=reader)))
    return path


def kept(home: Home, folder: Path, *rows: Mapping[str, Any], uid: str = UID, reader: str = "r") -> tuple[Version, ...]:
    """All versions, these rows the last."""
    (added,) = add_files(home, [write(folder, *rows, uid=uid, reader=reader)])
    assert not added.problem
    return read_versions(corrections_folder(home))


# add_files, list_corrections


def test_a_bad_file_costs_only_itself(tmp_path: Path, home: Home, truths: list[ScanTruth]) -> None:
    done(convert_scan.fn(truths[0], home))
    paths = [
        write(tmp_path, ADDED, name="good.json"),
        write(tmp_path, ADDED, uid="9.9", name="series.json"),
        write(tmp_path, ADDED, row(center_xyz=[1, 2, 900]), name="outside.json"),
        write(tmp_path, {**ADDED, "bundle": "models:/luna/4"}, name="bundle.json"),
        tmp_path / "none.json",
        tmp_path,
        write(tmp_path, {**ADDED, "kind": "x"}, name="kind.json"),
        write(tmp_path, {**REJECTED, "bundle": "models:/luna/7"}, name="second.json"),
        write(tmp_path, ADDED, name="again.json"),
    ]
    added = add_files(home, paths)
    problems = [one.problem for one in added]
    assert [bool(problem) for problem in problems] == [False, True, True, True, True, True, True, False, False]
    assert problems[1].startswith("9.9 is no series of ")
    assert problems[2] == "correction 2: (1, 2, 900) mm lies outside the scan"
    assert "models:/luna/4: no such bundle" in problems[3]
    assert (problems[4], problems[5]) == ("No such file or directory", "Is a directory")
    assert 'kind is "x"' in problems[6]
    assert [(one.version.number, one.new) for one in added if one.version] == [(1, True), (2, True), (1, False)]
    assert len(read_versions(corrections_folder(home))) == 2
    undo(home, Undo(version=1))
    (again,) = add_files(home, [paths[0]])
    assert (again.new, again.undone_by) == (False, 3)


def test_what_is_exported_in_the_future_is_refused(tmp_path: Path, home: Home) -> None:
    path, now = tmp_path / "c.json", datetime.now(UTC)
    for ahead, refused in ((timedelta(hours=1), False), (timedelta(days=2), True)):
        path.write_text(json.dumps(file(series_uid=UID, exported=f"{now + ahead:%Y-%m-%dT%H:%M:%SZ}")))
        (added,) = add_files(home, [path])
        assert ("which is still to come" in added.problem) == refused


def test_it_is_said_which_export_of_a_page_stands(tmp_path: Path, home: Home) -> None:
    paths = []
    for day, rows in ((2, []), (1, [ADDED]), (3, [])):
        paths.append(tmp_path / f"{day}.json")
        held = file(*rows, series_uid=UID, exported=f"2026-02-0{day}T00:00:00Z", reading="2026-02-01T00:00:00Z")
        paths[-1].write_text(json.dumps(held))
    notes = [one.note.partition("; ")[2] for one in add_files(home, paths[:2])]
    assert notes == [
        "version 2, exported earlier from the same page, is replaced by it",
        "version 1, exported later from the same page, stands instead of it",
    ]
    (last,) = add_files(home, paths[2:])
    assert (last.new, last.version and last.version.number) == (False, 1)  # it says what was said last
    rows_, _ = list_corrections(home)
    assert [row.outcome for row in rows_] == ["an empty file, kept", "superseded by version 1"]


def test_many_files_read_what_is_kept_a_few_times_only(
    tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, asked = list[str](), list[str]()

    def counted(path: Path, *arguments: Any, **keywords: Any) -> str:
        read.append(path.name)
        return text_of(path, *arguments, **keywords)

    text_of = Path.read_text
    monkeypatch.setattr(Path, "read_text", counted)
    monkeypatch.setattr(corrections.promotion, "resolve", lambda _, uri: asked.append(uri))
    add_files(home, [write(tmp_path, ADDED, reader=f"r{n}", name=f"{n}.json") for n in range(20)])
    assert len(read_versions(corrections_folder(home))) == 20
    assert max(Counter(read).values()) <= 4  # each version by its successor, and the list of all three times
    assert asked == ["models:/luna/3"]


def test_the_list_leaves_out_whom_no_run_learns_from(
    tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two series of one patient, one of which tests: `read_truths` leaves the other out."""
    scans = dict.fromkeys(SPLITS, tmp_path)
    mark = "0" * 16
    data = LunaData(series_uids=tuple(SPLITS), scans=scans, patients={"1.1": mark, "1.4": mark}, negatives={},
                    nodules=(), excluded=(), annotated=(), notes=())  # fmt: skip
    monkeypatch.setattr(corrections, "known_folders", lambda _: DataFolders(luna_dir=tmp_path, tables_dir=None))
    monkeypatch.setattr(corrections.luna, "read_luna", lambda *_: data)
    kept(home, tmp_path, ADDED)
    kept(home, tmp_path, ADDED, uid="1.2")
    assert [row.outcome for row in list_corrections(home)[0]] == [
        "kept, not trained on (no run learns from its scan here)", "used as positive, malignancy unknown",
    ]  # fmt: skip


def test_the_point_is_not_checked_where_the_scan_is_not_prepared(tmp_path: Path, home: Home) -> None:
    (added,) = add_files(home, [write(tmp_path, row(center_xyz=[1, 2, 900]))], reader="other")
    assert "was not checked" in added.note
    assert added.version
    assert added.version.file
    assert added.version.file.reader == "other"


def test_the_list_says_what_becomes_of_each(tmp_path: Path, home: Home) -> None:
    kept(home, tmp_path, ADDED, row(kind="note", text="behind the heart"))
    kept(home, tmp_path, REJECTED, uid="1.3", reader="s")
    undo(home, Undo(version=1, correction=1))
    kept(home, tmp_path)
    rows, note = list_corrections(home)
    assert "no scans were prepared here yet" in note  # so what the tables say is not known
    assert [(r.name, r.series_uid, r.split, r.reader, r.what, r.outcome) for r in rows] == [
        ("1.1", "1.1", "train", "r", "add 8 mm", "undone by version 3"),
        ("1.2", "1.1", "train", "r", "note 12", "a note, kept"),
        ("2.1", "1.3", "val", "s", "reject 12", "kept, not trained on (validation scan)"),
        ("3", "", "", "", "undoes 1.1", "stands"),
        ("4", "1.1", "train", "r", "nothing", "an empty file, kept"),
    ]
    assert rows[1].text == "behind the heart"
    assert rows[2].uses == ("held_out",)


def test_damage_is_told_before_anything_is_added(tmp_path: Path, home: Home) -> None:
    kept(home, tmp_path, ADDED)
    (corrections_folder(home) / "000001.json").write_text("{}")
    for attempt in (lambda: add_files(home, []), lambda: list_corrections(home)):
        with pytest.raises(CorrectionStoreError, match=r"000001.json: damaged"):
            attempt()


# correct_truths


def test_without_corrections_every_truth_is_the_very_same_object(home: Home, truths: list[ScanTruth]) -> None:
    same, resolved = correct_truths(truths, (), home)
    assert all(one is other for one, other in zip(same, truths, strict=True))
    assert metrics_of(used_corrections(resolved, SPLITS)) == {}
    assert words_of(used_corrections(resolved, SPLITS)) == ""


@pytest.mark.parametrize("uid", ["1.3", "1.4"])
def test_held_out_scans_stay_the_very_same_objects(
    tmp_path: Path, home: Home, truths: list[ScanTruth], uid: str
) -> None:
    split_csv = home.split_csv.read_bytes()
    versions = kept(home, tmp_path, ADDED, RELABELLED, TABLES_REJECTED, uid=uid)
    same, resolved = correct_truths(truths, versions, home)
    assert all(one is other for one, other in zip(same, truths, strict=True))
    assert home.split_csv.read_bytes() == split_csv
    assert used_corrections(resolved, SPLITS)["held_out"] == 2  # the rejection supersedes the label
    words = words_of(used_corrections(resolved, SPLITS))
    assert words.startswith("readers' corrections up to version 1: 0 used as positives, ")
    assert words.endswith("0 disputed, 2 kept of validation and test scans")


def test_truth_follows_the_reader(tmp_path: Path, home: Home, truths: list[ScanTruth]) -> None:
    textured = [replace(truths[0], textures=("solid", "nonsolid")), *truths[1:]]
    onto_negative = row(kind="add", finding=None, center_xyz=list(at(NEGATIVES_IRC[0])), diameter_mm=7, label="benign")
    versions = kept(home, tmp_path, ADDED, TABLES_REJECTED, onto_negative)
    (first, *others), resolved = correct_truths(textured, versions, home)
    assert all(one is other for one, other in zip(others, textured[1:], strict=True))
    malignant, benign = truths[0].nodules
    added = Nodule(series_uid=UID, center_xyz=at(NEGATIVES_IRC[0]), diameter_mm=7, malignant=False, ratings=())
    assert first.nodules == (malignant, added)
    assert first.textures == ("solid", "")
    assert first.unjudged == (Annotation(series_uid=UID, center_xyz=at(NOWHERE_IRC), diameter_mm=8),)
    gone = Excluded(series_uid=UID, center_xyz=benign.center_xyz, diameter_mm=6)
    assert first.excluded == (*truths[0].excluded, gone)
    assert first.negatives_xyz is not None
    assert truths[0].negatives_xyz is not None
    np.testing.assert_array_equal(first.negatives_xyz, truths[0].negatives_xyz[1:])  # it is a nodule now
    assert len(first.findings_xyz) == len(truths[0].findings_xyz) + 3
    assert used_corrections(resolved, SPLITS) == {
        "version": 1, "positives": 2, "negatives": 0, "labels": 1, "disputed": 1, "held_out": 0,
    }  # fmt: skip
    assert used_corrections(resolved, [])["positives"] == 0  # set aside: nobody learned from it


def test_there_are_nodules_enough_once_the_corrections_are_applied(
    tmp_path: Path, home: Home, truths: list[ScanTruth]
) -> None:
    none_benign = [replace(one, nodules=one.nodules[:1]) if one.split == "train" else one for one in truths]
    advice = "; add scans$"
    with pytest.raises(SplitError, match=f"^the 2 train scans on disk hold no benign nodule.*{advice}"):
        correct_truths(none_benign, (), home, for_training=True)
    correct_truths(none_benign, kept(home, tmp_path, ADDED_BENIGN), home, for_training=True)  # a reader found one
    # What the tables have and a reader took counts for nothing.
    one_benign = [replace(one, nodules=one.nodules[:1]) if one.series_uid == "1.2" else one for one in truths]
    correct_truths(one_benign, (), home, for_training=True)
    undo(home, Undo(version=1))
    versions = kept(home, tmp_path, TABLES_REJECTED)
    with pytest.raises(SplitError, match=r"hold no benign nodule.*; add scans, or see luna corrections list"):
        correct_truths(one_benign, versions, home, for_training=True)


# masks and crops


def prepared(home: Home, truths: list[ScanTruth], **settings: Any) -> dict[str, PreparedScan]:
    """Every scan through the tasks of `prepare`."""
    chosen = {
        "recipe_name": "toy", "rule": "bounded", "negatives": NegativePlan(kind="per_epoch", per_scan=1, epochs=2),
        "negative_slabs_per_scan": 1, "seed": 0, **settings,
    }  # fmt: skip
    scans = {}
    for truth in truths:
        stored = convert_scan.fn(truth, home)
        stored = stored if not hasattr(stored, "result") else stored.result()
        masked = build_mask.fn(stored, chosen["rule"])
        masked = masked if not hasattr(masked, "result") else masked.result()
        cut = cache_crops.fn(masked, home, **chosen)
        scans[truth.series_uid] = cut if not hasattr(cut, "result") else cut.result()
    return scans


def content(home: Home) -> dict[str, str]:
    """Every file of stores and crops: the digest of its bytes."""
    return {
        str(path.relative_to(home.root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in (home.scans, home.crops)
        for path in Path(str(folder)).rglob("*")
        if path.is_file()
    }


def labels_of(scan: PreparedScan, name: str = "labels") -> list[int]:
    return groups.map_array(scan.crops, name).tolist()


@pytest.mark.parametrize(
    ("correction", "mask_changes", "labels", "slabs"),
    [
        (ADDED, True, [2, 1, 3, 0, 0], [2, 1, 3, 0]),
        (ADDED_BENIGN, True, [2, 1, 1, 0, 0], [2, 1, 1, 0]),
        (REJECTED, False, [2, 1, 4, 0, 0], [2, 1, 4, 0]),
        (RELABELLED, False, [2, 2, 0, 0], [2, 2, 0]),
        (TABLES_REJECTED, True, [2, 0, 0], [2, 0]),
    ],
)
def test_a_correction_changes_its_own_scan_and_nothing_else(
    tmp_path: Path,
    home: Home,
    truths: list[ScanTruth],
    grid: Grid,
    correction: dict[str, Any],
    mask_changes: bool,
    labels: list[int],
    slabs: list[int],
) -> None:
    before, files, split_csv = prepared(home, truths), content(home), home.split_csv.read_bytes()
    assert labels_of(before[UID]) == [2, 1, 0, 0]
    old = store.read_mask(before[UID].store, "mask")

    corrected, _ = correct_truths(truths, kept(home, tmp_path, correction), home)
    after, now = prepared(home, corrected), content(home)
    assert home.split_csv.read_bytes() == split_csv
    for uid in SPLITS:
        same = before[uid] == after[uid]
        assert same == (uid != UID)
    changed = {name for name in files.keys() | now.keys() if files.get(name) != now.get(name)}
    assert changed
    # The mask's key names its nodules' places and sizes: a label alone leaves it as it is.
    places = {f"scans/{UID}.zarr/mask" if "mask/" in name else name for name in changed}
    inside = [name for name in places if f"/{UID}" in name]
    assert sorted(inside) == sorted(places)
    assert any(name.startswith("scans/") for name in places) == mask_changes
    assert not any(name.startswith(f"scans/{UID}.zarr/volume") for name in places)
    assert before[UID].digest != after[UID].digest
    assert before[UID].crops_digest != after[UID].crops_digest

    assert labels_of(after[UID]) == labels
    assert labels_of(after[UID], "slab_labels") == slabs
    new = store.read_mask(after[UID].store, "mask")
    assert bool((new != old).any()) == mask_changes
    if correction["kind"] == "add":  # drawn, and only there
        assert new[NOWHERE_IRC] == 1
        away = np.linalg.norm(irc_to_xyz(np.argwhere(new != old), grid) - at(NOWHERE_IRC), axis=1)
        assert away.max() < 8 / 2 + 1
        place = labels.index(3 if correction["label"] is None else 1, 2)
        np.testing.assert_allclose(groups.map_array(after[UID].crops, "centers_xyz")[place], at(NOWHERE_IRC))
        assert groups.map_array(after[UID].crops, "slab_masks")[place].any()
    if correction is TABLES_REJECTED:
        assert (old[BENIGN_IRC], new[BENIGN_IRC], new[MALIGNANT_IRC]) == (1, 0, 1)

    # Undone, everything is as it was, to the last byte.
    versions = kept(home, tmp_path)
    undo(home, Undo(version=versions[0].number))
    again, _ = correct_truths(truths, read_versions(corrections_folder(home)), home)
    assert prepared(home, again) == before
    assert content(home) == files


def test_keys_of_scans_without_corrections_hold_nothing_new(home: Home, truths: list[ScanTruth]) -> None:
    scan = prepared(home, truths[:1])[UID]
    key = groups.read_attributes(scan.crops)["key"]
    assert set(key) == {
        "scan", "mask", "format_version", "code", "drawn", "nodules", "negatives", "findings", "wanted", "series_uid",
    }  # fmt: skip
    assert crop_cache.CROP_FORMAT_VERSION == 3
    stored = convert_scan.fn(truths[0], home).result()  # type: ignore[union-attr]
    assert key["mask"] == mask_key(stored, "bounded")


def test_a_rejected_place_gets_no_slab_where_the_recipe_has_none_without_nodules(
    tmp_path: Path, home: Home, truths: list[ScanTruth]
) -> None:
    corrected, _ = correct_truths(truths, kept(home, tmp_path, REJECTED), home)
    scan = prepared(home, corrected[:1], negative_slabs_per_scan=0)[UID]
    assert (labels_of(scan), labels_of(scan, "slab_labels")) == ([2, 1, 4, 0, 0], [2, 1])


def test_a_disputed_place_is_no_background_of_any_slab(
    tmp_path: Path, home: Home, truths: list[ScanTruth], grid: Grid
) -> None:
    # In the slice of the tables' nodule that a reader rejects, he adds another one that reaches into it.
    beside = row(kind="add", finding=None, center_xyz=list(at((16, 34, 36))), diameter_mm=8, label="benign")
    corrected, _ = correct_truths(truths, kept(home, tmp_path, TABLES_REJECTED, beside), home)
    (disputed,) = corrected[0].disputed
    assert disputed == Excluded(series_uid=UID, center_xyz=at(BENIGN_IRC), diameter_mm=6)
    assert all(not one.disputed for one in correct_truths(truths, (), home)[0])
    scan = prepared(home, corrected)[UID]
    mask, masks = store.read_mask(scan.store, "mask"), groups.map_array(scan.crops, "slab_masks")
    assert mask.max() == 1  # the scan's own mask knows nothing of it
    rows, cols = np.ogrid[:48, :48]
    squared = (rows - BENIGN_IRC[1]) ** 2 + (cols - BENIGN_IRC[2]) ** 2  # pixels are of 1 mm
    ball, inside = squared <= 3**2, squared < 3**2  # four of its pixels lie on the edge
    assert labels_of(scan, "slab_labels")[:2] == [2, 1]
    background = mask[16] == 0
    assert 10 < (inside & background).sum() <= (masks[1] == IGNORED).sum() <= (ball & background).sum()
    assert (masks[1] == 1).sum() == mask[16].sum() > 0
    assert (inside & ~background).any()
    assert IGNORED not in masks[0]  # eight slices away


def test_every_epoch_draws_a_rejected_place_and_malignancy_never_an_unknown_one(
    tmp_path: Path, home: Home, truths: list[ScanTruth]
) -> None:
    elsewhere = {**REJECTED, "center_xyz": list(at((12, 10, 24)))}
    corrected, _ = correct_truths(truths, kept(home, tmp_path, ADDED, elsewhere), home)
    scans = list(prepared(home, corrected).values())
    labels = [label for scan in scans[:2] for label in labels_of(scan)]
    assert labels == [2, 1, 3, 4, 0, 0, 2, 1, 0, 0]
    settings: dict[str, Any] = {"device": torch.device("cpu"), "generator": torch.Generator().manual_seed(0)}
    plan = NegativePlan(kind="per_epoch", per_scan=1, epochs=2)
    nodules = classification_problem(replace(demo(), negatives=plan), scans, **settings)
    drawn = [{labels[r] * 100 + r for r in nodules.order(np.random.default_rng(0), 4, e)} for e in (1, 2)]
    of_negatives = [sorted(n for n in rows if n // 100 in (0, 4)) for rows in drawn]
    pools = [nodules._drawn_from(np.array([3, 4, 5, 8, 9]), epoch, 1).tolist() for epoch in (1, 2)]
    assert pools == [[3, 4, 8], [3, 5, 9]]  # the rejected place every time, the tables' own in turns
    assert all(of_negatives)
    everything = set(nodules.order(np.random.default_rng(0), 40, 1).tolist())
    assert {2, 3} < everything  # the nodule of unknown malignancy is a positive

    recipe = replace(demo_finetuned(), start="scratch", shares=(0.4, 0.3, 0.3), negatives=plan)
    malignancy = malignancy_problem(recipe, scans, nodule_weights={}, **settings)
    rows = set(malignancy.order(np.random.default_rng(0), 40, 1).tolist())
    assert 2 not in rows
    assert 3 in rows

    unet = SegmentationProblem(unet_demo(), scans, **settings)
    slabs = [label for scan in scans[:2] for label in labels_of(scan, "slab_labels")]
    assert [slabs[row] for row in unet._positives] == [2, 1, 3, 2, 1]
    assert [slabs[row] for row in unet._negatives] == [4, 0, 0]
    assert sizes_of(scans)["train"] == {"scans": 2, "nodules": 5, "malignant": 2}


def test_a_mined_candidate_on_a_readers_nodule_shows_a_nodule_of_unknown_malignancy(
    tmp_path: Path, home: Home, truths: list[ScanTruth], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "load_unet", lambda *_: None)
    centers = [NOWHERE_IRC, (12, 10, 24), (4, 40, 30), MALIGNANT_IRC]

    def segment(hu: np.ndarray, model: None, *, floor: float) -> Marked:
        mask = np.zeros(hu.shape, dtype=bool)
        for center in centers:
            mask[tuple(slice(c - 1, c + 2) for c in center)] = True
        return Marked.of_mask(mask)

    monkeypatch.setattr(training, "segment", segment)
    grouping = GroupingSettings(rule="union", min_voxels=1)
    pipeline = Pipeline(home=home, pipeline_id="p1", origin="phantom", seed=0, device="cpu")
    disputed = row(kind="reject", center_xyz=list(at((12, 10, 24))), diameter_mm=6)
    kept(home, tmp_path, ADDED, {**disputed, "kind": "accept"})
    versions = kept(home, tmp_path, disputed, reader="s")
    corrected, _ = correct_truths(truths, versions, home)

    def mined(own: ScanTruth, **change: Any) -> PreparedScan:
        given = {"segmentation_uri": "models:/m-1", "grouping": grouping, "pipeline": pipeline, **change}
        scan: PreparedScan = done(mine_candidates.fn(prepared(home, [own])[UID], **given))
        return scan

    def labels(scan: PreparedScan) -> list[int]:
        assert scan.mined is not None
        return sorted(groups.map_array(scan.mined, "labels").tolist())

    def read(scan: PreparedScan) -> str:
        return data_read(scan, "classification", mined=True)

    plain = mined(truths[0])
    as_read = read(plain)
    assert labels(plain) == [0, 0, 0, 2]
    assert labels(mined(corrected[0])) == [0, 2, 3]  # the disputed one is left out
    with pytest.raises(StoreError, match="changed by another run"):
        read(plain)
    # They are part of the classifier's key, but for whether what they show is malignant.
    turned = tuple(replace(one, malignant=not one.malignant) for one in truths[0].nodules)
    relabelled = mined(replace(truths[0], nodules=turned))
    assert labels(relabelled) == [0, 0, 0, 1]
    assert read(relabelled) == as_read != data_read(relabelled, "classification")
    others = [
        read(mined(truths[0], segmentation_uri="models:/m-2")),
        read(mined(truths[0], grouping=replace(grouping, min_voxels=2))),
        read(mined(replace(truths[0], excluded=()))),
    ]
    assert len({as_read, *others}) == 4
    monkeypatch.setattr(training, "MINED_NEAR_MM", 2.0)
    assert read(mined(truths[0])) != as_read


# what is trained again


def recipes_of() -> dict[str, Any]:
    """Training -> its settings; of malignancy from nodules alone and from non-nodules too."""

    def short(settings: Any, **more: Any) -> Any:
        fit = replace(settings.fit, epochs=1, samples_per_epoch=4, batch_size=2, validate_every=1)
        return replace(settings, fit=fit, **more)

    scratch = short(demo_scratch())
    return {
        "segmentation": short(unet_demo()),
        "classification": short(demo(), mined=False),
        "malignancy": scratch,
        "malignancy, others too": replace(scratch, shares=(0.4, 0.3, 0.3)),
    }


def stage_of(name: str) -> Stage:
    stage: Stage = name.split(",")[0]  # type: ignore[assignment]
    return stage


def data_of(scans: Mapping[str, PreparedScan], home: Home) -> dict[str, str]:
    """Training -> what its key says of the data."""
    pipeline = Pipeline(home=home, pipeline_id="p1", origin="phantom", seed=0, device="cpu")
    return {
        name: Training(
            stage=stage_of(name),
            name=name,
            settings=settings,
            scans=list(scans.values()),
            pipeline=pipeline,
            recipe_name="toy",
        ).identity["data"]
        for name, settings in recipes_of().items()
    }


def changed_between(before: Mapping[str, str], after: Mapping[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


ALL = set(recipes_of())
BOTH = {"malignancy", "malignancy, others too"}
ACCEPTED = {**ADDED, "kind": "accept", "finding": 4}
UNSURE = {**RELABELLED, "label": "benign"}  # beside RELABELLED: readers disagree on the scan's last nodule
FIRST = row(kind="relabel", center_xyz=list(at(MALIGNANT_IRC)), diameter_mm=10, label="malignant")


@pytest.mark.parametrize(
    ("said", "slabs", "retrained"),
    [
        ([RELABELLED], 1, BOTH),
        ([RELABELLED], 0, BOTH),
        ([RELABELLED, UNSURE], 1, BOTH),  # now of unknown malignancy, and still the last
        ([FIRST, {**FIRST, "label": "benign"}], 1, ALL),  # the first nodule became the last one
        ([ADDED], 1, ALL - {"malignancy"}),
        ([ACCEPTED], 1, ALL - {"malignancy"}),
        ([{**ACCEPTED, "label": "malignant"}], 1, ALL),
        ([ADDED_BENIGN], 1, ALL),
        ([REJECTED], 1, ALL - {"malignancy"}),
        ([REJECTED], 0, {"classification", "malignancy, others too"}),
        ([TABLES_REJECTED], 1, ALL),
        ([ADDED, {**REJECTED, "diameter_mm": 8}], 0, {"segmentation"}),  # disputed, where the tables know nothing
    ],
)
def test_only_what_reads_the_difference_is_trained_again(
    tmp_path: Path, home: Home, truths: list[ScanTruth], said: list[dict[str, Any]], slabs: int, retrained: set[str]
) -> None:
    versions: tuple[Version, ...] = ()
    for reader, correction in zip("rs", said):
        versions = kept(home, tmp_path, correction, reader=reader)
    before = data_of(prepared(home, truths, negative_slabs_per_scan=slabs), home)
    corrected, _ = correct_truths(truths, versions, home)
    after = data_of(prepared(home, corrected, negative_slabs_per_scan=slabs), home)
    assert changed_between(before, after) == retrained


@pytest.mark.parametrize("uid", ["1.3", "1.4"])
def test_whatever_a_model_is_chosen_or_tested_on_is_part_of_its_key(
    home: Home, truths: list[ScanTruth], uid: str
) -> None:
    before = data_of(prepared(home, truths), home)
    place = list(SPLITS).index(uid)
    nodules, table = truths[place].nodules, truths[place].negatives_xyz
    assert table is not None
    turned = tuple(replace(one, malignant=not one.malignant) for one in nodules)
    larger = (replace(nodules[0], diameter_mm=11.0), *nodules[1:])
    other_side: Any = {"val": "test", "test": "val"}[SPLITS[uid]]
    for change, seen_by in (
        ({"nodules": larger}, ALL),
        ({"nodules": nodules[:1]}, ALL),
        ({"nodules": turned}, {"classification", *BOTH}),  # what the worst errors are called; no U-Net is asked
        ({"excluded": ()}, {"segmentation"}),
        ({"negatives_xyz": table[:3]}, {"classification"}),
        ({"split": other_side}, ALL),
    ):
        scans = [replace(one, **change) if one.series_uid == uid else one for one in truths]
        assert changed_between(before, data_of(prepared(home, scans), home)) == seen_by, change


@pytest.mark.parametrize("name", ["segmentation", "classification", "malignancy"])
def test_a_label_alone_changes_the_weights_of_the_malignancy_models_only(
    tmp_path: Path, home: Home, truths: list[ScanTruth], name: str
) -> None:
    # What the keys promise: the very same weights and scores are learned from either.
    settings, left = recipes_of()[name], []
    corrected, _ = correct_truths(truths, kept(home, tmp_path, RELABELLED), home)
    third = {**ADDED, "center_xyz": list(at((16, 14, 36))), "diameter_mm": 5, "label": "benign"}
    for number, said in enumerate((truths, corrected)):
        own = replace(said[0], nodules=(*said[0].nodules, toy_nodule(third)))  # so that a benign one is left
        job = TrainingJob(
            stage=stage_of(name),
            settings=settings,
            scans=tuple(prepared(home, [own, *said[1:]]).values()),
            seed=0,
            hardware=Hardware(device="cpu"),
        )
        folder = tmp_path / str(number)
        write_job(folder, job)
        run_job(folder, lambda *_, **__: None)
        done_well = read_result(folder)
        assert done_well is not None
        left.append(done_well)
    (before, weights), (after, others) = left
    same = all(torch.equal(weights[one], others[one]) for one in weights)
    assert same == (name != "malignancy")
    if same:
        assert str(before) == str(after)  # as text: a NaN equals a NaN


def toy_nodule(said: Mapping[str, Any]) -> Nodule:
    x, y, z = said["center_xyz"]
    return Nodule(series_uid=UID, center_xyz=(x, y, z), diameter_mm=said["diameter_mm"], malignant=False, ratings=(1,))


# what is told of them


USED = {"version": 4, "positives": 3, "negatives": 2, "labels": 1, "disputed": 5, "held_out": 6}


@pytest.fixture
def pipeline(tmp_path: Path, new_home: Callable[[Path], Home]) -> Pipeline:
    (tmp_path / "mlflow").mkdir()
    return Pipeline(
        home=new_home(tmp_path / "mlflow"), pipeline_id="p1", origin="phantom", seed=0, device="cpu", corrections=USED
    )


def test_the_end_to_end_run_holds_the_numbers(pipeline: Pipeline) -> None:
    told = {"recipe": "toy", "corrections": 4}
    for used, parameters, expected in (
        (USED, told, {f"corrections/{name}": float(count) for name, count in USED.items()}),
        ({**USED, "version": 0}, told, {}),
        (USED, None, {}),
    ):
        own = replace(pipeline, corrections=used)
        run_id = log_end_to_end.fn([], "models:/luna/7", [], own, parameters=parameters)
        run = MlflowClient(tracking.tracking_uri(own.home)).get_run(run_id)
        assert run.data.metrics == expected


def test_the_summary_says_it_in_a_line(pipeline: Pipeline) -> None:
    words = (
        "- readers' corrections up to version 4: 3 used as positives, 2 as hard negatives, 1 as malignancy labels; "
        "5 disputed, 6 kept of validation and test scans"
    )
    assert words in summary_page([], [], pipeline, "models:/luna/7").splitlines()
    without = summary_page([], [], replace(pipeline, corrections={}), "models:/luna/7")
    assert "corrections" not in without
