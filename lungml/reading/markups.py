"""How does 3D Slicer get to see a scan's findings, as points in its own format?

A markups file (.mrk.json) is loaded beside the scan, of whatever format that is; it names no patient.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, get_args

from lungml.findings import Finding, Stage
from lungml.reading.colors import MARK_COLORS, rgb
from lungml.reading.record import NOT_FOR, KnownTruth, Opinion, Reading

SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
HIDDEN = ("filtered", "excluded")  # many, and nobody wants them at first


def markups_json(reading: Reading) -> str:
    """The text of a markups file: a list of points for each stage of each opinion, and for the truth where it is known.

    Positions are mm, LPS. A point is labelled with its finding's number and nodule probability; its description says
    why it ended there, and how large it is. Lists are there when they are empty too; those of filtered and excluded
    places are hidden at first.
    """
    lists = [
        _points(
            f"{stage} ({opinion.bundle})",
            stage,
            [_point(str(n), _label(n, f), f.center_xyz, _words(f)) for n, f in _of_stage(opinion, stage)],
        )
        for opinion in reading.opinions
        for stage in reversed(get_args(Stage))
    ]
    if reading.truth is not None:
        lists += _truth(reading.truth)
    return json.dumps({"@schema": SCHEMA, "markups": lists}, indent=1, allow_nan=False) + "\n"


def _of_stage(opinion: Opinion, stage: str) -> list[tuple[int, Finding]]:
    return [(number, f) for number, f in enumerate(opinion.findings, start=1) if f.stage == stage]


def _truth(truth: KnownTruth) -> list[dict[str, Any]]:
    said = {None: "malignancy unknown", True: "malignant", False: "benign"}
    nodules = [
        _point(str(n), f"truth {n}", nodule.center_xyz, f"{said[nodule.malignant]}; {nodule.diameter_mm:.1f} mm")
        for n, nodule in enumerate(truth.nodules, start=1)
    ]
    excluded = [
        _point(str(n), f"excluded {n}", e.center_xyz, f"neither a hit nor a false positive; {e.diameter_mm:.1f} mm")
        for n, e in enumerate(truth.excluded, start=1)
    ]
    return [_points("truth", "truth", nodules), _points("excluded by the truth", "excluded", excluded)]


def _points(name: str, kind: str, points: list[dict[str, Any]]) -> dict[str, Any]:
    color = [round(part, 4) for part in rgb(MARK_COLORS[kind])]
    return {
        "type": "Fiducial",
        "name": name,
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": True,
        "controlPoints": points,
        "display": {
            "visibility": kind not in HIDDEN,
            "color": color,
            "selectedColor": color,
            "pointLabelsVisibility": True,
        },
    }


def _point(identifier: str, label: str, center_xyz: Sequence[float], description: str) -> dict[str, Any]:
    return {
        "id": identifier,
        "label": label,
        "description": description,
        "position": [round(mm, 4) for mm in center_xyz],
        "selected": True,
        "locked": True,
        "visibility": True,
        "positionStatus": "defined",
    }


def _label(number: int, finding: Finding) -> str:
    return f"{number} p={finding.prob_nodule:.2f}"


def _words(finding: Finding) -> str:
    malignant = "" if math.isnan(finding.prob_malignant) else f"malignant p={finding.prob_malignant:.2f}"
    diameter = "" if math.isnan(finding.diameter_mm) else f"{finding.diameter_mm:.1f} mm"
    return "; ".join(words for words in (finding.reason, malignant, diameter, NOT_FOR) if words)
