"""A crop of noise, in which every change can be told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lungml.augment import Augmentation, report_classification
from lungml.augmentation_sheet import augmented_crops, describe, draw_augmented, kinds_alone
from lungml.ct import Scan
from lungml.geometry import Grid
from lungml.plots import png

CROPPED = Scan(
    series_uid="1.2",
    hu=np.random.default_rng(0).integers(-1000, 400, (40, 60, 60)).astype(np.int16),
    grid=Grid(shape_irc=(40, 60, 60), spacing_xyz=(1, 1, 1), origin_xyz=(0, 0, 0)),
)
MIDDLE = (30.0, 30.0, 20.0)
FLIPS_AT_ONCE = 0  # a seed whose first draw flips in plane


def test_a_sheet_has_each_change_alone_and_then_all() -> None:
    pictures = augmented_crops(CROPPED, MIDDLE, report_classification(), versions=2, seed=0)
    names = ["original", "flip", "shift", "scale", "rotation", "noise", "all, 1", "all, 2"]
    assert [name for name, _ in pictures] == names
    original = pictures[0][1]
    assert original.tolist() == CROPPED.hu[4:36, 6:54, 6:54].tolist()
    assert all(crop.shape == original.shape and not np.array_equal(crop, original) for _, crop in pictures[1:])
    assert np.std(pictures[5][1] - original) == pytest.approx(25, rel=0.05)
    figure = draw_augmented(CROPPED, MIDDLE, report_classification(), recipe="report", versions=2)
    assert [axes.get_title() for axes in figure.axes] == names
    assert np.asarray(figure.axes[0].images[0].get_array()).tolist() == original[16].tolist()


@pytest.mark.parametrize("seed", range(8))
def test_the_flip_is_one_that_can_be_seen(seed: int) -> None:
    (_, original), (_, flipped) = augmented_crops(CROPPED, MIDDLE, Augmentation(flip=True), versions=0, seed=seed)
    in_plane = [(1,), (2,), (1, 2)]
    ways = [np.flip(original, axes) for plane in in_plane for axes in (plane, (0, *plane))]
    assert any(np.allclose(flipped, way, atol=0.1) for way in ways)


def test_the_first_with_all_has_the_flip_and_the_turn_that_are_shown_alone() -> None:
    both = dict(augmented_crops(CROPPED, MIDDLE, Augmentation(flip=True, rotate=True), versions=1, seed=FLIPS_AT_ONCE))
    ways = [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    (way,) = [axes for axes in ways if np.allclose(both["flip"], np.flip(both["original"], axes), atol=0.1)]
    flipped = replace(CROPPED, hu=np.ascontiguousarray(np.flip(CROPPED.hu, way)))
    turned = dict(augmented_crops(flipped, MIDDLE, Augmentation(rotate=True), versions=1, seed=FLIPS_AT_ONCE))
    assert np.allclose(both["all, 1"], turned["rotation"], atol=0.5)
    assert np.array_equal(turned["rotation"], turned["all, 1"])


def test_the_same_seed_draws_the_same_picture_and_another_does_not() -> None:
    settings = report_classification()
    once, again, other = (
        draw_augmented(CROPPED, MIDDLE, settings, recipe="report", versions=1, seed=seed) for seed in (7, 7, 8)
    )
    assert png(once) == png(again)
    one, two = (np.asarray(figure.axes[-1].images[0].get_array()) for figure in (once, other))
    assert not np.array_equal(one, two)


def test_only_what_a_recipe_does_is_shown_and_said() -> None:
    settings = Augmentation(noise_hu=10, elastic_vox=1.5, scale_hu=0.1, shift_hu=20)
    assert [name for name, _ in kinds_alone(settings)] == ["noise", "elastic", "contrast", "brightness"]
    assert describe(settings) == "Noise 10 HU, elastic 1.5 voxels, contrast ±10%, brightness ±20 HU"
    assert describe(Augmentation()) == "No change"
    assert kinds_alone(Augmentation()) == []


def test_a_crop_that_is_larger_than_the_scan_repeats_its_edge() -> None:
    hu = np.random.default_rng(1).integers(-1000, 400, (2, 20, 30)).astype(np.int16)
    thin = Scan(series_uid="1.2", hu=hu, grid=Grid(shape_irc=(2, 20, 30), spacing_xyz=(1, 1, 2), origin_xyz=(0, 0, 0)))
    ((_, crop),) = augmented_crops(thin, (10, 10, 1), Augmentation(), versions=0, seed=0)
    assert crop.shape == (32, 48, 48)
    assert crop[16, 14:34, 9:39].tolist() == hu[1].tolist()
