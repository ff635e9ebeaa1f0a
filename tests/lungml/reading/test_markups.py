"""Is what 3D Slicer gets to see right, and free of what names a patient?"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from lungml.candidates import GroupingSettings
from lungml.findings import Finding
from lungml.geometry import Grid, irc_to_xyz
from lungml.luna import Excluded
from lungml.marked import Marked
from lungml.reading.markups import markups_json
from lungml.reading.record import NOT_FOR, KnownNodule, KnownTruth, Opinion, Reading

GRID = Grid(
    shape_irc=(4, 6, 8),
    spacing_xyz=(0.7, 0.8, 2.5),
    origin_xyz=(-40, 10, 5),
    direction=((0, -1, 0), (1, 0, 0), (0, 0, 1)),
)
# Of a control point and of a list, as version 1.0.3 of Slicer's schema names them.
POINT = {"id", "label", "description", "position", "selected", "locked", "visibility", "positionStatus"}
LIST = {"type", "name", "coordinateSystem", "coordinateUnits", "locked", "controlPoints", "display"}
DISPLAY = {"visibility", "color", "selectedColor", "pointLabelsVisibility"}


def reading(**change: Any) -> Reading:
    x, y, z = irc_to_xyz((1, 2, 3), GRID).tolist()
    one = Finding(
        center_irc=(1, 2, 3),
        center_xyz=(x, y, z),
        diameter_mm=7.25,
        prob_nodule=0.934,
        prob_malignant=0.71,
        stage="malignant",
        reason="malignancy probability at least 0.5",
    )
    opinion = Opinion(
        bundle="models:/luna/3",
        asked_as="models:/luna@champion",
        recipe="r",
        origin="phantom",
        nodule_threshold=0.5,
        malignant_threshold=0.5,
        grouping=GroupingSettings(),
        findings=(
            one,
            replace(one, stage="benign", prob_malignant=0.1, reason="malignancy probability below 0.5"),
            replace(one, stage="filtered", prob_nodule=0.1, prob_malignant=math.nan, diameter_mm=math.nan, reason=""),
        ),
        marked=Marked.of_mask(np.zeros(GRID.shape_irc, dtype=np.bool_)),
    )
    fields = {
        "series_uid": "1.2.3",
        "hu": np.zeros(GRID.shape_irc, dtype=np.int16),
        "grid": GRID,
        "opinions": (opinion,),
        "made": datetime(2026, 1, 31, tzinfo=UTC),
    }
    return Reading(**(fields | change))


def lists_of(made: Reading) -> dict[str, dict[str, Any]]:
    held = json.loads(markups_json(made))
    assert set(held) == {"@schema", "markups"}
    assert held["@schema"].endswith("markups-schema-v1.0.3.json#")
    return {one["name"]: one for one in held["markups"]}


def test_a_list_for_each_stage_the_filtered_one_hidden() -> None:
    lists = lists_of(reading())
    assert list(lists) == [f"{stage} (models:/luna/3)" for stage in ("malignant", "benign", "filtered")]
    assert [one["display"]["visibility"] for one in lists.values()] == [True, True, False]
    for one in lists.values():
        assert set(one) == LIST
        assert set(one["display"]) == DISPLAY
        assert (one["type"], one["coordinateSystem"], one["coordinateUnits"]) == ("Fiducial", "LPS", "mm")
        assert len(one["display"]["color"]) == 3
        assert all(0 <= part <= 1 for part in one["display"]["color"])
        for point in one["controlPoints"]:
            assert set(point) == POINT
            assert isinstance(point["id"], str)
            assert point["positionStatus"] == "defined"


def test_a_point_says_where_it_is_and_why() -> None:
    lists = list(lists_of(reading()).values())
    (point,) = lists[0]["controlPoints"]
    assert point["label"] == "1 p=0.93"
    # By hand: row and column turned by 90 degrees, so x = -40 - 2 * 0.8 and y = 10 + 3 * 0.7.
    assert point["position"] == [pytest.approx(-41.6), pytest.approx(12.1), pytest.approx(7.5)]
    assert point["description"] == f"malignancy probability at least 0.5; malignant p=0.71; 7.2 mm; {NOT_FOR}"
    (point,) = lists[2]["controlPoints"]
    assert (point["label"], point["description"]) == ("3 p=0.10", NOT_FOR)


def test_two_opinions_and_the_truth_have_lists_of_their_own() -> None:
    first = reading().opinions[0]
    truth = KnownTruth(
        nodules=(KnownNodule(center_xyz=(1, 2, 3), diameter_mm=6, malignant=True),),
        excluded=(Excluded(series_uid="1.2.3", center_xyz=(4, 5, 6), diameter_mm=3),),
    )
    lists = lists_of(reading(opinions=(first, replace(first, bundle="models:/luna/4", findings=())), truth=truth))
    assert len(lists) == 8
    assert lists["benign (models:/luna/4)"]["controlPoints"] == []
    (nodule,) = lists["truth"]["controlPoints"]
    assert (nodule["position"], nodule["description"]) == ([1, 2, 3], "malignant; 6.0 mm")
    assert lists["excluded by the truth"]["display"]["visibility"] is False


def test_no_series_names_itself_in_it() -> None:
    assert "1.2.3" not in markups_json(reading())
