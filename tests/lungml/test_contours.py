import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lungml.contours import Patch, centroid, count_pixels, fill_contours, overlap, union
from lungml.lidc_xml import Contour
from tests.lungml.fixtures.lidc import Pixels, square


def outline(z_mm: float, points: Pixels, inclusion: bool = True) -> Contour:
    return Contour(z_mm, inclusion, np.array(points, dtype=np.int32), "1.2")


def filled(points: Pixels) -> Patch:
    """The pixels of a reading of one contour."""
    (patch,) = fill_contours([outline(0, points)]).values()
    return patch


def inside(patch: Patch) -> set[tuple[int, int]]:
    return {(row, col) for row, col in patch.points.tolist()}


def test_the_line_is_not_part_of_the_nodule() -> None:
    patch = filled(square(10, 20, 4))
    assert (patch.row, patch.col, patch.inside.shape) == (10, 20, (4, 4))
    assert inside(patch) == {(11, 21), (11, 22), (12, 21), (12, 22)}


def test_a_diamond_keeps_only_its_middle() -> None:
    assert inside(filled([(0, 1), (1, 2), (2, 1), (1, 0)])) == {(1, 1)}


def test_gaps_are_bridged_and_the_end_joins_the_start() -> None:
    assert filled([(0, 0), (0, 9), (9, 9), (9, 0)]).inside.sum() == 64
    spur = [(0, 0), (0, 9), (0, 14), (0, 9), (9, 9), (9, 0)]  # out along a line and back
    assert filled(spur).inside.sum() == 64


def flooded(line: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """What cannot be reached from outside over the sides of pixels, pixel by pixel."""
    rows, cols = ([pixel[axis] for pixel in line] for axis in (0, 1))
    top, bottom, left, right = min(rows) - 1, max(rows) + 1, min(cols) - 1, max(cols) + 1
    reached, todo = set(line), [(top, left)]
    while todo:
        row, col = todo.pop()
        if (row, col) not in reached and top <= row <= bottom and left <= col <= right:
            reached.add((row, col))
            todo += [(row + 1, col), (row - 1, col), (row, col + 1), (row, col - 1)]
    return {(r, c) for r in range(top, bottom + 1) for c in range(left, right + 1)} - reached


@given(st.lists(st.tuples(st.sampled_from([-1, 0, 1]), st.sampled_from([-1, 0, 1])), min_size=1, max_size=60))
def test_filling_agrees_with_a_flood(steps: list[tuple[int, int]]) -> None:
    walk = np.cumsum([(50, 50), *steps, *[(-r, -c) for r, c in steps]], axis=0)  # ends where it began
    shuffled = np.cumsum([(50, 50), *steps, *sorted((-r, -c) for r, c in steps)], axis=0)
    for points in (walk, shuffled):
        line = {(int(r), int(c)) for r, c in points}
        assert inside(filled(points.tolist())) == (flooded(line) or line)


@given(st.integers(3, 30), st.integers(3, 30), st.integers(-1, 1))
def test_the_area_of_a_parallelogram_is_picks(height: int, width: int, lean: int) -> None:
    corners = [(0, 0), (0, width), (height, width + lean * height), (height, lean * height)]
    area, on_line = height * width, 2 * (height + width)
    shifted = [(row + 60, col + 60) for row, col in corners]
    assert filled(shifted).inside.sum() == area - on_line // 2 + 1  # Pick's theorem


def test_a_hole_takes_its_line_with_it() -> None:
    whole = [outline(5, square(0, 0, 11))]  # 81 pixels inside
    hole = outline(5, square(3, 3, 4), inclusion=False)  # 4 inside, 12 on the line
    assert count_pixels(fill_contours(whole)) == 81
    assert count_pixels(fill_contours([*whole, hole])) == 65
    assert count_pixels(fill_contours([hole, *whole])) == 65
    assert count_pixels(fill_contours([*whole, outline(5, [(5, 5)], inclusion=False)])) == 80
    assert count_pixels(fill_contours([*whole, outline(6, square(3, 3, 4), inclusion=False)])) == 81


def test_a_reading_is_all_its_slices_and_islands() -> None:
    region = fill_contours([outline(2, square(0, 0, 4)), outline(1, square(0, 0, 3)), outline(2, square(0, 20, 4))])
    assert list(region) == [1, 2]
    assert [patch.inside.sum() for patch in region.values()] == [1, 8]
    z_mm, row, col = centroid(region)
    assert (z_mm, row, col) == pytest.approx(((1 + 8 * 2) / 9, (1 + 8 * 1.5) / 9, (1 + 4 * 1.5 + 4 * 21.5) / 9))


@pytest.mark.parametrize(
    ("points", "on_line"),
    [([(3, 3)], 1), ([(3, 3), (3, 3)], 1), ([(3, 3), (3, 9)], 7), ([(0, 0), (0, 1), (1, 1), (1, 0)], 4)],
)
def test_a_reading_that_encloses_nothing_is_its_line(points: Pixels, on_line: int) -> None:
    assert filled(points).inside.sum() == on_line


def test_a_hole_in_nothing_is_no_reading() -> None:
    assert fill_contours([outline(1, square(0, 0, 5), inclusion=False)]) == {}


def test_overlap_is_a_shared_pixel_inside_on_one_slice() -> None:
    here = fill_contours([outline(1, square(0, 0, 4))])  # inside: 1..2
    assert overlap(here, fill_contours([outline(1.0004, square(1, 1, 4))]))  # inside: 2..3
    assert not overlap(here, fill_contours([outline(1, square(2, 2, 4))]))  # inside: 3..4, only lines cross
    assert not overlap(here, fill_contours([outline(2, square(0, 0, 4))]))
    assert not overlap(here, fill_contours([outline(1, square(40, 40, 4))]))


def test_union() -> None:
    one = fill_contours([outline(1, square(0, 0, 4)), outline(2, square(0, 0, 4))])
    other = fill_contours([outline(2, square(1, 1, 4)), outline(3, square(0, 0, 4))])
    both = union([one, other])
    assert [(z, int(patch.inside.sum())) for z, patch in both.items()] == [(1, 4), (2, 7), (3, 4)]
    assert union([one]) == one
