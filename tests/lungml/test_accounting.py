from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from lungml.accounting import (
    DIAMETER_KINDS,
    UNKNOWN,
    FollowedNodule,
    Funnel,
    Losses,
    count_losses,
    group_by_diameter,
    group_by_spacing,
    group_by_texture,
    where_lost,
)
from lungml.score import FILTERED, PREDICTED_BENIGN, PREDICTED_MALIGNANT

NODULE = FollowedNodule(
    scan=0,
    malignant=False,
    diameter_mm=7.0,
    slice_spacing_mm=1.0,
    texture="solid",
    lost=None,
    found_at_1_fps=True,
)
ONCE = np.ones((1, 3), dtype=np.int64)


@pytest.mark.parametrize(
    ("stages", "touched", "malignant", "lost"),
    [
        ([], False, True, "segmentation"),
        ([], True, True, "grouping"),
        ([FILTERED, FILTERED], True, False, "classifier"),
        ([FILTERED], False, True, "classifier"),  # a candidate beside a nodule that was not touched is followed on
        ([FILTERED, PREDICTED_BENIGN], True, True, "malignancy"),
        ([PREDICTED_BENIGN, PREDICTED_MALIGNANT], True, True, None),
        ([PREDICTED_BENIGN], True, False, None),
        ([PREDICTED_MALIGNANT], True, False, None),  # found; that it is benign is for the table
        ([PREDICTED_BENIGN], False, False, None),
    ],
)
def test_the_first_stage_that_lost_a_nodule(
    stages: list[int], touched: bool, malignant: bool, lost: str | None
) -> None:
    assert where_lost(np.array(stages, dtype=np.int64), touched=touched, malignant=malignant) == lost


def test_every_nodule_is_in_one_part() -> None:
    losses = count_losses([replace(NODULE, lost=lost) for lost in ("grouping", None, "grouping", "malignancy", None)])
    assert losses == Losses(
        nodules=5,
        lost={"quarantine": 0, "segmentation": 0, "grouping": 2, "classifier": 0, "malignancy": 1},
        right=2,
    )
    assert json.loads(json.dumps(losses.as_dict()))["lost"]["grouping"] == 2
    assert count_losses([]).nodules == 0
    with pytest.raises(ValueError, match="are not 3 nodules"):
        replace(losses, nodules=3)


def test_a_nodule_called_benign_was_found() -> None:
    found = [replace(NODULE, lost=lost).found for lost in (None, "malignancy", "classifier", "quarantine")]
    assert found == [True, True, False, False]


def test_diameters_on_a_border_belong_to_the_kind_above() -> None:
    diameters = [3.2, 5.99, 6, 7.99, 8, 9.99, 10, 19.99, 20, 35]
    groups = group_by_diameter([replace(NODULE, diameter_mm=d) for d in diameters], ONCE)
    assert [(g.name, g.nodules) for g in groups] == [(kind, 2) for kind in DIAMETER_KINDS]


def test_spacings_on_a_border_belong_to_the_kind_below() -> None:
    spacings = [0.6, 1.0000001, 1.01, 1.9999999, 2.01, None]  # a header's rounding is no other spacing
    groups = group_by_spacing([replace(NODULE, slice_spacing_mm=mm) for mm in spacings], ONCE)
    assert [(g.name, g.nodules) for g in groups] == [
        ("1 mm or less", 2), ("over 1 to 2 mm", 2), ("over 2 mm", 1), (UNKNOWN, 1),
    ]  # fmt: skip


def test_textures_are_as_given_and_what_is_not_known_comes_last() -> None:
    textures = ["solid", "", "ground glass", "solid"]
    groups = group_by_texture([replace(NODULE, texture=texture) for texture in textures], ONCE)
    assert [(g.name, g.nodules) for g in groups] == [("ground glass", 1), ("solid", 2), (UNKNOWN, 1)]


def test_where_nothing_is_known_there_are_no_groups() -> None:
    unknown = [replace(NODULE, texture="", slice_spacing_mm=None)] * 2
    assert group_by_texture(unknown, ONCE) == group_by_spacing(unknown, ONCE) == group_by_texture([], ONCE) == ()


def test_a_groups_band_counts_scans_as_often_as_they_were_drawn() -> None:
    # Scan 0: two nodules, one of them found; scans 1 and 2: one each, found; scan 3: none of this kind.
    small = [
        replace(NODULE, found_at_1_fps=False, lost="classifier"),
        NODULE,
        replace(NODULE, scan=1, lost="malignancy"),
        replace(NODULE, scan=2),
        replace(NODULE, scan=3, diameter_mm=30.0),
    ]
    # 1/2, 1, not defined, 3/4
    draws = np.array([[4, 0, 0, 0], [0, 2, 2, 0], [0, 0, 0, 4], [1, 1, 1, 1]])
    kinds = dict(zip(DIAMETER_KINDS, group_by_diameter(small, draws)))
    group = kinds["6 to 8 mm"]
    assert (group.nodules, group.found, group.sensitivity, group.left_out) == (4, 3, 3 / 4, 1)
    assert group.band == pytest.approx(tuple(np.percentile([1 / 2, 3 / 4, 1], [2.5, 97.5])))
    # One nodule that was found is no certainty.
    assert (kinds["20 mm or more"].sensitivity, kinds["20 mm or more"].left_out) == (1.0, 2)
    assert np.isnan(kinds["20 mm or more"].band).all()
    empty = kinds["under 6 mm"]
    assert (empty.nodules, empty.found) == (0, 0)
    assert np.isnan([empty.sensitivity, *empty.band]).all()
    assert json.loads(json.dumps(empty.as_dict(), allow_nan=False)) == {
        "name": "under 6 mm",
        "nodules": 0,
        "found": 0,
        "sensitivity": None,
        "band": [None, None],
        "left_out": 4,
    }


def test_a_kind_that_two_scans_hold_or_that_is_always_found_has_no_band() -> None:
    draws = np.array([[2, 1, 0], [1, 1, 1], [0, 2, 1]])
    missed = replace(NODULE, found_at_1_fps=False)
    two = [NODULE, replace(missed, scan=1), replace(missed, scan=1)]
    three = [*two, replace(NODULE, scan=2)]
    always = [replace(NODULE, scan=scan) for scan in range(3)]
    bands = [group_by_texture(nodules, draws)[0].band for nodules in (two, three, always)]
    assert np.isnan([*bands[0], *bands[2]]).all()
    assert bands[1] == pytest.approx(tuple(np.percentile([2 / 4, 2 / 4, 1 / 5], [2.5, 97.5])))


def test_the_funnel_is_a_mean_over_scans() -> None:
    funnel = Funnel.of([(100, 30, 5, 2, 1), (300, 10, 0, 0, 0)])
    assert funnel == Funnel(voxels=200, flagged=20, candidates=2.5, nodules=1, malignant=0.5)
    assert math.isnan(Funnel.of([]).voxels)
    assert Funnel.of([]).as_dict() == dict.fromkeys(("voxels", "flagged", "candidates", "nodules", "malignant"))
