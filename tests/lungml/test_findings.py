import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lungml.candidates import GroupingSettings
from lungml.findings import (
    FINDINGS_COLUMNS,
    Bundle,
    classify,
    find_nodules,
    read_findings,
    segment,
    write_findings,
)
from lungml.geometry import Grid, irc_to_xyz
from lungml.models.nodule_net import NoduleNet
from lungml.models.unet import UNet

GRID = Grid(shape_irc=(60, 120, 120), spacing_xyz=(0.7, 0.8, 2.0), origin_xyz=(-10, 5, 3))


class Bright(UNet):
    """Marks the middle slice's voxels above 0 HU; remembers what it was shown."""

    def forward(self, slab: torch.Tensor) -> torch.Tensor:
        self.seen = slab.clone()
        return slab[:, 3:4]


class Mean(NoduleNet):
    """Says how bright a crop's middle is."""

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        middle = crops[:, 0, 16, 24, 24] / 100
        return torch.stack([torch.zeros_like(middle), middle], dim=1)


def bundle(**change: object) -> Bundle:
    return replace(Bundle(segmentation=Bright(), nodule=Mean(), malignancy=Mean()), **change)


def two_balls() -> np.ndarray:
    hu = np.full(GRID.shape_irc, -800, np.int16)
    hu[18:23, 28:33, 28:33] = 300
    hu[38:43, 88:93, 88:93] = 20
    return hu


def test_the_segmenter_sees_clipped_hu_neighbours_and_repeated_edges() -> None:
    hu = np.arange(5, dtype=np.int16)[:, None, None] * np.ones((1, 6, 7), np.int16)
    hu[4] = 3000
    model = Bright().eval()
    mask = segment(hu, model)
    assert mask.shape == hu.shape
    assert not mask[0].any()
    assert mask[1:].all()
    # The last slice: 1, 2, 3, itself, and itself repeated, padded to multiples of 4 in plane.
    assert model.seen[0, :, 0, 0].tolist() == [1, 2, 3, 1000, 1000, 1000, 1000]
    assert model.seen.shape == (1, 7, 8, 8)
    assert hu.max() == 3000


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_the_threshold_is_on_the_probability(threshold: float) -> None:
    hu = np.arange(-4, 4, dtype=np.int16)[:, None, None] * np.ones((1, 4, 4), np.int16)
    probs = 1 / (1 + np.exp(-hu.astype(np.float64)))
    np.testing.assert_array_equal(segment(hu, Bright().eval(), threshold=threshold), probs > threshold)


def test_every_candidate_becomes_a_finding_most_probable_first() -> None:
    findings = find_nodules(two_balls(), GRID, bundle(nodule_threshold=0.9, malignant_threshold=0.94))
    assert [f.center_irc for f in findings] == [(20, 30, 30), (40, 90, 90)]
    assert [f.stage for f in findings] == ["malignant", "filtered"]
    for f in findings:
        np.testing.assert_allclose(f.center_xyz, irc_to_xyz(f.center_irc, GRID))
    assert findings[0].prob_nodule > 0.9 > findings[1].prob_nodule


def test_the_malignancy_threshold_is_honoured() -> None:
    both = find_nodules(two_balls(), GRID, bundle(malignant_threshold=0.5))
    assert [f.stage for f in both] == ["malignant", "malignant"]
    one = find_nodules(two_balls(), GRID, bundle(malignant_threshold=0.9))
    assert [f.stage for f in one] == ["malignant", "benign"]


def test_the_grouping_rule_is_honoured() -> None:
    hu = two_balls()
    hu[25:27, 60:65, 5:10] = 50  # two slices only
    assert len(find_nodules(hu, GRID, bundle())) == 2
    assert len(find_nodules(hu, GRID, bundle(grouping=GroupingSettings(rule="union")))) == 3


def test_nothing_segmented_means_no_findings_and_a_file_with_a_header(tmp_path: Path) -> None:
    findings = find_nodules(np.full(GRID.shape_irc, -800, np.int16), GRID, bundle())
    assert findings == ()
    write_findings(tmp_path / "f.csv", "1.2", findings)
    assert (tmp_path / "f.csv").read_text().strip() == ",".join(FINDINGS_COLUMNS)


def test_findings_come_back_from_their_file(tmp_path: Path) -> None:
    findings = find_nodules(two_balls(), GRID, bundle())
    write_findings(tmp_path / "f.csv", "1.2", findings)
    rows = list(csv.DictReader((tmp_path / "f.csv").open()))
    assert rows[0]["series_uid"] == "1.2"
    assert tuple(rows[0]) == FINDINGS_COLUMNS
    for back, there in zip(read_findings(tmp_path / "f.csv"), findings, strict=True):
        assert back.stage == there.stage
        np.testing.assert_allclose(back.center_xyz, there.center_xyz, atol=1e-4)
        np.testing.assert_allclose(back.center_irc, there.center_irc, atol=1e-4)
        assert back.prob_nodule == pytest.approx(there.prob_nodule, rel=1e-8)


def test_halves_round_to_the_even_voxel_as_in_the_published_results() -> None:
    hu = np.full(GRID.shape_irc, -800, np.int16)
    hu[20, 34, 40] = 200
    probs = classify(hu, np.array([[20.0, 34.5, 40.0], [20.0, 33.5, 40.0], [20.0, 35.5, 40.0]]), (Mean().eval(),))
    assert (probs[0] > 0.5).tolist() == [True, True, False]


def test_batches_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    hu = np.random.default_rng(0).normal(-500, 300, GRID.shape_irc).astype(np.int16)
    centers = np.random.default_rng(1).uniform(0, 60, (5, 3))
    model = NoduleNet(generator=torch.Generator().manual_seed(0)).eval()
    together = classify(hu, centers, (model, model))
    alone = np.concatenate([classify(hu, c[None], (model, model)) for c in centers], axis=1)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_the_scan_is_not_changed() -> None:
    hu = two_balls()
    hu.setflags(write=False)
    find_nodules(hu, GRID, bundle())


def test_impossible_thresholds_are_refused() -> None:
    with pytest.raises(ValueError, match="nodule_threshold 2"):
        bundle(nodule_threshold=2)
