import numpy as np
import pytest

from lungml import splitting
from lungml.marked import Marked
from lungml.splitting import Parts, fewest_voxels, split

SPACING = np.array([1.0, 0.6, 0.6])
SHAPE = (20, 40, 60)
LEVELS = (0.3, 0.5, 0.7, 0.85)


def ball(center: tuple[float, float, float], diameter_mm: float) -> np.ndarray:
    axes = np.ogrid[tuple(slice(n) for n in SHAPE)]
    return sum(((a - c) * s) ** 2 for a, c, s in zip(axes, center, SPACING)) <= (diameter_mm / 2) ** 2


def parts_of(mask: np.ndarray, prob: float = 0.9, reported: int = 0) -> Parts:
    return split(Marked.of(mask * np.float32(prob), 0.3), SPACING, LEVELS, 0.5, reported)


def peaks_irc(parts: Parts, mask: np.ndarray) -> list[list[int]]:
    return np.argwhere(mask)[parts.peaks].tolist()


@pytest.mark.parametrize(
    ("spacing_irc", "diameter_mm", "expected"),
    [
        # Halfway between two slices the sphere is 1.66 mm wide in each: a voxel of 0.9 mm and no neighbour of it.
        ((2.5, 0.9, 0.9), 3.0, 2),
        ((1.0, 1.0, 1.0), 2.1, 2),  # around the middle of an edge it holds the edge's ends; their others are 1.12 off
        ((9.0, 9.0, 9.0), 3.0, 1),  # wherever no voxel is in it, one is asked for
    ],
)
def test_the_fewest_voxels_of_a_sphere(
    spacing_irc: tuple[float, float, float], diameter_mm: float, expected: int
) -> None:
    assert fewest_voxels(spacing_irc, diameter_mm) == expected


def test_no_sphere_anywhere_has_fewer_voxels() -> None:
    rng = np.random.default_rng(0)
    for spacing in ((1.25, 0.7, 0.7), (2.0, 0.55, 0.8)):
        axes = [np.arange(-6, 7) * step for step in spacing]
        counts = []
        for place in rng.random((300, 3)) - 0.5:
            squared = [(axis - p * step) ** 2 for axis, p, step in zip(axes, place, spacing)]
            counts.append(np.count_nonzero(squared[0][:, None, None] + squared[1][:, None] + squared[2] <= 1.5**2))
        assert fewest_voxels(spacing, 3.0) <= min(counts) <= fewest_voxels(spacing, 3.0) + 3


def test_a_ball_is_one_part_and_two_that_overlap_are_two() -> None:
    one = ball((10, 20, 20), 10)
    assert peaks_irc(parts_of(one), one) == [[10, 20, 20]]
    two = one | ball((10, 20, 35), 10)  # 9 mm apart
    parts = parts_of(two)
    assert peaks_irc(parts, two) == [[10, 20, 20], [10, 20, 35]]
    # Each voxel is of the nearer one, and all is one component, of either.
    col = np.argwhere(two)[:, 2]
    assert (parts.of_voxel[col < 27] == 0).all()
    assert (parts.of_voxel[col > 28] == 1).all()
    assert len({*parts.component.tolist()}) == 1


def test_a_vessel_is_no_part_of_its_own_beside_the_nodule_it_leads_to() -> None:
    mask = ball((10, 20, 20), 8)
    mask[9:12, 19:22, 20:55] = True
    parts = parts_of(mask)
    assert peaks_irc(parts, mask) == [[10, 20, 20]]
    assert (parts.of_voxel == 0).all()


def test_a_nodule_on_a_wall_is_a_part_though_it_has_hardly_a_waist() -> None:
    mask = ball((10, 14, 30), 5)
    mask[:, :11] = True  # its centre is 1.8 mm out, its radius is 2.5
    assert [10, 14, 30] in [[i, 14, c] for i, r, c in peaks_irc(parts_of(mask), mask) if abs(r - 14) <= 1]


def test_specks_that_hold_no_nodule_are_left_out() -> None:
    assert fewest_voxels((1.0, 0.6, 0.6), 3.0) > 20
    mask = np.zeros(SHAPE, np.bool_)
    mask[5, 5:9, 5:10] = True  # 20 voxels
    assert len(parts_of(mask).peaks) == 0
    assert (parts_of(mask).of_voxel == -1).all()
    assert parts_of(mask).left_out == 0
    mask[4:7, 5:9, 5:10] = True
    assert len(parts_of(mask).peaks) == 1


def test_beyond_the_limit_the_least_separate_parts_join_and_no_component_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = ball((10, 10, 10), 6) | ball((10, 30, 10), 6) | ball((10, 10, 50), 6)  # on their own
    mask |= ball((10, 30, 35), 10) | ball((10, 30, 48), 8) | ball((10, 18, 35), 8)  # 7.8 and 7.2 mm off the first
    kept = [[10, 10, 10], [10, 30, 10], [10, 10, 50], [10, 30, 35], [10, 30, 48]]
    everything = parts_of(mask)
    assert sorted(peaks_irc(everything, mask)) == sorted([*kept, [10, 18, 35]])
    assert everything.left_out == 0
    monkeypatch.setattr(splitting, "FREELY", 0)
    assert len(parts_of(mask, reported=5).peaks) == 6  # 1.2 of 5
    for reported in (4, 0):  # a component keeps its deepest part, and the one with the narrower neck
        few = parts_of(mask, reported=reported)
        assert sorted(peaks_irc(few, mask)) == sorted(kept)
        assert few.left_out == 1
        joined = few.of_voxel[np.argwhere(mask).tolist().index([10, 18, 35])]
        assert peaks_irc(few, mask)[joined] == [10, 30, 35]


def test_what_stays_below_the_threshold_counts_as_unsure(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = ball((10, 20, 20), 6)
    assert len(parts_of(mask, prob=0.4).peaks) == 1
    monkeypatch.setattr(splitting, "FREELY", 0)
    parts = parts_of(mask, prob=0.4)
    assert (len(parts.peaks), parts.left_out) == (0, 1)
    assert (parts.of_voxel == -1).all()
    assert (parts.component == -1).all()
    assert len(parts_of(mask, prob=0.6).peaks) == 1
