"""What must an evaluation report know beside the scores?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from lungml.calibration import Calibration, Method, Probability
from lungml.compare import Difference, Statistic
from lungml.plots import Origin
from lungml.scorecard import Scorecard
from lungml.scored import Scored
from lungml.worst_cases import Case

SPLITS = {"val": "validation", "test": "test", "train": "training", "all": "all scans"}


@dataclass(frozen=True, kw_only=True)
class BundleMember:
    """One model of a bundle.

    Attributes:
        stage: segmentation, nodule or malignancy.
        uri: of the model.
        recipe: it was trained by; empty when unknown.
    """

    stage: str
    uri: str
    recipe: str = ""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Another bundle on the same scans.

    Attributes:
        name: in a word, such as "champion".
        bundle_uri: which it is.
        card: its scores.
        differences: the reported bundle's scores less its own, on the same resamples.
    """

    name: str
    bundle_uri: str
    card: Scorecard
    differences: Mapping[Statistic, Difference]


@dataclass(frozen=True, kw_only=True)
class ReportFacts:
    """What a report tells beside the scores.

    Attributes:
        title: of the page.
        origin: of the scans, "real" or "phantom".
        split: val, test, train or all.
        data: what the scans are called, such as "LUNA16"; no path.
        bundle_uri: of the bundle.
        bundle_origin: of the scans that it learned from.
        bundle_commit: of the code that put it together; empty when unknown.
        members: its models.
        grouping: how voxels became candidates: setting -> value.
        calibration: the method of each probability, see `lungml.calibration.Calibration.methods`.
        lungs_only: whether only the lungs were segmented, where they could be told.
        when: the evaluation ended; with a time zone.
        seed: of the resamples.
        commit: of the code that evaluated; empty when unknown.
        compared: other bundles on the same scans.
        uncalibrated: see `undo_calibration`.
        cases: the worst, see `lungml.worst_cases`.
        limits: sentences, with or without a full stop, that the report adds to those that always hold.

    Raises:
        ValueError: on an unknown split, a path for a name, or a time without a time zone.
    """

    title: str
    origin: Origin
    split: str
    data: str
    bundle_uri: str
    bundle_origin: Origin
    bundle_commit: str = ""
    members: tuple[BundleMember, ...]
    grouping: Mapping[str, Any]
    calibration: Mapping[Probability, Method]
    lungs_only: bool = False
    when: datetime
    seed: int
    commit: str = ""
    compared: tuple[Compared, ...] = ()
    uncalibrated: Mapping[Probability, Scored] = field(default_factory=dict)
    cases: tuple[Case, ...] = ()
    limits: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"unknown split {self.split!r}; choose one of {', '.join(SPLITS)}")
        if "/" in self.data or "\\" in self.data:
            raise ValueError("the data's name is a path: a report names no folder")
        if self.when.tzinfo is None:
            raise ValueError("the time of an evaluation needs a time zone")

    @property
    def split_name(self) -> str:
        """The split, in full."""
        return SPLITS[self.split]


def undo_calibration(calibration: Calibration, card: Scorecard) -> dict[Probability, Scored]:
    """What the networks said of the findings and nodules that a scorecard judges.

    Nothing of what has no curve, and nothing where the scans of several bundles are scored together: each has its own.
    """
    raw: dict[Probability, Scored] = {}
    if card.own_thresholds:
        return raw
    if calibration.nodule:
        raw["nodule"] = replace(card.nodule, probs=calibration.nodule.undo(card.nodule.probs))
    if calibration.malignancy:
        raw["malignancy"] = replace(card.malignancy, probs=calibration.malignancy.undo(card.malignancy.probs))
    return raw
