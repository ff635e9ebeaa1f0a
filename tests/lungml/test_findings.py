import csv
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from lungml.calibration import Calibration, Platt
from lungml.candidates import GroupingSettings
from lungml.findings import (
    FINDINGS_COLUMNS,
    Bundle,
    Finding,
    ask,
    find_nodules,
    findings_text,
    judge,
    read_findings,
)
from lungml.geometry import Grid, irc_to_xyz
from lungml.inference import InferenceSettings
from lungml.models.nodule_net import NoduleNet, NoduleNetConfig
from lungml.models.unet import UNet, UNetConfig
from lungml.phantom import PhantomSettings, draw_phantom

GRID = Grid(shape_irc=(60, 120, 120), spacing_xyz=(0.7, 0.8, 2.0), origin_xyz=(-10, 5, 3))
LUNGS = InferenceSettings(lungs_only=True)


class Bright(UNet):
    """Marks the middle slice's voxels above 0 HU."""

    def forward(self, slab: torch.Tensor) -> torch.Tensor:
        return slab[:, 3:4]


class Mean(NoduleNet):
    """Says how bright a crop's middle is; counts the crops that it was shown."""

    def __init__(self, config: NoduleNetConfig | None = None) -> None:
        super().__init__(config)
        self.shown = 0

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        self.shown += len(crops)
        middle = crops[:, 0, 16, 24, 24] / 100
        return torch.stack([torch.zeros_like(middle), middle], dim=1)


class Corner(NoduleNet):
    """Says yes, surely, when the crop's first voxel is bright."""

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        first = crops[:, 0, 0, 0, 0]
        return torch.stack([-first, first], dim=1)


class At(NoduleNet):
    """The probability of class 1 is `share` wherever it looks."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        return torch.log(torch.tensor([[1 - self.share, self.share]], dtype=torch.float64)).expand(len(crops), 2)


def bundle(**change: object) -> Bundle:
    return replace(Bundle(segmentation=Bright(), nodule=Mean(), malignancy=Mean()), **change)


def two_balls() -> np.ndarray:
    hu = np.full(GRID.shape_irc, -800, np.int16)
    hu[18:23, 28:33, 28:33] = 300
    hu[38:43, 88:93, 88:93] = 20
    return hu


def test_every_candidate_becomes_a_finding_most_probable_first() -> None:
    findings = find_nodules(two_balls(), GRID, bundle(nodule_threshold=0.9, malignant_threshold=0.94))
    assert [f.center_irc for f in findings] == [(20, 30, 30), (40, 90, 90)]
    assert [f.stage for f in findings] == ["malignant", "filtered"]
    for f in findings:
        np.testing.assert_allclose(f.center_xyz, irc_to_xyz(f.center_irc, GRID))
    assert findings[0].prob_nodule > 0.9 > findings[1].prob_nodule
    assert findings[0].reason == "malignancy probability at least 0.94"
    assert findings[1].reason == "nodule probability below 0.9"


def test_malignancy_is_asked_of_those_taken_for_nodules_only_unless_all_are_to_be_judged() -> None:
    made = bundle(nodule_threshold=0.9)
    findings = find_nodules(two_balls(), GRID, made)
    assert made.malignancy[0].shown == 1
    assert not np.isnan(findings[0].prob_malignant)
    assert np.isnan(findings[1].prob_malignant)
    every = bundle(nodule_threshold=0.9, judge_all=True)
    findings = find_nodules(two_balls(), GRID, every)
    assert every.malignancy[0].shown == 2
    assert not any(np.isnan(f.prob_malignant) for f in findings)
    assert [f.stage for f in findings] == ["malignant", "filtered"]


def test_the_thresholds_are_on_the_calibrated_probabilities() -> None:
    # Twice as steep about 0.5: 0.6 becomes 0.69, and 0.4 becomes 0.31.
    steep = Calibration(nodule=Platt(slope=2.0, intercept=0.0), malignancy=Platt(slope=2.0, intercept=0.0))
    made = bundle(nodule=At(0.6), malignancy=At(0.4), calibration=steep)
    for found in find_nodules(two_balls(), GRID, made):
        assert found.prob_nodule == pytest.approx(0.36 / 0.52)
        assert found.prob_malignant == pytest.approx(0.16 / 0.52)
    stages = {
        threshold: find_nodules(two_balls(), GRID, replace(made, nodule_threshold=threshold))[0].stage
        for threshold in (0.65, 0.7)
    }
    assert stages == {0.65: "benign", 0.7: "filtered"}


def test_the_malignancy_threshold_is_honoured() -> None:
    both = find_nodules(two_balls(), GRID, bundle(malignant_threshold=0.5))
    assert [f.stage for f in both] == ["malignant", "malignant"]
    one = find_nodules(two_balls(), GRID, bundle(malignant_threshold=0.9))
    assert [f.stage for f in one] == ["malignant", "benign"]


def test_the_grouping_rule_is_honoured() -> None:
    hu = two_balls()
    hu[25:27, 60:65, 5:10] = 50  # two slices only
    assert len(find_nodules(hu, GRID, bundle(grouping=GroupingSettings(rule="report")))) == 2
    assert len(find_nodules(hu, GRID, bundle(grouping=GroupingSettings(rule="union")))) == 3


@pytest.mark.parametrize("share", [float("nan"), float("inf")])
@pytest.mark.parametrize("member", ["nodule", "malignancy"])
def test_probabilities_that_are_no_numbers_are_refused(member: str, share: float) -> None:
    with pytest.raises(ValueError, match=f"{member} classifier gave a probability that is not a number"):
        find_nodules(two_balls(), GRID, bundle(**{member: At(share)}))


def test_answers_that_lack_a_malignancy_cannot_be_judged_by_a_lower_threshold() -> None:
    answers = ask(two_balls(), GRID, bundle(nodule_threshold=0.9))
    with pytest.raises(ValueError, match="was not asked"):
        judge(answers, GRID, bundle(nodule_threshold=0.5))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 40), (3, 31, 50), (40, 6, 7), (20, 97, 62)], ids=str)
def test_a_scan_of_any_size_has_an_answer(shape: tuple[int, int, int]) -> None:
    hu = np.full(shape, -800, np.int16)
    hu[1:-1, 2:-2, 2:-2] = 100
    grid = Grid(shape_irc=shape, spacing_xyz=(0.7, 0.8, 2.0), origin_xyz=(0, 0, 0))
    for inference in (InferenceSettings(), LUNGS, InferenceSettings(precision="bf16")):
        findings = find_nodules(hu, grid, bundle(inference=inference))
        assert len(findings) == (min(shape[0] - 2, shape[1] - 4, shape[2] - 4) >= 3)


def test_nothing_segmented_means_no_findings_and_a_file_with_a_header(tmp_path: Path) -> None:
    made = bundle()
    findings = find_nodules(np.full(GRID.shape_irc, -800, np.int16), GRID, made)
    assert findings == ()
    assert made.nodule[0].shown == 0
    assert findings_text("1.2", findings).strip() == ",".join(FINDINGS_COLUMNS)


def test_findings_come_back_from_their_file(tmp_path: Path) -> None:
    findings = find_nodules(two_balls(), GRID, bundle(nodule_threshold=0.9))
    (tmp_path / "f.csv").write_text(findings_text("1.2", findings))
    rows = list(csv.DictReader((tmp_path / "f.csv").open()))
    assert rows[0]["series_uid"] == "1.2"
    assert tuple(rows[0]) == FINDINGS_COLUMNS
    for back, there in zip(read_findings(tmp_path / "f.csv"), findings, strict=True):
        assert (back.stage, back.reason) == (there.stage, there.reason)
        np.testing.assert_allclose(back.center_xyz, there.center_xyz, atol=1e-4)
        np.testing.assert_allclose(back.center_irc, there.center_irc, atol=1e-4)
        np.testing.assert_equal((back.prob_nodule, back.prob_malignant), (there.prob_nodule, there.prob_malignant))


def test_the_scan_is_not_changed() -> None:
    hu = two_balls()
    hu.setflags(write=False)
    find_nodules(hu, GRID, bundle())


def test_impossible_thresholds_are_refused() -> None:
    with pytest.raises(ValueError, match="nodule_threshold 2"):
        bundle(nodule_threshold=2)


# Ensembles and mirror images


def test_a_member_may_be_one_model_or_several() -> None:
    one, other = Mean(), Mean()
    made = bundle(nodule=one, malignancy=[one, other])
    assert (made.nodule, made.malignancy) == ((one,), (one, other))
    assert not any(model.training for models in (made.segmentation, made.nodule, made.malignancy) for model in models)
    assert replace(made, nodule_threshold=0.25).malignancy == (one, other)
    with pytest.raises(ValueError, match="no nodule model"):
        bundle(nodule=())


def test_probabilities_of_several_models_are_averaged() -> None:
    made = bundle(
        nodule=(At(0.2), At(0.6), At(0.7)),
        malignancy=(At(0.9), At(0.25)),
        nodule_threshold=0.4,
        malignant_threshold=0.6,
    )
    for found in find_nodules(two_balls(), GRID, made):
        assert found.prob_nodule == pytest.approx(0.5)
        assert found.prob_malignant == pytest.approx(0.575)
        assert found.stage == "benign"


def test_only_the_named_members_are_flipped(monkeypatch: pytest.MonkeyPatch) -> None:
    hu = two_balls()
    hu[4, 6, 6] = 500  # the first voxel of the crop around the first ball
    for flips, probs in (((), (1, 1)), (["nodule"], (1 / 8, 1)), (("malignancy",), (1, 1 / 8))):
        made = bundle(nodule=Corner(), malignancy=Corner(), flips=flips, judge_all=True)
        (first,) = (f for f in find_nodules(hu, GRID, made) if f.center_irc == (20, 30, 30))
        assert (first.prob_nodule, first.prob_malignant) == pytest.approx(probs)
    told: dict[str, object] = {}

    def marked(hu: np.ndarray, models: object, **given: object) -> None:
        told.update(given)
        raise InterruptedError

    monkeypatch.setattr("lungml.findings.segment", marked)
    with pytest.raises(InterruptedError):
        find_nodules(hu, GRID, bundle(flips=("segmentation",)))
    assert told["flips"] is True


def test_flips_of_an_unknown_member_are_refused() -> None:
    with pytest.raises(ValueError, match="flips names unet; choose from segmentation, nodule, malignancy"):
        bundle(flips=("unet",))


def test_crops_in_mm_have_the_scans_grid() -> None:
    model = Mean(NoduleNetConfig(spacing_mm=(1.0, 1.0, 1.0)))
    assert len(find_nodules(two_balls(), GRID, bundle(malignancy=model))) == 2


# The lungs alone


def lungs_and_balls() -> tuple[np.ndarray, Grid]:
    """Two lungs in a body; a ball in one, one on its pleura, and one in the muscle 40 mm away from any lung."""
    grid = Grid(shape_irc=(40, 160, 160), spacing_xyz=(2.0, 2.0, 2.0), origin_xyz=(0, 0, 0))
    hu = np.full(grid.shape_irc, -1000, np.int16)
    hu[:, 10:150, 10:150] = -50
    hu[2:38, 70:130, 30:70] = -850
    hu[2:38, 70:130, 90:130] = -850
    for index, row, col in ((20, 100, 50), (20, 100, 132), (20, 45, 80)):
        hu[index - 2 : index + 3, row - 2 : row + 3, col - 2 : col + 3] = 300
    return hu, grid


def test_outside_the_lungs_and_their_margin_nothing_is_found() -> None:
    hu, grid = lungs_and_balls()
    everywhere = find_nodules(hu, grid, bundle())
    assert sorted(f.center_irc for f in everywhere) == [(20, 45, 80), (20, 100, 50), (20, 100, 132)]
    in_lungs = find_nodules(hu, grid, bundle(inference=LUNGS))
    assert in_lungs == tuple(f for f in everywhere if f.center_irc != (20, 45, 80))
    wider = replace(LUNGS, margin_mm=60.0)
    assert find_nodules(hu, grid, bundle(inference=wider)) == everywhere


def test_a_finding_that_leaves_the_box_around_the_lungs_is_measured_by_what_lies_in_it() -> None:
    # The known cost: with a margin of 8 mm the box ends in the ball on the pleura, which is there but smaller.
    hu, grid = lungs_and_balls()
    found = find_nodules(hu, grid, bundle(inference=replace(LUNGS, margin_mm=8.0)))
    (inner, cut) = sorted(found, key=lambda f: f.center_irc[2])
    assert inner.center_irc == (20, 100, 50)
    assert 130 < cut.center_irc[2] < 132
    assert cut.diameter_mm < inner.diameter_mm


def test_where_no_lungs_can_be_told_all_is_read_and_one_line_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="lungml")
    hu, grid = lungs_and_balls()
    hu[2:38, 70:130, 90:128] = -50
    everywhere = find_nodules(hu, grid, bundle())
    assert len(everywhere) == 3
    assert find_nodules(hu, grid, bundle(inference=LUNGS)) == everywhere
    (line,) = caplog.messages
    assert line.startswith("the full field is read, not the lungs alone: one lung has")


@pytest.fixture(scope="module")
def random_bundle() -> tuple[np.ndarray, Grid, Bundle]:
    """A phantom chest, and untrained networks that find some hundred candidates in it, in the lungs and elsewhere."""
    phantom = draw_phantom(
        "1.2",
        np.random.default_rng(0),
        PhantomSettings(size_irc=(40, 256, 256), nodules=(3, 3), slice_mm=(2.0, 2.0), pixel_mm=(0.9, 0.9)),
    )
    small = NoduleNetConfig(crop_shape=(16, 16, 16), width=4)
    nets = [UNet(UNetConfig(width=8), generator=torch.Generator().manual_seed(5))]
    nets += [NoduleNet(small, generator=torch.Generator().manual_seed(seed)) for seed in (6, 7)]
    for net in nets:
        net.eval()
        net.input_norm.running_mean.fill_(-500)
        net.input_norm.running_var.fill_(450**2)
    slab = torch.from_numpy(phantom.hu[17:24].clip(-1000, 1000)).float()[None]
    with torch.no_grad():
        nets[0].head.bias -= torch.quantile(nets[0](slab).flatten(), 0.97)
    made = Bundle(
        segmentation=nets[0],
        nodule=nets[1],
        malignancy=nets[2],
        grouping=GroupingSettings(rule="report"),
        judge_all=True,
    )
    return phantom.hu, phantom.grid, made


def test_on_a_phantom_the_lungs_alone_give_the_findings_that_the_full_field_has_there(
    random_bundle: tuple[np.ndarray, Grid, Bundle],
) -> None:
    hu, grid, made = random_bundle
    everywhere = find_nodules(hu, grid, made)
    in_lungs = find_nodules(hu, grid, replace(made, inference=LUNGS))
    assert 20 < len(in_lungs) < 0.9 * len(everywhere)
    far, nearest = pair(in_lungs, everywhere)
    moved = far > 0.01
    assert moved.mean() < 0.05  # components that leave the boxes that were segmented
    for one, other in ((in_lungs[n], everywhere[nearest[n]]) for n in np.flatnonzero(~moved)):
        assert one.prob_nodule == pytest.approx(other.prob_nodule, abs=1e-3)
        assert one.prob_malignant == pytest.approx(other.prob_malignant, abs=1e-3)


def pair(some: tuple[Finding, ...], others: tuple[Finding, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Of each, how many voxels off the nearest of the others lies, and which it is."""
    return cKDTree([f.center_irc for f in others]).query([f.center_irc for f in some])
