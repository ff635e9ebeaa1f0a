import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lungml import groups, store
from lungml.frozen_split import SplitError
from lungml.geometry import Grid, irc_to_xyz, xyz_to_irc
from lungml.home import Home
from lungml.luna import Annotation, TableError
from lungml.masks import annotation_mask
from lungml.phantom import UID_ROOT
from lungml.quarantine import read_quarantine, set_aside
from lungml.recipes.data import PreparedScan
from lungml.sampling import NegativePlan
from tasks import data
from tasks.corrections import correct_truths
from tasks.data import (
    StoredScan,
    build_mask,
    cache_crops,
    convert_scan,
    make_phantoms,
    publish_quarantine,
    warn_in_sum,
    with_reasons,
)
from tasks.rounds import open_round
from tasks.truth import ScanTruth, data_origin, read_truths
from tests.tasks.outcomes import done, kept

Toy = Callable[..., ScanTruth]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "artifacts")


@pytest.fixture
def truth(tmp_path: Path, toy: Toy) -> ScanTruth:
    return toy(tmp_path / "luna16", "1.2")


@pytest.fixture
def stored(truth: ScanTruth, home: Home) -> StoredScan:
    return done(convert_scan.fn(truth, home))


def later(path: Path) -> None:
    """As if the file had been written a second later."""
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))


# convert_scan


def test_a_scan_becomes_a_store_once(truth: ScanTruth, home: Home, grid: Grid) -> None:
    first = done(convert_scan.fn(truth, home))
    assert first.store == home.scans / "1.2.zarr"
    raw = np.fromfile(truth.path.with_suffix(".raw"), "<i2").reshape(24, 48, 48)
    np.testing.assert_array_equal(store.read_volume(first.store), raw)
    assert store.read_grid(first.store) == grid
    before = (first.store / "zarr.json").stat().st_mtime_ns
    assert kept(convert_scan.fn(truth, home)) == first
    assert (first.store / "zarr.json").stat().st_mtime_ns == before


def test_a_changed_source_is_converted_again(tmp_path: Path, toy: Toy, home: Home) -> None:
    first = done(convert_scan.fn(toy(tmp_path, "1.2"), home))
    truth = toy(tmp_path, "1.2", number=1)
    later(truth.path.with_suffix(".raw"))
    again = done(convert_scan.fn(truth, home))
    assert again.fingerprint != first.fingerprint
    raw = np.fromfile(truth.path.with_suffix(".raw"), "<i2").reshape(24, 48, 48)
    np.testing.assert_array_equal(store.read_volume(again.store), raw)


@pytest.mark.parametrize("victim", ["zarr.json", "."])
def test_a_deleted_store_is_made_again(truth: ScanTruth, stored: StoredScan, home: Home, victim: str) -> None:
    before = store.read_volume(stored.store)
    path = stored.store / victim
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert done(convert_scan.fn(truth, home)) == stored
    np.testing.assert_array_equal(store.read_volume(stored.store), before)


def test_a_broken_scan_is_set_aside_until_it_reads_well(truth: ScanTruth, home: Home) -> None:
    # Mistake 17: a partial download crashed with IndexError.
    raw = truth.path.with_suffix(".raw")
    whole = raw.read_bytes()
    raw.write_bytes(whole[:-2])
    assert convert_scan.fn(truth, home) is None
    (row,) = read_quarantine(home.quarantine_csv)
    assert (row["series_uid"], row["path"]) == ("1.2", str(truth.path))
    assert "1.2.raw is too short: 110590 bytes, the header says 110592" in row["reason"]
    assert not home.scans.exists()
    raw.unlink()
    assert convert_scan.fn(truth, home) is None
    (row,) = read_quarantine(home.quarantine_csv)
    assert "its data file 1.2.raw is missing" in row["reason"]
    raw.write_bytes(whole)
    done(convert_scan.fn(truth, home))
    assert read_quarantine(home.quarantine_csv) == []


def test_a_scan_whose_files_come_back_as_they_were_is_released(
    truth: ScanTruth, stored: StoredScan, home: Home
) -> None:
    # Its store is still the right one; a copy that keeps times (rsync -t) brings the very same fingerprint back.
    raw = truth.path.with_suffix(".raw")
    away = raw.rename(raw.with_suffix(".away"))
    assert convert_scan.fn(truth, home) is None
    assert len(read_quarantine(home.quarantine_csv)) == 1
    away.rename(raw)
    assert kept(convert_scan.fn(truth, home)) == stored
    assert read_quarantine(home.quarantine_csv) == []


def test_one_broken_scan_leaves_the_others_alone(tmp_path: Path, toy: Toy, home: Home) -> None:
    good, bad = toy(tmp_path, "1.2"), toy(tmp_path, "1.3")
    bad.path.write_text("no header")
    assert [convert_scan.fn(t, home) is None for t in (bad, good)] == [True, False]
    assert [row["series_uid"] for row in read_quarantine(home.quarantine_csv)] == ["1.3"]


def test_files_that_failed_are_not_read_again_until_they_or_the_reader_change(
    truth: ScanTruth, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = truth.path.with_suffix(".raw")
    raw.write_bytes(raw.read_bytes()[:-2])
    read: list[Path] = []
    real = data.read_scan
    monkeypatch.setattr(data, "read_scan", lambda path: read.append(path) or real(path))
    assert convert_scan.fn(truth, home) is None
    assert convert_scan.fn(truth, home) is None
    assert len(read) == 1
    assert convert_scan.fn(truth, home, recheck=True) is None
    monkeypatch.setattr(data, "code_digest", lambda modules: "another reader")
    assert convert_scan.fn(truth, home) is None
    later(raw)
    assert convert_scan.fn(truth, home) is None
    assert len(read) == 4
    assert len(read_quarantine(home.quarantine_csv)) == 1


def test_the_quarantine_is_a_table_that_names_no_folder(
    tmp_path: Path, toy: Toy, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr(data, "create_table_artifact", lambda **fields: shown.append(fields))
    bad, good = toy(tmp_path / "Doe, John", "1.2"), toy(tmp_path / "Doe, John", "1.3")
    bad.path.with_suffix(".raw").unlink()
    for truth in (bad, good):
        convert_scan.fn(truth, home)
    assert publish_quarantine.fn([good], home) == 0  # another data set's scan is no matter of this one
    assert publish_quarantine.fn([bad, good], home) == 1
    none, (row,) = shown[0]["table"], shown[1]["table"]
    assert none[0]["series"] == "none"
    assert row["series"] == "1.2"
    assert row["reason"].startswith("its data file .raw is missing; ")
    assert "Doe" not in str(shown)
    assert "1 of 2 scans are set aside" in shown[1]["description"]


def test_a_scan_that_changes_while_it_is_read_is_tried_again(
    truth: ScanTruth, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = data.read_scan

    def read_while_copied(path: Path) -> Any:
        scan = real(path)
        later(path.with_suffix(".raw"))
        return scan

    monkeypatch.setattr(data, "read_scan", read_while_copied)
    with pytest.raises(OSError, match="changed while it was read"):
        convert_scan.fn(truth, home)
    monkeypatch.undo()
    done(convert_scan.fn(truth, home))  # what was written under the old fingerprint is not trusted


def test_a_scan_set_aside_goes_on_with_its_reason(tmp_path: Path, toy: Toy, home: Home) -> None:
    bad, good = toy(tmp_path / "Doe, John", "1.2"), toy(tmp_path, "1.3")
    bad.path.with_suffix(".raw").unlink()
    for truth in (bad, good):
        convert_scan.fn(truth, home)
    first, second = with_reasons([bad, good], home)
    assert first.reason.startswith("1.2.mhd: its data file 1.2.raw is missing; ")
    assert (replace(first, reason=""), second) == (bad, good)


# build_mask


def test_a_mask_lies_in_its_scan_once_for_each_rule(stored: StoredScan, grid: Grid) -> None:
    assert done(build_mask.fn(stored, "bounded")) == stored
    hu = store.read_volume(stored.store)
    bounded = store.read_mask(stored.store, "mask")
    np.testing.assert_array_equal(bounded, annotation_mask(hu, stored.truth.nodules, grid, "bounded"))
    assert bounded[8, 14, 14] == bounded[16, 34, 30] == 1
    assert bounded[12, 24, 24] == 0
    done(build_mask.fn(stored, "report"))
    for rule in ("bounded", "report"):
        assert kept(build_mask.fn(stored, rule)) == stored
    np.testing.assert_array_equal(store.read_mask(stored.store, "mask"), bounded)


def test_a_mask_follows_the_nodules_and_the_scan(tmp_path: Path, toy: Toy, stored: StoredScan, home: Home) -> None:
    done(build_mask.fn(stored, "bounded"))
    fewer = replace(stored, truth=replace(stored.truth, nodules=stored.truth.nodules[1:]))
    done(build_mask.fn(fewer, "bounded"))
    assert store.read_mask(stored.store, "mask")[8, 14, 14] == 0
    # A new store has no mask yet, even when it is the old scan's.
    later(stored.truth.path.with_suffix(".raw"))
    done(build_mask.fn(done(convert_scan.fn(fewer.truth, home)), "bounded"))


def test_a_deleted_mask_is_made_again(stored: StoredScan) -> None:
    done(build_mask.fn(stored, "bounded"))
    shutil.rmtree(stored.store / "mask")
    done(build_mask.fn(stored, "bounded"))
    assert store.read_mask(stored.store, "mask").any()


# cache_crops


def fixed(count: int) -> NegativePlan:
    return NegativePlan(kind="fixed", per_scan=count)


def cut(scan: StoredScan, home: Home, **change: Any) -> Any:
    settings = {
        "recipe_name": "toy",
        "rule": "bounded",
        "negatives": fixed(2),
        "negative_slabs_per_scan": 1,
        "seed": 0,
        **change,
    }
    build_mask.fn(scan, settings["rule"])
    return cache_crops.fn(scan, home, **settings)


def labels(prepared: PreparedScan, name: str = "labels") -> list[int]:
    return groups.map_array(prepared.crops, name).tolist()


def negatives(prepared: PreparedScan) -> np.ndarray:
    """(n, 3) mm: where the non-nodules lie."""
    centers = groups.map_array(prepared.crops, "centers_xyz")
    return centers[groups.map_array(prepared.crops, "labels") == 0]


def converted(truth: ScanTruth, home: Home) -> StoredScan:
    return done(convert_scan.fn(truth, home))


def test_a_training_scan_keeps_a_sample_of_its_negatives(stored: StoredScan, home: Home) -> None:
    prepared = done(cut(stored, home))
    assert re.fullmatch(r"toy-[0-9a-f]{8}\.zarr/1\.2", str(prepared.crops.relative_to(home.crops)))
    assert labels(prepared) == [2, 1, 0, 0]
    assert labels(prepared, "slab_labels") == [2, 1, 0]
    table = stored.truth.negatives_xyz
    assert table is not None
    for place in negatives(prepared):
        assert np.isclose(table, place, atol=1e-9).all(axis=1).sum() == 1
    # Each crop shows its own place: the bright ball's centre lies in the middle of the first.
    assert groups.map_array(prepared.crops, "slab_masks")[0].any()
    assert (prepared.split, prepared.mask_name, prepared.nodules) == ("train", "mask", stored.truth.nodules)


@pytest.mark.parametrize("split", ["val", "test"])
def test_validation_and_test_keep_all_and_no_slabs(tmp_path: Path, toy: Toy, home: Home, split: str) -> None:
    prepared = done(cut(converted(toy(tmp_path, "1.3", split), home), home))
    assert labels(prepared) == [2, 1, 0, 0, 0, 0, 0, 0]
    assert labels(prepared, "slab_labels") == []


def test_none_keeps_all_negatives_of_a_training_scan_in_the_tables_order(stored: StoredScan, home: Home) -> None:
    prepared = done(cut(stored, home, negatives=NegativePlan()))
    np.testing.assert_allclose(negatives(prepared), stored.truth.negatives_xyz)


def test_equal_settings_are_kept_and_changed_ones_are_not(stored: StoredScan, home: Home) -> None:
    first = done(cut(stored, home))
    assert kept(cut(stored, home)) == first
    digests = {first.digest}
    for change in (
        {"rule": "report"},
        {"negatives": fixed(3)},
        {"negative_slabs_per_scan": 2},
        {"seed": 1},
    ):
        prepared = done(cut(stored, home, **change))
        assert kept(cut(stored, home, **change)) == prepared
        digests.add(prepared.digest)
    assert len(digests) == 5


def test_changed_truth_is_cut_again(stored: StoredScan, home: Home) -> None:
    first = done(cut(stored, home))
    truth = stored.truth
    assert truth.negatives_xyz is not None
    benign = tuple(replace(nodule, malignant=False) for nodule in truth.nodules)
    for changed, expected in (
        (replace(truth, negatives_xyz=truth.negatives_xyz[:1]), [2, 1, 0]),
        (replace(truth, nodules=benign), [1, 1, 0, 0]),
        (replace(truth, split="val"), [2, 1, 0, 0, 0, 0, 0, 0]),
    ):
        prepared = done(cut(replace(stored, truth=changed), home))
        assert labels(prepared) == expected
        assert prepared.digest != first.digest
    # Findings matter only where negatives are drawn.
    done(cut(stored, home))
    unchanged = replace(truth, findings_xyz=truth.findings_xyz[:1], excluded=())
    assert kept(cut(replace(stored, truth=unchanged), home)).crops_digest == first.crops_digest
    later(truth.path.with_suffix(".raw"))
    assert done(cut(converted(truth, home), home)).digest != first.digest


@pytest.mark.parametrize("victim", ["zarr.json", "."])
def test_deleted_crops_are_cut_again_the_same(stored: StoredScan, home: Home, victim: str) -> None:
    first = done(cut(stored, home))
    before = np.array(groups.map_array(first.crops, "crops"))
    path = first.crops / victim
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert done(cut(stored, home)) == first
    np.testing.assert_array_equal(groups.map_array(first.crops, "crops"), before)


def test_the_sample_depends_on_seed_and_uid_not_on_other_scans(tmp_path: Path, toy: Toy) -> None:
    alone, together = Home(tmp_path / "alone"), Home(tmp_path / "together")
    truths = [toy(tmp_path, uid) for uid in ("1.0", "1.1", "1.2", "1.3", "1.4")]
    one = done(cut(converted(truths[2], alone), alone))
    all_five = [done(cut(converted(truth, together), together)) for truth in truths]
    assert all_five[2].digest == one.digest
    np.testing.assert_array_equal(negatives(all_five[2]), negatives(one))
    assert len({negatives(prepared).tobytes() for prepared in all_five}) > 1
    scan = converted(truths[2], Home(tmp_path / "seeds"))
    seeds = {negatives(done(cut(scan, alone, seed=seed))).tobytes() for seed in range(1, 6)}
    assert len(seeds) > 1


def test_without_a_table_negatives_are_drawn_in_the_lungs_far_from_findings(
    stored: StoredScan, home: Home, grid: Grid
) -> None:
    drawn = replace(stored, truth=replace(stored.truth, negatives_xyz=None))
    prepared = done(cut(drawn, home, negatives=fixed(6)))
    places = negatives(prepared)
    assert len(places) == 3  # the toy's lungs hold no vessels, which would make the other half
    distances = np.linalg.norm(places[:, None] - drawn.truth.findings_xyz, axis=-1)
    assert distances.min() >= 15
    hu = store.read_volume(stored.store)
    voxels = np.rint(xyz_to_irc(places, grid)).astype(int)
    assert (hu[tuple(voxels.T)] < -700).all()
    again = Home(home.root.with_name("again"))
    np.testing.assert_array_equal(negatives(done(cut(drawn, again, negatives=fixed(6)))), places)


def test_a_scans_side_is_part_of_what_a_model_depends_on_though_its_crops_are_the_same(
    tmp_path: Path, toy: Toy, home: Home
) -> None:
    # Else a model chosen on some scans would be taken for one that was tested on them, in a fold that swaps the two.
    truth = toy(tmp_path, "1.3", "val")
    scan = converted(truth, home)
    val = done(cut(scan, home))
    test = kept(cut(replace(scan, truth=replace(truth, split="test")), home))
    assert test.crops_digest == val.crops_digest
    assert test.digest != val.digest


def test_what_nothing_learns_from_changes_no_crops(stored: StoredScan, home: Home) -> None:
    first = done(cut(stored, home))
    found = Annotation(series_uid="1.2", center_xyz=(1, 2, 3), diameter_mm=4)
    told = replace(stored.truth, unrated=(found,), textures=("solid", "part-solid"))
    prepared = kept(cut(replace(stored, truth=told), home))
    assert (prepared.unrated, prepared.textures) == ((found,), ("solid", "part-solid"))
    assert (prepared.crops_digest, prepared.digest) == (first.crops_digest, first.digest)


def test_what_validation_and_test_keep_is_the_same_for_every_recipe(tmp_path: Path, toy: Toy, home: Home) -> None:
    truth = toy(tmp_path, "1.3", "val")
    scan = converted(truth, home)
    first = done(cut(scan, home))
    assert first.crops == home.crops / "judged.zarr" / "1.3"
    assert kept(cut(scan, home, recipe_name="other", negatives=fixed(6), rule="report", seed=1)).crops == first.crops
    # Drawn ones depend on the seed.
    drawn = replace(scan, truth=replace(truth, negatives_xyz=None))
    seeds = [done(cut(drawn, home, seed=seed)) for seed in (1, 2)]
    assert [prepared.crops.parent.name for prepared in seeds] == ["judged-1.zarr", "judged-2.zarr"]


def test_runs_of_other_settings_leave_each_others_crops_alone(stored: StoredScan, home: Home) -> None:
    first = done(cut(stored, home))
    for change in ({"seed": 1}, {"rule": "report"}, {"negatives": fixed(3)}, {"recipe_name": "other"}):
        done(cut(stored, home, **change))
    assert kept(cut(stored, home)) == first


def test_a_scan_without_negatives_is_no_data_set_without_a_table(stored: StoredScan, home: Home) -> None:
    # Mistake 4: an empty list fell through to everything.
    empty = replace(stored, truth=replace(stored.truth, negatives_xyz=np.empty((0, 3))))
    assert labels(done(cut(empty, home))) == [2, 1]


def test_a_scan_with_nothing_in_it_has_no_crops(stored: StoredScan, home: Home) -> None:
    nothing = replace(stored.truth, nodules=(), negatives_xyz=np.empty((0, 3)), findings_xyz=np.empty((0, 3)))
    prepared = done(cut(replace(stored, truth=nothing), home))
    assert labels(prepared) == labels(prepared, "slab_labels") == []


def test_places_outside_the_scan_are_left_out(stored: StoredScan, home: Home, grid: Grid) -> None:
    # Half a voxel beyond the last centre is the border.
    truth = stored.truth
    last, beyond, before = (irc_to_xyz(irc, grid) for irc in ((23.4, 20, 20), (23.6, 20, 20), (-0.6, 20, 20)))
    nodules = [replace(truth.nodules[0], center_xyz=tuple(place)) for place in (last, beyond, before)]
    scan = replace(
        stored,
        truth=replace(truth, nodules=(*nodules, truth.nodules[1]), negatives_xyz=np.array([before, last])),
    )
    prepared = done(cut(scan, home))
    assert labels(prepared) == [2, 1, 0]
    np.testing.assert_allclose(negatives(prepared), [last])


# read_truths

TABLES = {
    "annotations_with_malignancy": "seriesuid,coordX,coordY,coordZ,diameter_mm,mal_bool,mal_details\n"
    's0,1,2,3,10,True,"[5, 4]"\ns2,4,5,6,7,False,[1]\n',
    "annotations": "seriesuid,coordX,coordY,coordZ,diameter_mm\ns0,1,2,3,10\ns0,11,12,13,4\n",
    "annotations_excluded": "seriesuid,coordX,coordY,coordZ,diameter_mm\ns0,7,8,9,-1\n",
    "candidates": "seriesuid,coordX,coordY,coordZ,class\ns0,20,21,22,0\ns0,1,2,3,1\n",
    "seriesuids": "s0\ns1\ns2\ns3\n",
}


def luna_tree(folder: Path, uids: str, *, without: str = "") -> Path:
    folder.mkdir()
    for uid in uids.split():
        (folder / f"{uid}.mhd").touch()
    for name, text in TABLES.items():
        if name != without:
            (folder / f"{name}.csv").write_text(text)
    return folder


def test_all_that_is_known_of_the_scans_on_disk(tmp_path: Path, home: Home) -> None:
    notes, truths = read_truths(luna_tree(tmp_path / "luna16", "s3 s0 s1"), None, 3, home, for_training=False)
    assert [(t.series_uid, t.split) for t in truths] == [("s0", "val"), ("s1", "test"), ("s3", "val")]
    first, second, _ = truths
    assert first.path == tmp_path / "luna16" / "s0.mhd"
    assert [n.malignant for n in first.nodules] == [True]
    assert first.negatives_xyz is not None
    assert first.negatives_xyz.tolist() == [[20, 21, 22]]
    # The nodule without ratings is neither learned from nor, as a candidate, mined or scored as a non-nodule.
    assert [e.diameter_mm for e in first.excluded] == [10, 4]
    # The challenge counts it all the same.
    assert first.unrated == (Annotation(series_uid="s0", center_xyz=(11, 12, 13), diameter_mm=4),)
    assert (second.unrated, first.textures) == ((), ())
    assert any("1 annotated nodules have no malignancy rating" in note for note in notes)
    # The nodule stands in both tables of nodules; the one without ratings counts too.
    assert {tuple(place) for place in first.findings_xyz} == {(1, 2, 3), (11, 12, 13), (7, 8, 9)}
    assert (second.nodules, second.excluded, second.findings_xyz.shape) == ((), (), (0, 3))
    assert second.negatives_xyz is not None
    assert second.negatives_xyz.shape == (0, 3)
    assert any("1 of 4 series in the tables are not on disk" in note for note in notes)


def test_textures_stand_in_the_order_of_the_nodules(tmp_path: Path, home: Home) -> None:
    tree = luna_tree(tmp_path / "luna16", "s0 s1 s2")
    rows = ["s0,1,2,3,10,False,[1]", "s0,30,2,3,8,False,[2]", "s2,4,5,6,7,False,[1]"]
    header = "seriesuid,coordX,coordY,coordZ,diameter_mm"
    (tree / "annotations_with_malignancy.csv").write_text("\n".join([f"{header},mal_bool,mal_details", *rows]))
    (tree / "textures.csv").write_text(f"{header},texture\ns0,30,2,3,8,part-solid\ns0,1,2,3,10,solid\n")
    notes, truths = read_truths(tree, None, 3, home, for_training=False)
    assert [truth.textures for truth in truths] == [("solid", "part-solid"), (), ("",)]
    assert any("knows the textures of 2 of 3 nodules" in note for note in notes)


def test_no_table_of_candidates_is_not_an_empty_one(tmp_path: Path, home: Home) -> None:
    tree = luna_tree(tmp_path / "luna16", "s0 s1", without="candidates")
    notes, truths = read_truths(tree, None, 3, home, for_training=False)
    assert [truth.negatives_xyz for truth in truths] == [None, None]
    assert any("candidates.csv is missing" in note for note in notes)


def test_training_needs_a_scan_of_every_split(tmp_path: Path, home: Home) -> None:
    tree = luna_tree(tmp_path / "luna16", "s0 s1")
    assert len(read_truths(tree, None, 3, home, for_training=False)[1]) == 2
    with pytest.raises(SplitError) as caught:
        read_truths(tree, None, 3, home, for_training=True)
    assert str(caught.value) == (
        "2 scans are on disk (0 train, 1 val, 1 test); three splits at --val-stride 3 need at least 3, "
        "one of each; add s2 (train)"
    )
    (tree / "s2.mhd").touch()
    splits = [truth.split for truth in read_truths(tree, None, 3, home, for_training=False)[1]]
    assert splits == ["val", "test", "train"]
    # A scan of every split is not enough: the last stage would find out after hours.
    _, truths = read_truths(tree, None, 3, home, for_training=True)
    with pytest.raises(SplitError, match=r"^the 1 (train|val) scans on disk hold no (malignant|benign) nodule"):
        correct_truths(truths, (), home, for_training=True)


def test_the_split_is_frozen_in_the_home(tmp_path: Path, home: Home) -> None:
    tree = luna_tree(tmp_path / "luna16", "s0 s1")
    read_truths(tree, None, 3, home, for_training=False)
    assert home.split_csv.read_text() == "series_uid,split\ns0,val\ns1,test\ns2,train\ns3,val\n"
    (tree / "seriesuids.csv").write_text("a0\ns0\ns1\ns2\ns3\n")  # it would move everybody by one
    _, truths = read_truths(tree, None, 3, home, for_training=False)
    assert [truth.split for truth in truths] == ["val", "test"]


def test_a_missing_folder_is_one_line(tmp_path: Path, home: Home) -> None:
    with pytest.raises(TableError, match="none: no such folder"):
        read_truths(tmp_path / "none", None, 3, home, for_training=False)
    assert not home.root.exists()


# data_origin and make_phantoms


def test_one_drawn_scan_makes_the_data_a_phantoms(truth: ScanTruth) -> None:
    drawn = replace(truth, series_uid=f"{UID_ROOT}.1.1{'0123456789' * 3}")
    # De-identified scans of patients have the same root.
    alike = replace(truth, series_uid=f"{UID_ROOT}.{'98765' * 8}")
    assert data_origin([truth, alike]) == "real"
    assert data_origin([truth, drawn]) == "phantom"


def test_drawn_scans_are_kept(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def draw(folder: Path, **settings: Any) -> None:
        drawn.append(settings)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "phantom.json").touch()

    monkeypatch.setattr(data, "write_phantoms", draw)
    folder = done(make_phantoms.fn(home, scans=3, seed=7))
    assert home.root in folder.parents
    assert (drawn[0]["scans"], drawn[0]["seed"]) == (3, 7)
    assert kept(make_phantoms.fn(home, scans=3, seed=7)) == folder
    assert done(make_phantoms.fn(home, scans=4, seed=7)) != folder


# Done anew


def test_what_shall_be_done_anew_is_done_once_though_it_looks_whole(truth: ScanTruth, home: Home) -> None:
    settings: dict[str, Any] = {
        "recipe_name": "tiny",
        "rule": "bounded",
        "negatives": NegativePlan(kind="fixed", per_scan=4),
        "negative_slabs_per_scan": 2,
        "seed": 0,
    }
    stored = done(convert_scan.fn(truth, home))
    prepared = done(cache_crops.fn(done(build_mask.fn(stored, "bounded")), home, **settings))
    chunks = [
        next(path for path in sorted(place.rglob("*")) if path.is_file() and path.name != "zarr.json")
        for place in (stored.store / "volume", prepared.crops)
    ]
    whole = [chunk.read_bytes() for chunk in chunks]
    for chunk, data_of in zip(chunks, whole, strict=True):
        chunk.write_bytes(data_of[:-1] + bytes([data_of[-1] ^ 1]))  # of equal length: nobody sees it
    assert kept(convert_scan.fn(truth, home)) == stored
    again = open_round(home, ["prepare"], {})
    assert done(convert_scan.fn(truth, home, again=again)) == stored
    assert done(build_mask.fn(stored, "bounded", again=again)) == stored
    assert done(cache_crops.fn(stored, home, again=again, **settings)) == prepared
    assert [chunk.read_bytes() for chunk in chunks] == whole
    # A second run in the same round repeats none of it.
    assert kept(convert_scan.fn(truth, home, again=again)) == stored
    assert kept(build_mask.fn(stored, "bounded", again=again)) == stored
    assert kept(cache_crops.fn(stored, home, again=again, **settings)) == prepared


def test_what_cannot_be_made_anew_stays_as_it_was(
    truth: ScanTruth, stored: StoredScan, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_mask.fn(stored, "bounded")
    build_mask.fn(stored, "report")
    voxels, key = store.read_volume(stored.store), store.scan_key(stored.fingerprint)
    raw = truth.path.with_suffix(".raw")
    times, whole = raw.stat(), raw.read_bytes()
    raw.write_bytes(b"\0" * len(whole))  # the disk's fault: by name, size and time nothing has changed
    os.utime(raw, ns=(times.st_atime_ns, times.st_mtime_ns))
    again = open_round(home, ["prepare"], {})
    assert convert_scan.fn(truth, home, again=again) is None
    assert len(read_quarantine(home.quarantine_csv)) == 1

    def full_disk(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(groups, "_sync_tree", full_disk)
    with pytest.raises(OSError, match="No space"):
        build_mask.fn(stored, "bounded", again=again)
    np.testing.assert_array_equal(store.read_volume(stored.store, key=key), voxels)
    for mask in ("mask", "mask_report"):
        assert groups.find_damage(stored.store / mask) == ""
    assert kept(convert_scan.fn(truth, home)) == stored  # and is there to be used
    assert kept(build_mask.fn(stored, "bounded")) == stored


def test_a_scan_made_anew_keeps_the_masks_that_nobody_asked_for(truth: ScanTruth, home: Home) -> None:
    stored = done(convert_scan.fn(truth, home))
    for rule in ("bounded", "report"):
        build_mask.fn(stored, rule)
    again = open_round(home, ["prepare"], {})
    done(convert_scan.fn(truth, home, again=again))
    done(build_mask.fn(stored, "bounded", again=again))
    assert kept(build_mask.fn(stored, "report")) == stored


def test_warnings_of_one_kind_are_summed_up(
    tmp_path: Path, toy: Toy, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    log = SimpleNamespace(warning=lambda text, *values: said.append(text % values))
    first = StoredScan(truth=toy(tmp_path, "1.2"), store=tmp_path, fingerprint="", warnings=("only 36 x 48 mm: small",))
    second = replace(first, truth=toy(tmp_path, "1.3"), warnings=("only 100.5 x 7 mm: small", "no lungs seen"))
    monkeypatch.setattr(data, "get_run_logger", lambda: log)
    warn_in_sum([first, None, second, replace(first, warnings=())])
    assert said == [
        "2 of 4 scans, such as 1.2: only 36 x 48 mm: small",
        "1 of 4 scans, such as 1.3: no lungs seen",
    ]


def test_a_series_that_is_a_folder_is_named_by_its_uid(
    tmp_path: Path, toy: Toy, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr(data, "create_table_artifact", lambda **fields: shown.append(fields))
    truth = toy(tmp_path, "1.2")
    folder = tmp_path / "Doe, John"
    set_aside(home.quarantine_csv, "1.2", folder, f"{folder}: no slices; copy it again")
    publish_quarantine.fn([truth], home)
    assert shown[0]["table"][0]["reason"] == "1.2: no slices; copy it again"
