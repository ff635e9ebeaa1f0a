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
from lungml.models.nodule_net import NoduleNet, NoduleNetConfig
from lungml.models.unet import UNet, UNetConfig

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


# Ensembles and mirror images


class At(NoduleNet):
    """The probability of class 1 is `share` wherever it looks."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        return torch.log(torch.tensor([[1 - self.share, self.share]], dtype=torch.float64)).expand(len(crops), 2)


class Corner(NoduleNet):
    """Says yes, surely, when the crop's first voxel is bright."""

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        first = crops[:, 0, 0, 0, 0]
        return torch.stack([-first, first], dim=1)


class Left(UNet):
    """The probability is `share` where the middle slice is bright and lies left in the picture, else next to none."""

    def __init__(self, share: float = 0.999999) -> None:
        super().__init__()
        self.logit = float(np.log(share / (1 - share)))

    def forward(self, slab: torch.Tensor) -> torch.Tensor:
        middle = slab[:, slab.shape[1] // 2, None]
        inside = (middle > 0) & (torch.arange(slab.shape[3]) < slab.shape[3] // 2)
        return torch.where(inside, self.logit, -50.0)


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


def test_one_model_given_thrice_says_what_it_says_alone() -> None:
    hu = np.random.default_rng(0).normal(-500, 300, (9, 50, 61)).astype(np.int16)
    unet = UNet(generator=torch.Generator().manual_seed(0)).eval()
    alone, thrice = segment(hu, unet), segment(hu, (unet, unet, unet))
    np.testing.assert_array_equal(segment(hu, (unet,)), alone)
    assert (alone != thrice).mean() < 1e-3  # sigmoid and the sum round
    assert 0.01 < alone.mean() < 0.99


def test_the_segmentations_of_several_models_are_averaged_before_the_threshold() -> None:
    hu = np.full((5, 8, 8), 100, np.int16)
    pair = (Left(0.9).eval(), Left(0.3).eval())
    assert segment(hu, pair, threshold=0.59)[:, :, :4].all()
    assert not segment(hu, pair, threshold=0.61).any()
    assert not segment(hu, pair, threshold=0.59)[:, :, 4:].any()


def test_unets_of_other_depth_and_context_look_at_one_scan() -> None:
    hu = np.random.default_rng(0).normal(-500, 300, (6, 20, 20)).astype(np.int16)
    models = tuple(
        UNet(config, generator=torch.Generator().manual_seed(n)).eval()
        for n, config in enumerate((UNetConfig(), UNetConfig(context_slices=1, depth=4, width=4)))
    )
    slab = torch.from_numpy(np.pad(hu[1:6], [(0, 2), (0, 0), (0, 0)], mode="edge"))  # around slice 4
    slab = torch.nn.functional.pad(slab[None].float(), (0, 4, 0, 4), mode="replicate")
    with torch.inference_mode():
        probs = (torch.sigmoid(models[0](slab)) + torch.sigmoid(models[1](slab[:, 2:5]))) / 2
    wanted = (probs[0, 0, :20, :20] > 0.5).numpy()
    assert (segment(hu, models)[4] != wanted).mean() < 0.01
    assert 0.01 < wanted.mean() < 0.99


def test_flips_average_a_slice_over_its_four_mirror_images() -> None:
    hu = np.full((5, 8, 8), -800, np.int16)
    hu[:, 1, 1] = 100
    model = Left().eval()
    assert np.argwhere(segment(hu, model)).tolist() == [[n, 1, 1] for n in range(5)]
    # Seen left in two of the four mirror images: 0.4999995 on average, at its own place.
    assert not segment(hu, model, flips=True).any()
    assert np.argwhere(segment(hu, model, flips=True, threshold=0.49)).tolist() == [[n, 1, 1] for n in range(5)]


def test_flips_average_a_crop_over_its_eight_mirror_images() -> None:
    hu = np.full(GRID.shape_irc, -800, np.int16)
    center = np.array([[30.0, 60, 60]])
    hu[14, 36, 36] = 500  # the crop's first voxel
    model = Corner().eval()
    assert classify(hu, center, (model,)) == 1
    np.testing.assert_allclose(classify(hu, center, (model,), flips=True), 1 / 8)
    hu[45, 83, 36] = 500  # another corner
    np.testing.assert_allclose(classify(hu, center, (model, model), flips=(False, True))[:, 0], [1, 1 / 4])


def test_only_the_named_members_are_flipped(monkeypatch: pytest.MonkeyPatch) -> None:
    hu = two_balls()
    hu[4, 6, 6] = 500  # the first voxel of the crop around the first ball
    for flips, probs in (((), (1, 1)), (["nodule"], (1 / 8, 1)), (("malignancy",), (1, 1 / 8))):
        made = bundle(nodule=Corner(), malignancy=Corner(), flips=flips)
        (first,) = (f for f in find_nodules(hu, GRID, made) if f.center_irc == (20, 30, 30))
        assert (first.prob_nodule, first.prob_malignant) == pytest.approx(probs)
    told: dict[str, object] = {}
    monkeypatch.setattr("lungml.findings.segment", lambda hu, models, **given: told.update(given) or hu > 0)
    find_nodules(hu, GRID, bundle(flips=("segmentation",)))
    assert told["flips"] is True


def test_flips_of_an_unknown_member_are_refused() -> None:
    with pytest.raises(ValueError, match="flips names unet; choose from segmentation, nodule, malignancy"):
        bundle(flips=("unet",))


class Box(NoduleNet):
    """Keeps what it was shown."""

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        self.seen = crops.clone()
        return torch.zeros(len(crops), 2)


def test_crops_in_mm_are_resampled_and_those_in_voxels_are_not() -> None:
    hu = np.full(GRID.shape_irc, -800, np.int16)
    hu[:, :, 60:] = 3000  # a wall at column 60; columns are 0.7 mm apart
    mm = Box(NoduleNetConfig(spacing_mm=(2.0, 0.8, 0.35))).eval()
    voxels = Box().eval()
    classify(hu, np.array([[30.0, 60.0, 60.0]]), (voxels, mm), grid=GRID)
    assert voxels.seen[0, 0, 16, 24].tolist() == [-800] * 24 + [1000] * 24
    # Steps of half a column around column 60: at 59.25 and 59.75 a quarter and three quarters of the way from lung to
    # the wall, which is clipped before it is resampled.
    expected = [-800] * 22 + [-350, 550] + [1000] * 24
    np.testing.assert_allclose(mm.seen[0, 0, 16, 24], expected, atol=1e-2)
    assert mm.seen.shape == (1, 1, 32, 48, 48)


def test_a_crop_in_mm_lies_at_the_fraction_of_a_voxel() -> None:
    hu = np.zeros(GRID.shape_irc, np.int16)
    hu[:] = 10 * np.arange(GRID.shape_irc[2])  # 10 HU a column, so 10 HU each 0.7 mm
    mm = Box(NoduleNetConfig(crop_shape=(16, 16, 16), spacing_mm=(2.0, 0.8, 0.35))).eval()
    classify(hu, np.array([[30.0, 60.0, 60.25]]), (mm,), grid=GRID)
    np.testing.assert_allclose(mm.seen[0, 0, 8, 8], 602.5 + 5 * (np.arange(16) - 7.5), atol=1e-3)


def test_crops_in_mm_need_the_grid() -> None:
    model = Box(NoduleNetConfig(spacing_mm=(1.0, 1.0, 1.0))).eval()
    with pytest.raises(ValueError, match="give the scan's grid"):
        classify(two_balls(), np.array([[20.0, 30, 30]]), (model,))
    assert len(find_nodules(two_balls(), GRID, bundle(malignancy=model))) == 2


def test_each_models_configuration_cuts_its_crop() -> None:
    hu = np.random.default_rng(0).normal(-500, 300, GRID.shape_irc).astype(np.int16)
    center = np.array([[30.0, 60.0, 60.0]])
    small = NoduleNet(NoduleNetConfig(crop_shape=(16, 32, 32)), generator=torch.Generator().manual_seed(0)).eval()
    usual = NoduleNet(generator=torch.Generator().manual_seed(1)).eval()
    probs = classify(hu, center, (small, usual))
    for row, model, box in ((0, small, hu[22:38, 44:76, 44:76]), (1, usual, hu[14:46, 36:84, 36:84])):
        crop = torch.from_numpy(box.clip(-1000, 1000)).float()[None, None]
        with torch.inference_mode():
            assert probs[row, 0] == pytest.approx(torch.softmax(model(crop), dim=1)[0, 1].item(), abs=1e-5)
