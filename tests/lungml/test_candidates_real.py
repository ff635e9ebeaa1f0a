"""What do the rules offer of two real scans that the report's own U-Net segmented?"""

import csv
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from lungml.candidates import Candidates, GroupingSettings, group_candidates
from lungml.ct import read_scan
from lungml.geometry import Grid, irc_to_xyz
from lungml.marked import Marked
from lungml.models import place
from lungml.models.unet import UNet, UNetConfig, load_published
from lungml.segment import segment

REAL_DATA = os.environ.get("LUNGML_REAL_DATA")
BEST = GroupingSettings(rule="best", threshold=0.5)
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not REAL_DATA, reason="LUNGML_REAL_DATA does not point at the real scans"),
]


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmented:
    hu: np.ndarray
    grid: Grid
    marked: Marked
    reference_irc: np.ndarray  # what the report's procedure found with the same weights
    nodules_xyz: np.ndarray
    diameters_mm: np.ndarray

    def group(self, settings: GroupingSettings) -> Candidates:
        return group_candidates(self.marked, self.hu, self.grid, settings)

    def offered(self, found: Candidates) -> list[bool]:
        """Whether a candidate lies within each nodule's radius."""
        apart = np.linalg.norm(self.nodules_xyz[:, None] - irc_to_xyz(found.centers_irc, self.grid), axis=2)
        return (apart.min(axis=1) < self.diameters_mm / 2).tolist()


@pytest.fixture(scope="module", params=[0, 1])
def scan(request: pytest.FixtureRequest) -> Segmented:
    """Segmenting takes some 20 s, so it is done once a scan."""
    data = Path(str(REAL_DATA))
    reference = sorted(data.glob("report-weights/reference-*.csv"))[request.param]
    series_uid = reference.stem.removeprefix("reference-")
    model = UNet(UNetConfig(pooling="avg"))
    state = torch.load(data / "report-weights" / "segmentation.state", weights_only=True, map_location="cpu")
    model.load_state_dict(load_published(state["model_state"]))
    read = read_scan(data / "luna16" / "scans" / f"{series_uid}.mhd")
    with reference.open() as file:
        rows = [[float(row[name]) for name in ("index", "row", "col")] for row in csv.DictReader(file)]
    with (data / "luna16" / "annotations.csv").open() as file:
        nodules = [row for row in csv.DictReader(file) if row["seriesuid"] == series_uid]
    return Segmented(
        hu=read.hu,
        grid=read.grid,
        marked=segment(read.hu, place(model.eval(), torch.device("cpu")), floor=BEST.floor),
        reference_irc=np.array(rows),
        nodules_xyz=np.array([[float(row[f"coord{axis}"]) for axis in "XYZ"] for row in nodules]),
        diameters_mm=np.array([float(row["diameter_mm"]) for row in nodules]),
    )


def test_the_report_rule_finds_what_the_report_found(scan: Segmented) -> None:
    assert len(scan.reference_irc) in (728, 960)
    found = scan.group(GroupingSettings(rule="report"))
    assert len(found) == len(scan.reference_irc)
    off = np.abs(found.centers_irc - scan.reference_irc).max(axis=1)  # in the same order
    # One voxel in a million has a probability within 1e-5 of 0.5, and sums in another order decide about it: it moves
    # its component's centre by 0.002 voxels.
    assert np.count_nonzero(off > 1e-3) <= 1
    assert off.max() < 0.01


def test_best_offers_every_annotated_nodule_among_few_more_candidates(scan: Segmented) -> None:
    found = scan.group(BEST)
    assert len(scan.nodules_xyz) in (1, 2)
    assert scan.offered(found) == [True] * len(scan.nodules_xyz)
    assert len(found) <= 1.2 * len(scan.reference_irc)


def test_the_measured_diameter_is_about_the_annotated_one(scan: Segmented) -> None:
    for rule in ("report", "best"):
        found = scan.group(GroupingSettings(rule=rule))
        apart = np.linalg.norm(scan.nodules_xyz[:, None] - irc_to_xyz(found.centers_irc, scan.grid), axis=2)
        measured = found.diameters_mm[apart.argmin(axis=1)]
        np.testing.assert_allclose(measured, scan.diameters_mm, rtol=0.35)
        assert ((found.scores > 0.3) & (found.scores <= 1)).all()
