"""With its labels shuffled the nodule classifier learns nothing: what it learns otherwise comes from the labels.

Each crop holds seven balls of random size and brightness. In a "nodule" one of them lies in the centre; in a
"non-nodule" all lie elsewhere. So crops of both classes are equally bright, and a network that learned of labels by
chance alone has nothing easy to be right or wrong by: an AUC far from a half would take a leak.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lungml import crop_cache, groups
from lungml.augment import Augmentation
from lungml.crop_cache import BENIGN, NON_NODULE
from lungml.fit import fit
from lungml.fit_settings import FitSettings
from lungml.geometry import Grid
from lungml.models.nodule_net import NoduleNetConfig
from lungml.recipes.classification import ClassificationRecipe, classification_problem
from lungml.recipes.data import PreparedScan

CROP_SHAPE = (16, 24, 24)  # an eighth of a real crop's voxels
TILES = 8  # by 8 crops side by side, half of them nodules, make a scan
BALLS = 7
TRUE_AUC = 0.85  # at least, with true labels
# Of one network of random labels the AUC on 64 validation crops of each class had a standard deviation of 0.08 (16
# networks of several sizes): drawing the crops makes 0.05 of it, what it happens to look at the rest. Of the mean of
# three this band is more than three deviations on either side.
CHANCE = (0.35, 0.65)
RECIPE = ClassificationRecipe(
    fit=FitSettings(
        epochs=5,
        samples_per_epoch=256,
        batch_size=16,
        optimizer="adamw",
        learning_rate=1e-2,
        schedule="one_cycle",
        select_by="auc",
        validate_every=5,  # once: the best of several epochs would be better than chance by the choice alone
    ),
    model=NoduleNetConfig(crop_shape=CROP_SHAPE, depth=3, width=2),
    augmentation=Augmentation(),
)


def scan_of_balls(rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[float, float, float]], list[int]]:
    """A volume made of crops side by side, the crops' centres, and their labels."""
    depth, rows, cols = CROP_SHAPE
    hu = rng.normal(-850, 30, (depth, TILES * rows, TILES * cols))
    centers, labels = [], rng.permutation(np.repeat([BENIGN, NON_NODULE], TILES * TILES // 2)).tolist()
    middle = np.array(CROP_SHAPE) // 2
    axes = np.ogrid[tuple(slice(n) for n in CROP_SHAPE)]
    for number, label in enumerate(labels):
        row, col = (number // TILES) * rows, (number % TILES) * cols
        tile = hu[:, row : row + rows, col : col + cols]
        places = [middle] if label == BENIGN else []
        while len(places) < BALLS:
            place = rng.integers(2, np.array(CROP_SHAPE) - 2)
            if np.abs(place - middle).max() > 4:
                places.append(place)
        for place in places:
            squared = sum((axis - at) ** 2 for axis, at in zip(axes, place))
            tile[squared <= rng.uniform(1.5, 2.5) ** 2] = rng.uniform(-300, 100)
        centers.append((depth // 2, row + rows // 2, col + cols // 2))
    return hu.astype(np.int16), centers, labels


def write_scan(group: Path, split: str, seed: int, shuffle: np.random.Generator | None = None) -> PreparedScan:
    """Cut a scan's crops, under its true labels or shuffled ones."""
    hu, centers, labels = scan_of_balls(np.random.default_rng(seed))
    if shuffle is not None:
        labels = shuffle.permutation(labels).tolist()
    grid = Grid(shape_irc=hu.shape, spacing_xyz=(1, 1, 1), origin_xyz=(0, 0, 0))
    sites = [
        crop_cache.CropSite(center_irc=center, label=label, diameter_mm=8) for center, label in zip(centers, labels)
    ]
    crop_cache.write_scan_crops(group, hu, np.zeros(hu.shape, np.uint8), grid, sites, slab_sites=[], key={})
    return PreparedScan(
        series_uid=group.name, split=split, store=group, mask_name="mask", crops=group,  # type: ignore[arg-type]
        crops_digest=groups.key_digest({}), digest=str(seed), nodules=(), excluded=(),
    )  # fmt: skip


def validation_auc(scans: list[PreparedScan], seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    problem = classification_problem(RECIPE, scans, device=torch.device("cpu"), generator=generator)
    return fit(problem, RECIPE.fit, seed=seed).val["auc"]


def test_shuffled_labels_fall_to_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crop_cache, "CROP_SHAPE", CROP_SHAPE)
    held_out = [write_scan(tmp_path / f"val{seed}", "val", seed) for seed in (1, 2)]
    learned = [write_scan(tmp_path / f"train{seed}", "train", seed) for seed in (3, 4, 5, 6)]
    assert validation_auc([*learned, *held_out], seed=0) > TRUE_AUC
    aucs = []
    for seed in (0, 1, 2):
        rng = np.random.default_rng(seed)
        shuffled = [write_scan(tmp_path / f"{seed}-{n}", "train", n, shuffle=rng) for n in (3, 4, 5, 6)]
        aucs.append(validation_auc([*shuffled, *held_out], seed=seed))
    assert CHANCE[0] < float(np.mean(aucs)) < CHANCE[1]
