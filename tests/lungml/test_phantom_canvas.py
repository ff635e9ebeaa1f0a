import numpy as np
import pytest

from lungml.phantom_canvas import AIR_HU, PADDING_HU, Canvas, CoarseField


def empty(shape: tuple[int, int, int] = (24, 40, 40), spacing: tuple[float, ...] = (1.0, 0.5, 0.5)) -> Canvas:
    return Canvas(np.random.default_rng(0), shape, spacing)


def painted_mm3(canvas: Canvas) -> float:
    return float((canvas.hu - AIR_HU).sum() / -AIR_HU * np.prod(canvas.spacing))


@pytest.mark.parametrize("slice_mm", [1.0, 1.75, 2.5])
def test_a_sphere_has_its_volume_and_lies_on_its_centre_whatever_the_slices(slice_mm: float) -> None:
    canvas = empty(spacing=(slice_mm, 0.5, 0.5))
    center = np.array([12 * slice_mm + 0.3, 9.8, 10.6])
    canvas.blob(center, np.array([5.0, 5.0, 5.0]), 0.0)
    assert painted_mm3(canvas) == pytest.approx(4 / 3 * np.pi * 5**3, rel=0.05)
    weight = canvas.hu - AIR_HU
    middle = [(np.indices(canvas.shape)[axis] * weight).sum() / weight.sum() for axis in range(3)]
    np.testing.assert_allclose(middle, canvas.voxels(center), atol=0.05)


def test_a_thin_rod_between_two_slices_is_spread_over_both() -> None:
    canvas = empty(spacing=(2.5, 0.5, 0.5))
    between = 10 * 2.5
    canvas.capsule(np.array([between, 10, 4]), np.array([between, 10, 16]), (0.8, 0.8), 0.0)
    touched = (canvas.hu > -990).any(axis=(1, 2))
    np.testing.assert_array_equal(np.flatnonzero(touched), [9, 10])
    np.testing.assert_allclose(canvas.hu[9], canvas.hu[10], atol=0.1)


def test_a_rod_tapers_and_never_darkens_what_is_brighter() -> None:
    canvas = empty()
    canvas.hu[:, :, 20] = 300
    canvas.capsule(np.array([12, 10, 4]), np.array([12, 10, 16]), (3.0, 1.0), 50.0, only_brighter=True)
    assert (canvas.hu[:, :, 20] == 300).all()
    thickness = (canvas.hu[12] > -400).sum(axis=0) * 0.5
    assert thickness[10] == pytest.approx(2 * 2.8, abs=0.6)
    assert thickness[30] == pytest.approx(2 * 1.1, abs=0.6)


def test_shapes_outside_the_volume_paint_nothing() -> None:
    canvas = empty()
    canvas.blob(np.array([-20.0, 10, 10]), np.array([5.0, 5, 5]), 0.0)
    canvas.capsule(np.array([12, 10, 90]), np.array([12, 10, 95]), (2.0, 2.0), 0.0)
    assert (canvas.hu == AIR_HU).all()


def test_a_coarse_field_is_linear_between_its_points() -> None:
    steps, shape = (2, 3, 4), (5, 10, 12)
    grids = np.meshgrid(*(np.arange(0, n + k - 1, k) for n, k in zip(shape, steps)), indexing="ij")
    field = CoarseField((grids[0] + 10 * grids[1] - 3 * grids[2]).astype(np.float32), steps, shape)
    index, row, col = np.indices(shape)
    fine = np.stack([field.plane(n) for n in range(shape[0])])
    np.testing.assert_allclose(fine, index + 10 * row - 3 * col, atol=1e-4)
    assert field.at(np.array([[2.0, 3.0, 8.0], [2.0, 3.0, 12.0], [-1.0, 0.0, 0.0]])).tolist() == [8, -99, -99]


def test_the_scanner_adds_the_noise_it_was_asked_for() -> None:
    canvas = empty((20, 64, 64))
    canvas.hu[:] = 0
    hu, padding = canvas.scan(20.0)
    inside = hu[hu != padding] if padding else hu
    assert hu.dtype == np.int16
    assert inside.std() == pytest.approx(20, rel=0.05)
    assert abs(inside.mean()) < 0.5


def test_padding_lies_outside_a_circle() -> None:
    seen = set()
    for seed in range(12):
        canvas = Canvas(np.random.default_rng(seed), (32, 48, 64), (1.0, 0.7, 0.7))
        hu, padding = canvas.scan(20.0)
        seen.add(padding)
        assert hu.min() == (padding or hu.min())
        if padding:
            assert (hu[:, 0, 0] == padding).all()
            assert (hu[:, 24, 9:55] >= -1024).all()
        else:
            assert hu.min() >= -1024
    assert seen == set(PADDING_HU)
