from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lungml import crop_cache, groups
from lungml.crop_cache import BENIGN, MALIGNANT, NON_NODULE
from lungml.errors import TrainingError
from lungml.groups import StoreError
from lungml.readiness import check_ready
from lungml.recipes.data import PreparedScan, open_crops
from tests.lungml.conftest import GRID

ALL = (MALIGNANT, BENIGN, NON_NODULE)


def scan(folder: Path, split: str, labels: tuple[int, ...]) -> PreparedScan:
    """A scan of nothing but crop labels, each with a slab."""
    group = folder / f"{split}-{'-'.join(map(str, labels))}"
    sites = [crop_cache.CropSite(center_irc=(18, 50, 50), label=label, diameter_mm=5) for label in labels]
    empty = np.zeros(GRID.shape_irc, np.int16)
    crop_cache.write_scan_crops(
        group, empty, empty.astype(np.uint8), GRID, sites, slab_sites=range(len(sites)), key={"labels": labels}
    )
    return PreparedScan(
        series_uid=group.name, split=split, store=folder, mask_name="mask", crops=group,  # type: ignore[arg-type]
        crops_digest=groups.key_digest({"labels": labels}), digest="", nodules=(), excluded=(),
    )  # fmt: skip


def ready(folder: Path, *, train: tuple[int, ...] = ALL, val: tuple[int, ...] = ALL, test: tuple[int, ...] = ALL):  # type: ignore[no-untyped-def]
    scans = [scan(folder, "train", train), scan(folder, "val", val), scan(folder, "test", test)]

    def check(stage: Any, **change: Any) -> tuple[str, ...]:
        return check_ready(stage, scans, **{"batch_size": 2, **change})

    return check


def test_enough_is_enough(tmp_path: Path, toy_scans: list[PreparedScan]) -> None:
    check = ready(tmp_path)
    assert check("segmentation") == check("classification", crop_shape=(32, 48, 48)) == check("malignancy") == ()
    assert check("classification", batch_size=3) == ()
    assert check_ready("classification", toy_scans, batch_size=24) == ()


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("labels", "fails"),
    [
        ((NON_NODULE, NON_NODULE), {"segmentation": "nodule", "classification": "nodule", "malignancy": "malignant"}),
        ((BENIGN, NON_NODULE), {"malignancy": "malignant nodule"}),
        ((MALIGNANT, NON_NODULE), {"malignancy": "benign nodule"}),
        ((MALIGNANT, BENIGN), {"classification": "non-nodule"}),
        ((), {"segmentation": "nodule", "classification": "nodule", "malignancy": "malignant nodule"}),
    ],
)
def test_a_split_without_a_class_is_one_line_before_training(
    split: str, labels: tuple[int, ...], fails: dict[str, str], tmp_path: Path
) -> None:
    check = ready(tmp_path, **{split: labels})
    for stage in ("segmentation", "classification", "malignancy"):
        if stage not in fails:
            assert check(stage) == ()
            continue
        with pytest.raises(TrainingError) as caught:
            check(stage)
        assert str(caught.value).startswith(f"the 1 {split} scans hold no {fails[stage]}")
        assert len(str(caught.value).splitlines()) == 1


def test_a_test_split_without_a_class_is_said(tmp_path: Path) -> None:
    (line,) = ready(tmp_path, test=(BENIGN, NON_NODULE))("malignancy")
    assert line == ("the 1 test scans hold no malignant nodule for malignancy: test scores that need one will be NaN")


def test_fewer_samples_than_a_batch(tmp_path: Path) -> None:
    check = ready(tmp_path)
    with pytest.raises(TrainingError, match=r"^the 1 train scans hold 3 samples for classification, fewer than a "):
        check("classification", batch_size=4)


def test_mined_crops_count_where_they_are_used(tmp_path: Path) -> None:
    of, val, test = (scan(tmp_path, split, ALL) for split in ("train", "val", "test"))
    of = replace(of, mined=scan(tmp_path / "mined", "train", ALL).crops)
    assert check_ready("classification", [of, val, test], batch_size=6, mined=True) == ()
    with pytest.raises(TrainingError, match="hold 3 samples"):
        check_ready("classification", [of, val, test], batch_size=6)


def test_crops_of_another_shape_than_the_networks(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"its crops are of \(32, 48, 48\) voxels, the network takes \(16, 32, 32\)"
    ):
        ready(tmp_path)("classification", crop_shape=(16, 32, 32))


def test_a_crop_cache_of_other_settings_is_one_line(tmp_path: Path) -> None:
    of = scan(tmp_path, "train", ALL)
    stale = replace(of, crops_digest=groups.key_digest({"labels": ALL, "negatives": "others"}))
    with pytest.raises(StoreError) as caught:
        open_crops([stale], ["labels"])
    assert str(caught.value) == f"{of.crops}: changed by another run since this one prepared it; run again"
    gone = replace(of, crops=tmp_path / "gone")
    with pytest.raises(StoreError, match=r"no such array; delete .*gone and prepare again"):
        check_ready("classification", [gone], batch_size=1)
