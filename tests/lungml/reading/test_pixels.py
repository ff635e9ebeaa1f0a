from __future__ import annotations

import base64
import io
import os
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
from PIL import Image
from scipy.spatial.transform import Rotation

from lungml.ct import read_scan
from lungml.geometry import Grid, as_triple, irc_to_xyz, xyz_to_irc
from lungml.marked import Marked
from lungml.reading.pixels import (
    QUALITIES,
    TEXT_BYTES_PER_VOXEL,
    PackedSlices,
    level_hu,
    pack_marks,
    pack_slices,
    to_levels,
    upright,
)
from tests.lungml.reading.page_readings import GRID, chest

REAL_DATA = os.environ.get("LUNGML_REAL_DATA")
TILT = np.radians(12)
GRIDS = {
    "as LUNA16": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "feet first, mirrored": ((-1, 0, 0), (0, 1, 0), (0, 0, -1)),
    "prone": ((1, 0, 0), (0, -1, 0), (0, 0, 1)),
    "as a NIfTI": ((-1, 0, 0), (0, -1, 0), (0, 0, 1)),
    "gantry tilted": ((1, 0, 0), (0, np.cos(TILT), -np.sin(TILT)), (0, np.sin(TILT), np.cos(TILT))),
    "tilted, feet first": ((1, 0, 0), (0, np.cos(TILT), np.sin(TILT)), (0, np.sin(TILT), -np.cos(TILT))),
}


def unpack_slices(packed: PackedSlices) -> npt.NDArray[np.uint8]:
    """(index, row, col) levels, as a browser decodes them, give or take one."""
    return np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in packed.texts])


def hu_errors(hu: npt.NDArray[np.int16], window_hu: Sequence[float], packed: PackedSlices) -> tuple[float, float]:
    """How far pictures are from the HU that lie in a window: root of the mean square, and maximum.

    Args:
        hu: (index, row, col), as it was packed.
        window_hu: (lowest, highest).
        packed: of it.
    """
    shown = np.array(level_hu())[unpack_slices(packed)]
    inside = (hu >= window_hu[0]) & (hu <= window_hu[1])
    errors = np.abs(shown[inside] - hu[inside])
    return float(np.sqrt(np.mean(errors**2))), float(errors.max())


def grid_of(name: str) -> Grid:
    return Grid(shape_irc=(4, 5, 6), spacing_xyz=(0.7, 0.8, 2.5), origin_xyz=(-10, 20, 30), direction=GRIDS[name])


@pytest.mark.parametrize("name", GRIDS)
def test_a_turned_scan_has_the_same_voxel_at_the_same_place(name: str) -> None:
    grid = grid_of(name)
    volume = np.arange(120).reshape(grid.shape_irc)
    turn = upright(grid)
    turned = turn.apply(volume)
    assert turned.shape == turn.grid.shape_irc
    for place in np.ndindex(turned.shape):
        there = np.rint(xyz_to_irc(irc_to_xyz(place, turn.grid), grid)).astype(int)
        assert volume[tuple(there)] == turned[place]


@pytest.mark.parametrize("name", GRIDS)
def test_a_turned_scan_runs_to_the_left_the_back_and_the_head(name: str) -> None:
    direction = np.asarray(upright(grid_of(name)).grid.direction)
    assert (np.diag(direction) > 0.9).all()


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "LPI", "RPI", "PSL", "ASR", "LIP"])
def test_a_file_of_any_orientation_is_upright_once_it_is_read(tmp_path: Path, orientation: str) -> None:
    """Reading makes slices axial; what still runs backwards is turned here, and nothing else is left to do."""
    hu = chest(GRID, [((-10.0, 0.0, -270.0), 12.0)])
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing(GRID.spacing_xyz)
    image.SetOrigin(GRID.origin_xyz)
    sitk.WriteImage(sitk.DICOMOrient(image, orientation), str(tmp_path / "scan.nii.gz"))
    scan = read_scan(tmp_path / "scan.nii.gz")
    turn = upright(scan.grid)
    np.testing.assert_array_equal(turn.apply(scan.hu), hu)
    np.testing.assert_allclose(turn.grid.direction, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(turn.grid.origin_xyz, GRID.origin_xyz, atol=1e-3)
    np.testing.assert_allclose(turn.grid.spacing_xyz, GRID.spacing_xyz, atol=1e-6)
    backwards = {letter: bool(set(letter) & set("RAI")) for letter in orientation}
    axial = [next(letter for letter in orientation if letter in pair) for pair in ("IS", "AP", "LR")]
    assert turn.turned_round == tuple(backwards[letter] for letter in axial)


def test_a_scan_too_oblique_to_tell_its_axes_apart_keeps_them() -> None:
    direction = tuple(as_triple(row) for row in Rotation.from_rotvec(np.radians(61) * np.ones(3) / 3**0.5).as_matrix())
    turn = upright(replace(GRID, direction=direction))
    assert turn.grid.shape_irc == GRID.shape_irc
    assert turn.turned_round == (False, False, False)


def test_levels_keep_soft_tissue_within_two_hu_and_lung_within_five() -> None:
    hu = np.arange(-2048, 3072, dtype=np.int16)
    shown = np.array(level_hu())[to_levels(hu)]
    error = np.abs(shown - hu)
    assert error[(hu >= -160) & (hu <= 240)].max() <= 2.01
    assert error[(hu >= -1100) & (hu < -160)].max() <= 4.6
    assert error[(hu > 240) & (hu <= 1360)].max() <= 11
    assert shown.min() == -1100
    assert shown.max() == 1360
    assert (np.diff(shown) >= 0).all()


def test_slices_keep_their_order_and_their_place() -> None:
    hu = chest(GRID, [((-10.0, 0.0, -270.0), 12.0)])
    packed = pack_slices(to_levels(hu))
    assert len(packed.texts) == len(hu)
    assert hu_errors(hu, (-160, 240), packed)[0] < 40  # a ball of a few pixels is all edge
    assert hu_errors(hu, (-1000, -800), packed)[0] < 5
    assert packed.quality == QUALITIES[0]


def test_noise_costs_quality_before_it_costs_size() -> None:
    rng = np.random.default_rng(1)
    shape = (3, 256, 256)
    calm = np.clip(rng.normal(60, 4, shape), 0, 255).astype(np.uint8)
    loud = np.clip(rng.normal(128, 10, shape), 0, 255).astype(np.uint8)
    packed = {name: pack_slices(levels) for name, levels in (("calm", calm), ("loud", loud))}
    assert packed["loud"].quality < packed["calm"].quality
    for each in packed.values():
        assert sum(map(len, each.texts)) <= 1.02 * TEXT_BYTES_PER_VOXEL * np.prod(shape)


def unpacked(packed_text: str, count: int, long_steps: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    data = zlib.decompress(base64.b64decode(packed_text))
    steps = np.frombuffer(data, np.uint8, count).astype(np.int64)
    above = np.frombuffer(data, np.uint8, count, offset=count)
    steps[steps == 0] = np.frombuffer(data, "<u4", long_steps, offset=2 * count)
    return np.cumsum(steps) - 1, above


@pytest.mark.parametrize("name", GRIDS)
def test_marks_are_those_of_the_segmentation_at_every_hundredth(name: str) -> None:
    grid = grid_of(name)
    turn = upright(grid)
    probs = np.random.default_rng(2).uniform(0, 1, grid.shape_irc).astype(np.float32)
    probs[0, 0, :3] = 0.7, 0.3, 0.5  # on a threshold, which is exclusive
    marked = Marked.of(probs, 0.2)
    packed = pack_marks(marked, turn)
    voxels, above = unpacked(packed.text, packed.count, packed.long_steps)
    for hundredths in range(20, 100):
        shown = np.zeros(turn.grid.shape_irc, bool)
        shown.reshape(-1)[voxels[above >= hundredths]] = True
        np.testing.assert_array_equal(shown, turn.apply(marked.mask(hundredths / 100)))


def test_marks_far_apart_are_found_again() -> None:
    probs = np.zeros((3, 100, 100), np.float32)
    places = [(0, 0, 0), (0, 0, 1), (0, 2, 55), (0, 5, 11), (2, 99, 99)]  # steps of 1, 255 - 1, 256 and many
    for place in places:
        probs[place] = 1
    grid = Grid(shape_irc=probs.shape, spacing_xyz=(1, 1, 1), origin_xyz=(0, 0, 0))
    packed = pack_marks(Marked.of(probs, 0.5), upright(grid))
    voxels, above = unpacked(packed.text, packed.count, packed.long_steps)
    assert [tuple(int(n) for n in np.unravel_index(v, probs.shape)) for v in voxels] == places
    assert above.tolist() == [99] * 5
    assert packed.long_steps == 2


def test_nothing_marked_is_nothing_packed() -> None:
    marked = Marked.of(np.zeros((2, 3, 4), np.float32), 0.5)
    grid = Grid(shape_irc=(2, 3, 4), spacing_xyz=(1, 1, 1), origin_xyz=(0, 0, 0))
    assert pack_marks(marked, upright(grid)).count == 0


@pytest.mark.real
@pytest.mark.skipif(not REAL_DATA, reason="LUNGML_REAL_DATA does not point at the real scans")
def test_real_scans_are_small_and_near_enough_to_look_at() -> None:
    for path in sorted((Path(REAL_DATA or "") / "luna16" / "scans").glob("*.mhd")):
        hu = read_scan(path).hu
        packed = pack_slices(to_levels(hu))
        assert sum(map(len, packed.texts)) < 11e6
        every_eighth = replace(packed, texts=packed.texts[::8])
        for window_hu, root_mean_square, most in (
            ((-1350, 150), 10, 110),
            ((-160, 240), 7, 114),
            ((240, 1050), 38, 210),
        ):
            error = hu_errors(hu[::8], window_hu, every_eighth)
            assert error[0] <= root_mean_square
            assert error[1] <= most
