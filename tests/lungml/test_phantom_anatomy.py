import numpy as np
import pytest

from lungml.geometry import Grid
from lungml.lungs import lung_region
from lungml.phantom_anatomy import Chest, draw_chest
from lungml.phantom_canvas import Canvas


@pytest.fixture(scope="module", params=[(0, 48, 96), (1, 32, 64)], ids=["96", "64"])
def drawn(request: pytest.FixtureRequest) -> tuple[Canvas, Chest]:
    seed, slices, pixels = request.param
    canvas = Canvas(np.random.default_rng(seed), (slices, pixels, pixels), (1.5, 0.75, 0.75))
    return canvas, draw_chest(canvas)


def lung_depth(canvas: Canvas, chest: Chest) -> np.ndarray:
    return np.stack([chest.depth_mm.plane(n) for n in range(canvas.shape[0])])


def test_lungs_are_dark_and_what_lies_around_them_is_not(drawn: tuple[Canvas, Chest]) -> None:
    canvas, chest = drawn
    depth = lung_depth(canvas, chest)
    assert -900 < np.median(canvas.hu[depth > 2]) < -780
    assert np.median(canvas.hu[(depth < -1.5) & (depth > -4)]) > -130
    assert 0.04 < (depth > 0).mean() < 0.4


def test_there_are_two_lungs_of_about_one_size(drawn: tuple[Canvas, Chest]) -> None:
    canvas, chest = drawn
    middle = round(float(np.mean([h[2] for h in chest.hila]) / canvas.spacing[2]))
    right, left = ((lung_depth(canvas, chest)[:, :, part] > 0).sum() for part in (slice(middle), slice(middle, None)))
    assert 0.6 < left / right < 1.4


def test_the_search_for_lungs_finds_the_drawn_ones(drawn: tuple[Canvas, Chest]) -> None:
    canvas, chest = drawn
    mm = canvas.spacing.tolist()
    grid = Grid(shape_irc=canvas.shape, spacing_xyz=(mm[2], mm[1], mm[0]), origin_xyz=(0, 0, 0))
    region, step = lung_region(canvas.hu.astype(np.int16), grid)
    truth = (lung_depth(canvas, chest) > 0)[:: step[0], :: step[1], :: step[2]]
    assert 2 * (region & truth).sum() / (region.sum() + truth.sum()) > 0.85


def test_vessels_taper_away_from_the_hila_and_stay_within_the_lungs(drawn: tuple[Canvas, Chest]) -> None:
    canvas, chest = drawn
    assert len(chest.vessels) > 500
    assert all(piece.radii[0] >= piece.radii[1] - 1e-9 for piece in chest.vessels)
    thick = sorted(chest.vessels, key=lambda piece: -piece.radii[1])
    to_hilum = [min(float(np.linalg.norm(p.end - h)) for h in chest.hila) for p in thick]
    assert np.mean(to_hilum[:40]) < 0.6 * np.mean(to_hilum[-200:])
    depths = chest.depth_mm.at(canvas.voxels(np.stack([piece.end for piece in chest.vessels])))
    assert (depths > 0).mean() > 0.97


def test_every_piece_but_the_first_goes_on_from_another(drawn: tuple[Canvas, Chest]) -> None:
    ends = {tuple(piece.end) for piece in drawn[1].vessels}
    roots = {tuple(piece.start) for piece in drawn[1].vessels if tuple(piece.start) not in ends}
    assert len(roots) == 4  # an artery and a vein for each lung


def test_bone_lies_at_the_back_and_the_trachea_is_air(drawn: tuple[Canvas, Chest]) -> None:
    canvas, _ = drawn
    _, rows, cols = canvas.shape
    bone = canvas.hu > 250
    middle = slice(cols * 2 // 5, cols * 3 // 5)
    assert bone[:, rows * 3 // 5 :, middle].sum() > bone[:, : rows * 2 // 5, middle].sum()
    top = canvas.hu[-1, :, middle]
    assert top[rows // 4 : rows * 3 // 4].min() < -850
