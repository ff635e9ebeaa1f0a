"""Scans of 8 x 16 x 16 voxels of noise, keyed as the pipeline keys them, and one thing wrong at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lungml import crop_cache, groups, recipes, store
from lungml.errors import LunaError
from lungml.geometry import Grid
from lungml.leaks import LeakError, check_splits, too_good
from lungml.loading import Batch
from lungml.recipes import classification, malignancy, segmentation
from lungml.recipes.data import PreparedScan
from lungml.sampling import batches

GRID = Grid(shape_irc=(8, 16, 16), spacing_xyz=(1.0, 1.0, 1.5), origin_xyz=(-40, 10, 5))
SPLITS = {"a": "train", "b": "train", "c": "val", "d": "test"}


def volume(number: int) -> np.ndarray:
    """Noise below as many slices of air as its number says, so that no two pack to one size."""
    hu = np.random.default_rng(number).integers(-900, 100, GRID.shape_irc, dtype=np.int16)
    hu[:number] = -1000
    return hu


def write_crops(group: Path, hu: np.ndarray, key: dict[str, Any]) -> None:
    sites = [
        crop_cache.CropSite(center_irc=(4, 8, 8), label=crop_cache.BENIGN, diameter_mm=5),
        crop_cache.CropSite(center_irc=(2, 3, 3), label=crop_cache.NON_NODULE, diameter_mm=math.nan),
    ]
    crop_cache.write_scan_crops(group, hu, np.zeros(hu.shape, np.uint8), GRID, sites, slab_sites=[0], key=key)


def scan(home: Path, uid: str, split: str, hu: np.ndarray, *, source: str = "", mined: bool = False) -> PreparedScan:
    """One scan's store and crops under keys such as `tasks` makes."""
    made_of = store.scan_key(source or f"files of {uid}")
    store.write_scan(home / "scans" / f"{uid}.zarr", hu, GRID, key=made_of)
    key = {"scan": made_of, "series_uid": uid, "mask": "of it" if split == "train" else None}
    write_crops(home / "crops" / uid, hu, key)
    prepared = PreparedScan(
        series_uid=uid,
        split=split,  # type: ignore[arg-type]
        store=home / "scans" / f"{uid}.zarr",
        mask_name="mask",
        crops=home / "crops" / uid,
        crops_digest=groups.key_digest(key),
        digest=groups.key_digest(key),
        nodules=(),
        excluded=(),
    )
    return mine(home, prepared) if mined else prepared


def mine(home: Path, of: PreparedScan, **change: str) -> PreparedScan:
    key = {"crops": of.digest, "series_uid": of.series_uid, "model": "m-1", **change}
    write_crops(home / "mined" / of.series_uid, volume(9), key)
    return replace(of, mined=home / "mined" / of.series_uid, digest=groups.key_digest(key))


@pytest.fixture
def scans(tmp_path: Path) -> list[PreparedScan]:
    """Two to learn from, with mined crops, one to validate and one to test on."""
    return [
        scan(tmp_path, uid, split, volume(number), mined=split == "train")
        for number, (uid, split) in enumerate(SPLITS.items())
    ]


def refused(scans: list[PreparedScan]) -> str:
    with pytest.raises(LeakError) as caught:
        check_splits(scans)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert isinstance(caught.value, LunaError)
    return line


def test_clean_splits_pass(scans: list[PreparedScan], toy_scans: list[PreparedScan]) -> None:
    check_splits(scans)
    check_splits(scans[:1])
    check_splits([])
    check_splits(toy_scans)  # keys that say nothing prove nothing
    check_splits([*scans, scans[0]])  # twice on one side is no leak


def test_a_series_stands_on_one_side(scans: list[PreparedScan]) -> None:
    assert "series a stands in two splits: train and val" in refused([*scans, replace(scans[0], split="val")])


def test_a_patient_stands_on_one_side(scans: list[PreparedScan]) -> None:
    a, b, c, d = scans
    mark = "00112233445566ff"
    check_splits([replace(a, patient=mark), replace(b, patient=mark), c, d])
    line = refused([replace(a, patient=mark), b, c, replace(d, patient=mark)])
    assert line.startswith(f"patient {mark} stands in two splits: a (train) and d (test)")


def test_one_store_and_one_crop_group_serve_one_side(scans: list[PreparedScan], tmp_path: Path) -> None:
    a, b, c, d = scans
    assert "one store stands in two splits: a (train) and c (val)" in refused([a, b, replace(c, store=a.store), d])
    link = tmp_path / "link"
    link.symlink_to(a.crops)
    assert "one group of crops stands in two splits: a (train) and d (test)" in refused(
        [a, b, c, replace(d, crops=link, crops_digest="other")]
    )


def test_a_training_scan_that_is_given_a_validation_scans_crops(scans: list[PreparedScan], tmp_path: Path) -> None:
    a, b, c, d = scans
    assert "crops of one making" in refused(
        [replace(a, crops=tmp_path / "elsewhere", crops_digest=c.crops_digest), b, c, d]
    )
    # Copied to the training scan's own place: no path and no digest is shared, only what the key says gives it away.
    key = {**groups.read_attributes(c.crops)["key"], "mask": "of it"}
    moved = replace(a, crops=tmp_path / "a", crops_digest=groups.key_digest(key))
    write_crops(moved.crops, volume(2), key)
    assert "the crops given as a (train) are of c" in refused([moved, b, replace(c, crops_digest="other"), d])
    # Keys from before the uid was part of them.
    old = {name: value for name, value in key.items() if name != "series_uid"}
    moved = replace(moved, crops=tmp_path / "a2", crops_digest=groups.key_digest(old))
    write_crops(moved.crops, volume(2), old)
    line = refused([moved, b, c, d])
    assert "the crops of a (train) were not cut from its store but from c (val)" in line


def test_only_training_scans_are_mined(scans: list[PreparedScan], tmp_path: Path) -> None:
    a, b, c, d = scans
    assert "candidates were mined from c, a val scan" in refused([a, b, mine(tmp_path, c), d])
    assert "one group of crops stands in two splits" in refused([replace(a, mined=c.crops), b, c, d])
    assert "the mined crops given as a (train) are of c" in refused_mined(a, b, c, d, tmp_path, series_uid="c")
    assert "the mined crops of a (train) were mined from another scan" in refused_mined(
        a, b, c, d, tmp_path, crops=c.digest
    )


def refused_mined(a: PreparedScan, b: PreparedScan, c: PreparedScan, d: PreparedScan, home: Path, **key: str) -> str:
    plain = replace(a, mined=None, digest=a.crops_digest)
    groups.remove(home / "mined" / "a")
    with pytest.raises(LeakError) as caught:
        check_splits([mine(home, plain, **key), b, c, d])
    return str(caught.value)


def test_one_scan_under_two_names(scans: list[PreparedScan], tmp_path: Path) -> None:
    # The same folder of DICOM files, of the same names and times.
    twin = scan(tmp_path, "e", "test", volume(7), source="files of a")
    assert "a (train) and e (test) were read from the same files" in refused([*scans, twin])
    # The same voxels under other names.
    copy = scan(tmp_path, "f", "val", volume(0))
    assert "a (train) and f (val) hold the same voxels; keep one" in refused([*scans, copy])
    check_splits([*scans, scan(tmp_path, "g", "train", volume(0))])
    # As many packed bytes, other voxels: noise packs to its own size.
    mirrored = scan(tmp_path, "h", "val", np.ascontiguousarray(volume(0)[::-1]))
    sizes = {groups.read_attributes(s.store)["bytes"]["volume"] for s in (scans[0], mirrored)}
    assert len(sizes) == 1
    check_splits([*scans, mirrored])


def test_what_is_not_there_is_no_leak(scans: list[PreparedScan], tmp_path: Path) -> None:
    with pytest.raises(groups.StoreError, match="no store there"):
        check_splits([*scans, replace(scans[0], series_uid="x", store=tmp_path / "x", crops=tmp_path / "y")])


def test_as_many_scans_as_luna16_has_are_checked_in_a_second(scans: list[PreparedScan]) -> None:
    a, _, c, d = scans
    started = time.process_time()
    check_splits([*[a] * 710, *[c] * 89, *[d] * 89])
    assert time.process_time() - started < 1


@pytest.mark.parametrize("stage", ["segmentation", "classification", "malignancy"])
def test_no_crop_of_a_held_out_scan_is_in_a_training_batch(
    stage: str, toy_scans: list[PreparedScan], tmp_path: Path
) -> None:
    """Held-out crops are all of one value that no training crop has: one batch with it would be seen."""
    marked = []
    for of in toy_scans:
        if of.split == "train":
            marked.append(replace(of, mined=of.crops, digest=of.crops_digest))
            continue
        hu, mask = np.full((36, 104, 104), 777, np.int16), np.ones((36, 104, 104), np.uint8)
        sites = [
            crop_cache.CropSite(center_irc=(18, 50, 50), label=label, diameter_mm=5)
            for label in (crop_cache.MALIGNANT, crop_cache.BENIGN, crop_cache.NON_NODULE)
        ]
        folder = tmp_path / of.series_uid
        crop_cache.write_scan_crops(folder, hu, mask, GRID, sites, slab_sites=[0, 1, 2], key={})
        marked.append(replace(of, crops=folder))
    assert not any(has_777(batch) for batch in epochs(stage, marked))
    leaking = [replace(of, split="train") for of in marked]
    assert any(has_777(batch) for batch in epochs(stage, leaking))


def has_777(batch: Batch) -> bool:
    return bool((batch.arrays[0] == 777).all(dim=tuple(range(1, batch.arrays[0].ndim))).any())


def epochs(stage: str, scans: list[PreparedScan]) -> Iterator[Batch]:
    """The batches of three epochs that draw from every row."""
    where = {"device": torch.device("cpu"), "generator": torch.Generator().manual_seed(0)}
    problem: Any
    if stage == "segmentation":
        problem = segmentation.SegmentationProblem(segmentation.demo(), scans, **where)
    elif stage == "classification":
        problem = classification.classification_problem(classification.demo(), scans, **where)
    else:
        problem = malignancy.malignancy_problem(recipes.demo().scratch, scans, nodule_weights={}, **where)
    for epoch in (1, 2, 3):
        order = problem.order(np.random.default_rng(epoch), 64, epoch)
        yield from problem.loaded(batches(order, 8))


@pytest.mark.parametrize(
    ("metrics", "positives", "negatives", "said"),
    [
        ({"auc": 1.0, "f1": 0.9}, 10, 10, "validation auc 1.0000 on 10 positives and 10 negatives"),
        ({"auc": 0.9995, "f1": 0.9}, 30, 40, "auc 0.9995"),
        ({"auc": 0.9994, "f1": 0.9989}, 300, 400, None),
        ({"f1": 0.999, "auc": math.nan}, 10, 10, "f1 0.9990"),
        ({"auc": 1.0, "f1": 1.0}, 10, 10, "auc 1.0000 and f1 1.0000"),
        ({"auc": 1.0, "f1": 1.0}, 9, 10, None),
        ({"auc": 1.0, "f1": 1.0}, 10, 9, None),
        ({"loss": 0.0, "recall": 1.0}, 100, 100, None),
        ({"auc": math.nan, "f1": math.nan}, 100, 100, None),
    ],
)
def test_too_good_to_be_true(metrics: dict[str, float], positives: int, negatives: int, said: str | None) -> None:
    line = too_good("malignancy", metrics, positives, negatives)
    assert (line is None) == (said is None)
    if said:
        assert line is not None
        assert said in line
        assert line.startswith("malignancy: ")
        assert len(line.splitlines()) == 1
