"""A reading of a small scan, made by hand."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import numpy as np

from lungml.candidates import GroupingSettings
from lungml.findings import Finding
from lungml.geometry import Grid, irc_to_xyz
from lungml.luna import Excluded
from lungml.marked import Marked
from lungml.reading.record import KnownNodule, KnownTruth, Opinion, Reading

GRID = Grid(shape_irc=(12, 40, 48), spacing_xyz=(0.8, 0.7, 2.0), origin_xyz=(-20.0, -15.0, 100.0))
MADE = datetime(2026, 1, 31, 12, tzinfo=UTC)
# (index, row, col), diameter, nodule, malignancy, stage
PLACES = (
    ((6, 20, 24), 6.0, 0.93, 0.81, "malignant"),
    ((4, 10, 10), 4.0, 0.64, 0.12, "benign"),
    ((8, 30, 40), 3.0, 0.22, math.nan, "filtered"),
    ((2, 5, 30), math.nan, 0.01, math.nan, "filtered"),
)


def toy_finding(
    center: tuple[float, float, float], diameter: float, nodule: float, malignant: float, stage: Any
) -> Finding:
    x, y, z = irc_to_xyz(center, GRID).tolist()
    return Finding(
        center_irc=center,
        center_xyz=(x, y, z),
        diameter_mm=diameter,
        prob_nodule=nodule,
        prob_malignant=malignant,
        stage=stage,
        reason=f"said of {stage}",
        prob_segmentation=0.75,
    )


def toy_volume() -> np.ndarray:
    """Lung with a bright ball at every place of a known size, (index, row, col) int16 HU."""
    hu = np.full(GRID.shape_irc, -850, np.int16)
    axes = np.ogrid[tuple(slice(n) for n in GRID.shape_irc)]
    for center, diameter, *_ in PLACES:
        squared = sum(((a - c) * mm) ** 2 for a, c, mm in zip(axes, center, GRID.spacing_irc))
        hu[squared <= (diameter / 2) ** 2 if math.isfinite(diameter) else np.zeros(hu.shape, bool)] = 40
    return hu


def toy_opinion(**changed: Any) -> Opinion:
    hu = toy_volume()
    fields: dict[str, Any] = {
        "bundle": "models:/luna/3",
        "asked_as": "models:/luna@champion",
        "recipe": "best",
        "origin": "phantom",
        "nodule_threshold": 0.5,
        "malignant_threshold": 0.5,
        "grouping": GroupingSettings(rule="best"),
        "findings": tuple(toy_finding(*place) for place in PLACES),
        "marked": Marked.of(np.where(hu > 0, 0.75, 0.0), 0.3),
    }
    return Opinion(**{**fields, **changed})


def toy_truth() -> KnownTruth:
    """The first place as a nodule, the second as excluded, and a nodule where nobody looked."""
    first, second = (toy_finding(*place).center_xyz for place in PLACES[:2])
    x, y, z = irc_to_xyz((10, 35, 5), GRID).tolist()
    return KnownTruth(
        nodules=(
            KnownNodule(center_xyz=first, diameter_mm=6.0, malignant=True),
            KnownNodule(center_xyz=(x, y, z), diameter_mm=5.0),
        ),
        excluded=(Excluded(series_uid="1.2.3", center_xyz=second, diameter_mm=10.0),),
    )


def toy_reading(**changed: Any) -> Reading:
    fields: dict[str, Any] = {
        "series_uid": "1.2.3",
        "hu": toy_volume(),
        "grid": GRID,
        "opinions": (toy_opinion(),),
        "made": MADE,
    }
    return Reading(**{**fields, **changed})
