"""What must an evaluation report know beside the scores?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

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
        commit: of the code that trained it; empty when unknown.
    """

    stage: str
    uri: str
    recipe: str = ""
    commit: str = ""


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
        members: its models.
        grouping: how voxels became candidates: setting -> value.
        calibration: "platt" or "none", see `lungml.calibration`.
        when: the evaluation ended; with a time zone.
        seed: of the resamples.
        commit: of the code that evaluated; empty when unknown.
        durations_s: what took how many seconds.
        compared: other bundles on the same scans.
        uncalibrated: what the networks said before calibration, of the findings and nodules that the scorecard judges
            under the same names.
        cases: the worst, see `lungml.worst_cases`.
        limits: sentences that the report adds to those that always hold.

    Raises:
        ValueError: on an unknown split, a path for a name, or a time without a time zone.
    """

    title: str
    origin: Origin
    split: str
    data: str
    bundle_uri: str
    members: tuple[BundleMember, ...]
    grouping: Mapping[str, Any]
    calibration: str
    when: datetime
    seed: int
    commit: str = ""
    durations_s: Mapping[str, float] = field(default_factory=dict)
    compared: tuple[Compared, ...] = ()
    uncalibrated: Mapping[Literal["nodule", "malignancy"], Scored] = field(default_factory=dict)
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
