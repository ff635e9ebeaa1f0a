from pathlib import Path

import numpy as np
import pytest

from lungml.geometry import Grid
from lungml.phantom import PhantomSettings, draw_phantom
from lungml.plausibility import as_int16, check_plausible, doubts
from lungml.scan_errors import ByteOrderError, ElementTypeError, ScanGeometryError

SHAPE = (40, 128, 128)
GRID = Grid(shape_irc=SHAPE, spacing_xyz=(2.5, 2.5, 2.5), origin_xyz=(0, 0, 0))


def body(lungs: bool = True) -> np.ndarray:
    """Air around an elliptic body of water with, or without, two lungs that reach its ends along z."""
    hu = np.full(SHAPE, -1000, np.int16)
    _, row, col = np.ogrid[tuple(slice(n) for n in SHAPE)]
    hu[np.broadcast_to(((row - 64) / 40) ** 2 + ((col - 64) / 56) ** 2 < 1, SHAPE)] = 30
    if lungs:
        for middle in (40, 88):
            hu[np.broadcast_to((row - 64) ** 2 + (col - middle) ** 2 < 15**2, SHAPE)] = -850
    return hu


def test_a_chest_raises_no_doubt() -> None:
    assert doubts(body(), GRID) == ()


def test_a_body_without_lungs_is_doubted_though_air_is_all_around() -> None:
    (line,) = doubts(body(lungs=False), GRID)
    assert "no lungs seen: the body encloses air in 0.0% of the voxels" in line
    padded = body(lungs=False)
    padded[:, :, :5] = -2048
    assert len(doubts(padded, GRID)) == 1


def test_an_abdomen_is_doubted_though_there_is_gas_in_it() -> None:
    belly = body(lungs=False)
    belly[10:14, 60:64, 50:58] = -900
    (line,) = doubts(belly, GRID)
    assert line.startswith("no lungs seen")


@pytest.mark.parametrize("seed", range(2))
def test_no_phantom_is_without_lungs(seed: int) -> None:
    for size in ((32, 48, 48), (72, 128, 128)):
        drawn = draw_phantom("1.2", np.random.default_rng(seed), PhantomSettings(size_irc=size))
        assert not any("no lungs" in line for line in doubts(drawn.hu, drawn.grid))
        check_plausible(drawn.hu, Path("a.mhd"))


@pytest.mark.parametrize("noise_hu", [0, 20])
def test_a_wrong_byte_order_is_seen_even_where_few_values_are_wild(noise_hu: int) -> None:
    right = (body() + np.random.default_rng(0).normal(0, noise_hu, SHAPE)).astype(np.int16)
    check_plausible(right, Path("a.mhd"))
    with pytest.raises(ByteOrderError, match="bytes swapped"):
        check_plausible(right.byteswap(), Path("a.mhd"))


def test_values_that_are_right_both_ways_stay_as_they_are() -> None:
    # -1024 and 0 with their bytes swapped are smoother (252 and 0), and no CT.
    hu = np.where(body() < -500, -1024, 0).astype(np.int16)
    check_plausible(hu, Path("a.mhd"))


def test_a_few_slices_are_no_whole_chest() -> None:
    grid = Grid(shape_irc=(10, 128, 128), spacing_xyz=(2.5, 2.5, 2.5), origin_xyz=(0, 0, 0))
    assert doubts(body()[:10], grid) == ("only 25 x 320 x 320 mm (index x row x col): not a whole chest",)


def test_thick_slices_are_told_of_and_a_rounded_spacing_is_not() -> None:
    thick, rounded = (
        Grid(shape_irc=SHAPE, spacing_xyz=(2.5, 2.5, slice_mm), origin_xyz=(0, 0, 0)) for slice_mm in (5.0, 2.5000001)
    )
    (line,) = doubts(body(), thick)
    assert line.startswith("slices 5 mm apart: LUNA16's are 2.5 mm at most")
    assert doubts(body(), rounded) == ()


def test_one_slice_is_no_volume() -> None:
    with pytest.raises(ScanGeometryError, match="1 slice is no volume"):
        check_plausible(body()[:1], Path("a.mhd"))


@pytest.mark.parametrize("wrong", [np.float32(0.5), np.nan, 40_000, -40_000])
def test_a_value_that_is_no_int16_is_refused(wrong: float) -> None:
    stored = body().astype(np.float64)
    assert as_int16(stored, Path("a.mhd")).dtype == np.int16
    stored[0, 0, 0] = wrong
    with pytest.raises(ElementTypeError, match="float64 values that are not whole HU"):
        as_int16(stored, Path("a.mhd"))


def test_unsigned_values_beyond_int16_do_not_wrap_around() -> None:
    stored = np.full((2, 2, 2), 65_000, np.uint16)
    with pytest.raises(ElementTypeError, match="uint16"):
        as_int16(stored, Path("a.nii"))
