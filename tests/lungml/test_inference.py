"""What each lever changes on the two real scans, with the report's own weights and its own result beside it."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from lungml.candidates import GroupingSettings
from lungml.classify import classify
from lungml.ct import Scan, read_scan
from lungml.findings import Bundle, find_nodules
from lungml.geometry import xyz_to_irc
from lungml.inference import InferenceSettings
from lungml.luna import read_luna
from lungml.lungs import lung_field
from lungml.models import nodule_net, place, unet
from lungml.models.nodule_net import NoduleNet
from lungml.models.unet import UNet
from lungml.segment import segment

REAL_DATA = os.environ.get("LUNGML_REAL_DATA")
pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]
LUNGS = InferenceSettings(lungs_only=True)
MARGIN_MM = LUNGS.margin_mm
FAR_MM = 40.0
SAME_PROB, SAME_PLACE = 1e-3, 0.01  # voxels
# Candidates in the lungs and their margin; of those, how many lie elsewhere because their component leaves the boxes;
# taken for nodules in the field, and outside.
SCANS = {
    "1.3.6.1.4.1.14519.5.2.1.6279.6001.179049373636438705059720603192": (362, 1, 5, 4),
    "1.3.6.1.4.1.14519.5.2.1.6279.6001.272190966764020277652079081128": (457, 4, 7, 7),
}


@dataclass(frozen=True, kw_only=True)
class Known:
    """A scan, and what the report's own procedure found in it with the published weights."""

    series_uid: str
    scan: Scan
    centers_irc: np.ndarray
    prob_nodule: np.ndarray
    prob_malignant: np.ndarray
    near_lungs: np.ndarray

    @property
    def taken(self) -> np.ndarray:
        return self.prob_nodule >= 0.5


@pytest.fixture(scope="module")
def data() -> Path:
    if not REAL_DATA:
        pytest.skip("LUNGML_REAL_DATA is not set")
    return Path(REAL_DATA)


@pytest.fixture(scope="module")
def published(data: Path) -> Bundle:
    def state(name: str) -> dict[str, torch.Tensor]:
        path = data / "report-weights" / f"{name}.state"
        return torch.load(path, weights_only=True, map_location="cpu")["model_state"]

    segmentation, nets = UNet(), (NoduleNet(), NoduleNet())
    segmentation.load_state_dict(unet.load_published(state("segmentation")))
    for net, name in zip(nets, ("nodule", "malignancy-scratch")):
        net.load_state_dict(nodule_net.load_published(state(name)))
    placed = [place(net, torch.device("cpu")).eval() for net in (segmentation, *nets)]
    rule = GroupingSettings(rule="report")
    return Bundle(segmentation=placed[0], nodule=placed[1], malignancy=placed[2], grouping=rule, judge_all=True)


@pytest.fixture(scope="module", params=list(SCANS), ids=["one nodule", "two nodules"])
def known(request: pytest.FixtureRequest, data: Path) -> Known:
    series_uid = request.param
    scan = read_scan(data / "luna16" / "scans" / f"{series_uid}.mhd")
    with (data / "report-weights" / f"reference-{series_uid}.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    columns = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
    centers = np.column_stack([columns[axis] for axis in ("index", "row", "col")])
    return Known(
        series_uid=series_uid,
        scan=scan,
        centers_irc=centers,
        prob_nodule=columns["prob_nodule"],
        prob_malignant=columns["prob_malignant"],
        near_lungs=lung_field(scan.hu, scan.grid, MARGIN_MM).holds(tuple(np.rint(centers).astype(int).T)),
    )


def test_the_lungs_alone_give_the_reports_findings_in_the_lungs_and_none_elsewhere(
    known: Known, published: Bundle, data: Path
) -> None:
    there, moved, taken_there, taken_elsewhere = SCANS[known.series_uid]
    findings = find_nodules(known.scan.hu, known.scan.grid, replace(published, inference=LUNGS))
    assert known.near_lungs.sum() == there
    centers = np.array([f.center_irc for f in findings])
    away, nearest = cKDTree(centers).query(known.centers_irc[known.near_lungs])
    same = away < SAME_PLACE
    assert np.count_nonzero(~same) == moved
    assert abs(len(findings) - there) <= moved
    for name in ("prob_nodule", "prob_malignant"):
        ours = np.array([getattr(f, name) for f in findings])[nearest[same]]
        assert np.abs(ours - getattr(known, name)[known.near_lungs][same]).max() <= SAME_PROB
    # Whatever was taken for a nodule is there still, and nothing is new.
    taken = known.taken[known.near_lungs]
    assert taken.sum() == taken_there == sum(f.prob_nodule >= 0.5 for f in findings)
    assert same[taken].all()
    # What is not looked at any more was taken for nodules, wrongly: none of it lies on an annotated nodule.
    lost = known.taken & ~known.near_lungs
    assert lost.sum() == taken_elsewhere
    voxels = np.rint(known.centers_irc[lost]).astype(int)
    assert not lung_field(known.scan.hu, known.scan.grid, FAR_MM).holds(tuple(voxels.T)).any()
    nodules = [n for n in read_luna(data / "luna16").nodules if n.series_uid == known.series_uid]
    assert nodules
    spacing_mm = known.scan.grid.spacing_irc
    for nodule in nodules:
        center = xyz_to_irc(nodule.center_xyz, known.scan.grid)
        assert np.linalg.norm((known.centers_irc[lost] - center) * spacing_mm, axis=1).min() > nodule.diameter_mm
        hits = np.linalg.norm((centers - center) * spacing_mm, axis=1) < nodule.diameter_mm / 2
        before = np.linalg.norm((known.centers_irc - center) * spacing_mm, axis=1) < nodule.diameter_mm / 2
        assert hits.sum() == before.sum()


def test_bfloat16_does_not_keep_the_findings(known: Known, published: Bundle) -> None:
    """Why it is off unless asked for: the classifiers stay near, the U-Net moves candidates."""
    half = InferenceSettings(precision="bf16")
    near = known.prob_nodule > 0.01
    models = (*published.nodule, *published.malignancy)
    said = classify(known.scan.hu, known.centers_irc[near], models, inference=half)
    off = np.abs(said - np.stack([known.prob_nodule[near], known.prob_malignant[near]]))
    assert SAME_PROB < off.max() < 0.03
    assert np.array_equal(said[0] >= 0.5, known.taken[near])
    part = known.scan.hu[55:75]
    exact, moved = (segment(part, published.segmentation, inference=how) for how in (InferenceSettings(), half))
    flipped = len(np.setxor1d(exact.voxels, moved.voxels))
    assert 0.001 < flipped / len(exact.voxels) < 0.03


def test_a_compiled_graph_keeps_every_voxel_and_probability(known: Known, published: Bundle) -> None:
    part = known.scan.hu[60:66]
    compiled = InferenceSettings(compiled=True)
    exact, graph = (segment(part, published.segmentation, inference=how) for how in (InferenceSettings(), compiled))
    # A logit that is 0 up to rounding may fall on either side.
    assert len(np.setxor1d(exact.voxels, graph.voxels)) <= 2
    both, ours, theirs = np.intersect1d(exact.voxels, graph.voxels, return_indices=True)
    assert len(both) > 1000
    assert np.abs(exact.probs[ours] - graph.probs[theirs]).max() <= SAME_PROB
    centers = known.centers_irc[known.taken]
    said = classify(known.scan.hu, centers, published.nodule, inference=compiled)[0]
    np.testing.assert_allclose(said, known.prob_nodule[known.taken], atol=SAME_PROB)
