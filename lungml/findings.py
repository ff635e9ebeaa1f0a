"""Which findings does this scan hold, and what did each stage think of them?"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from lungml.answers import Answers
from lungml.calibration import Calibration, logits_of
from lungml.candidates import GroupingSettings, group_candidates
from lungml.classify import classify
from lungml.errors import FindingError
from lungml.field import candidates_in, field_to_read
from lungml.files import csv_text, write_text_atomic
from lungml.geometry import Grid, irc_to_xyz
from lungml.inference import InferenceSettings
from lungml.models.nodule_net import NoduleNet
from lungml.models.unet import UNet
from lungml.segment import segment

Stage = Literal["filtered", "benign", "malignant"]
Member = Literal["segmentation", "nodule", "malignancy"]
FINDINGS_COLUMNS = (
    "series_uid", "x_mm", "y_mm", "z_mm", "index", "row", "col", "prob_nodule", "prob_malignant", "stage",
    "diameter_mm", "reason", "prob_segmentation",
)  # fmt: skip
ASKED_DIGITS = 6  # of the logit from which on malignancy is asked; a little below it is asked too


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One candidate with what the classifiers said; none is ever left out.

    Attributes:
        center_irc: fractional voxels.
        center_xyz: the same point, mm, LPS.
        diameter_mm: of a sphere of the volume that the segmentation marked; NaN where nothing tells it.
        prob_nodule: probability of being a nodule, calibrated where the bundle is.
        prob_malignant: probability of malignancy, given that it is one, calibrated where the bundle is; NaN where
            the malignancy models were not asked.
        stage: where it ended: filtered (taken for no nodule), benign or malignant.
        reason: why it ended there, in words.
        prob_segmentation: mean probability of the voxels that the segmentation marked there; NaN where it is not kept.
    """

    center_irc: tuple[float, float, float]
    center_xyz: tuple[float, float, float]
    diameter_mm: float = math.nan
    prob_nodule: float
    prob_malignant: float
    stage: Stage
    reason: str = ""
    prob_segmentation: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Trained models and the settings that make findings of them; the models are in eval mode on one device.

    Of several models for one question, such as those of several seeds, the probabilities are averaged. Each costs
    what one costs.

    Attributes:
        segmentation, nodule, malignancy: one model or more each; a model given alone becomes a tuple of one.
        grouping: how voxels become candidates.
        calibration: what turns the averaged probabilities into those that a finding shows.
        nodule_threshold: on the probability that a finding shows, inclusive.
        malignant_threshold: the same.
        judge_all: ask the malignancy models about every candidate, not only about those taken for nodules.
        flips: whose answers are averaged over mirror images as well: the U-Net sees each slice in its four mirror
            images in plane and so costs four times as much, a classifier sees each crop in all eight and costs
            eight times as much.
        inference: what is done to be faster than float32 on the full field.

    Raises:
        ValueError: when a member has no model, a threshold is no probability, or `flips` names no member.
    """

    segmentation: tuple[UNet, ...]
    nodule: tuple[NoduleNet, ...]
    malignancy: tuple[NoduleNet, ...]
    grouping: GroupingSettings = field(default_factory=GroupingSettings)
    calibration: Calibration = field(default_factory=Calibration)
    nodule_threshold: float = 0.5
    malignant_threshold: float = 0.5
    judge_all: bool = False
    flips: tuple[Member, ...] = ()
    inference: InferenceSettings = field(default_factory=InferenceSettings)

    def __post_init__(self) -> None:
        for name in ("nodule_threshold", "malignant_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} is not in [0, 1]")
        object.__setattr__(self, "flips", tuple(self.flips))  # JSON gives a list
        unknown = sorted(set(self.flips) - set(get_args(Member)))
        if unknown:
            raise ValueError(f"flips names {', '.join(unknown)}; choose from {', '.join(get_args(Member))}")
        for name in get_args(Member):
            given = getattr(self, name)
            models = (given,) if isinstance(given, torch.nn.Module) else tuple(given)
            if not models:
                raise ValueError(f"the bundle has no {name} model")
            for model in models:
                model.eval()
            object.__setattr__(self, name, models)


def ask(
    hu: npt.NDArray[np.int16],
    grid: Grid,
    bundle: Bundle,
    *,
    on_slice: Callable[[int, int], None] | None = None,
) -> Answers:
    """Segment a scan, group what was marked, and ask the classifiers about every candidate.

    Args:
        hu: (index, row, col) int16, not clipped; left as it is.
        grid: the scan's sampling grid.
        bundle: models and settings; where a member has several models, their probabilities are averaged.
        on_slice: progress of the segmentation, see `segment`.
    """
    read = field_to_read(hu, grid, bundle.inference)
    marked = segment(
        hu,
        bundle.segmentation,
        floor=bundle.grouping.floor,
        flips="segmentation" in bundle.flips,
        on_slice=on_slice,
        field=read,
        inference=bundle.inference,
    )
    candidates = candidates_in(group_candidates(marked, hu, grid, bundle.grouping), read)
    centers = candidates.centers_irc
    prob_nodule = classify(
        hu, centers, bundle.nodule, grid=grid, flips="nodule" in bundle.flips, inference=bundle.inference
    ).mean(axis=0)
    asked = np.full(len(centers), bundle.judge_all)
    lowest = asked_from(bundle.calibration, bundle.nodule_threshold) - 10.0**-ASKED_DIGITS
    asked |= logits_of(prob_nodule) >= lowest
    prob_malignant = np.full(len(centers), np.nan)
    prob_malignant[asked] = classify(
        hu,
        centers[asked],
        bundle.malignancy,
        grid=grid,
        flips="malignancy" in bundle.flips,
        inference=bundle.inference,
    ).mean(axis=0)
    return Answers(marked=marked, candidates=candidates, prob_nodule=prob_nodule, prob_malignant=prob_malignant)


def asked_from(calibration: Calibration, nodule_threshold: float) -> float:
    """The logit of the networks' probability from which on malignancy is asked: the same before and after calibration.

    It is rounded, since a threshold that went through a curve and back is not the same to the last bit.
    """
    wanted = float(logits_of(nodule_threshold))
    curve = calibration.nodule
    return round((wanted - curve.intercept) / curve.slope if curve else wanted, ASKED_DIGITS)


def judge(answers: Answers, grid: Grid, bundle: Bundle) -> tuple[Finding, ...]:
    """Every candidate as a finding, the most probable nodule first.

    Raises:
        FindingError: when a candidate reaches the nodule threshold whose malignancy was not asked, or a network gave a
            probability that is not a number.
    """
    candidates = answers.candidates
    if np.isnan(answers.prob_nodule).any():
        raise FindingError("a nodule classifier gave a probability that is not a number; train or import it again")
    prob_nodule = bundle.calibration.nodule_probs(answers.prob_nodule)
    prob_malignant = bundle.calibration.malignancy_probs(answers.prob_malignant)
    points = irc_to_xyz(candidates.centers_irc, grid)
    findings = []
    for position in np.argsort(-answers.prob_nodule, kind="stable").tolist():
        nodule, malignant = float(prob_nodule[position]), float(prob_malignant[position])
        if nodule >= bundle.nodule_threshold and math.isnan(malignant):
            raise FindingError("a malignancy classifier gave a probability that is not a number, or was not asked")
        index, row, col = candidates.centers_irc[position].tolist()
        x, y, z = points[position].tolist()
        stage, reason = _end(nodule, malignant, bundle)
        findings.append(
            Finding(
                center_irc=(index, row, col),
                center_xyz=(x, y, z),
                diameter_mm=float(candidates.diameters_mm[position]),
                prob_nodule=nodule,
                prob_malignant=malignant,
                stage=stage,
                reason=reason,
                prob_segmentation=float(candidates.scores[position]),
            )
        )
    return tuple(findings)


def _end(nodule: float, malignant: float, bundle: Bundle) -> tuple[Stage, str]:
    """Where a candidate ends, and why."""
    if nodule < bundle.nodule_threshold:
        return "filtered", f"nodule probability below {bundle.nodule_threshold:.3g}"
    if malignant < bundle.malignant_threshold:
        return "benign", f"malignancy probability below {bundle.malignant_threshold:.3g}"
    return "malignant", f"malignancy probability at least {bundle.malignant_threshold:.3g}"


def find_nodules(
    hu: npt.NDArray[np.int16],
    grid: Grid,
    bundle: Bundle,
    *,
    on_slice: Callable[[int, int], None] | None = None,
) -> tuple[Finding, ...]:
    """Scan in, every candidate out, the most probable nodule first; arguments and errors as of `ask` and `judge`."""
    return judge(ask(hu, grid, bundle, on_slice=on_slice), grid, bundle)


def findings_text(series_uid: str, findings: Sequence[Finding]) -> str:
    """The text of a `findings.csv`, every candidate a row; a scan without candidates has a header only."""
    return csv_text(FINDINGS_COLUMNS, findings_rows(series_uid, findings))


def findings_rows(series_uid: str, findings: Sequence[Finding]) -> list[tuple[Any, ...]]:
    """A scan's rows of a table with `FINDINGS_COLUMNS`."""
    return [
        (
            series_uid,
            *(f"{mm:.4f}" for mm in f.center_xyz),
            *(f"{voxel:.4f}" for voxel in f.center_irc),
            f.prob_nodule,  # exact: whoever reads it decides as we do
            "" if math.isnan(f.prob_malignant) else f.prob_malignant,
            f.stage,
            "" if math.isnan(f.diameter_mm) else f"{f.diameter_mm:.2f}",
            f.reason,
            "" if math.isnan(f.prob_segmentation) else f"{f.prob_segmentation:.4f}",
        )
        for f in findings
    ]


def write_findings(path: Path, series_uid: str, findings: Sequence[Finding]) -> None:
    """Write a `findings.csv`, whole or not at all."""
    write_text_atomic(path, findings_text(series_uid, findings))


def read_findings(path: Path) -> tuple[Finding, ...]:
    """The findings of a `findings.csv`, in its order."""
    with path.open(newline="") as handle:
        return tuple(
            Finding(
                center_irc=(float(row["index"]), float(row["row"]), float(row["col"])),
                center_xyz=(float(row["x_mm"]), float(row["y_mm"]), float(row["z_mm"])),
                prob_nodule=float(row["prob_nodule"]),
                prob_malignant=float(row["prob_malignant"] or math.nan),
                stage=row["stage"],  # type: ignore[arg-type]
                diameter_mm=float(row["diameter_mm"] or math.nan),
                reason=row["reason"],
                prob_segmentation=float(row.get("prob_segmentation") or math.nan),  # older tables have none
            )
            for row in csv.DictReader(handle)
        )
