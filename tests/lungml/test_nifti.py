"""A NIfTI file of 3 x 4 x 5 voxels; what can be wrong with one is in test_damage."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from lungml import ct
from lungml.ct import read_scan, scan_fingerprint, source_files
from lungml.geometry import Grid, irc_to_xyz

SHAPE = (3, 4, 5)
HU = (np.arange(60, dtype=np.int16) * 20 - 900).reshape(SHAPE)
SPACING, ORIGIN = (0.75, 0.5, 2.5), (-10.0, 20.5, -340.0)
TILT = Rotation.from_euler("xyz", [12, -7, 30], degrees=True).as_matrix()


def image(hu: np.ndarray = HU, direction: np.ndarray | None = None) -> sitk.Image:
    made = sitk.GetImageFromArray(hu)
    made.SetSpacing(SPACING)
    made.SetOrigin(ORIGIN)
    if direction is not None:
        made.SetDirection(np.ravel(direction).tolist())
    return made


def write(folder: Path, suffix: str = ".nii", **change: Any) -> Path:
    """As SimpleITK writes it, with fields of the header changed."""
    path = folder / f"1.2.3{suffix}"
    sitk.WriteImage(image(), str(folder / "plain.nii"))
    content = bytearray((folder / "plain.nii").read_bytes())
    (folder / "plain.nii").unlink()
    for name, value in change.items():
        field = nib.Nifti1Header.template_dtype.fields[name]
        new = np.zeros((), dtype=field[0])
        new[...] = value
        content[field[1] : field[1] + new.nbytes] = new.tobytes()
    path.write_bytes(gzip.compress(bytes(content)) if suffix.endswith(".gz") else bytes(content))
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("direction", [np.eye(3), np.diag([1, -1, -1]), TILT], ids=["plain", "flipped", "tilted"])
def test_voxels_and_places_are_simpleitks(direction: np.ndarray, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"1.2.3{suffix}"
    sitk.WriteImage(image(direction=direction), str(path))
    scan, same = read_scan(path), sitk.ReadImage(str(path))
    assert scan.series_uid == "1.2.3"
    np.testing.assert_array_equal(scan.hu, HU)
    assert scan.hu.dtype == np.int16
    for irc in [(0, 0, 0), (2, 1, 4), (1, 3, 0)]:
        place = same.TransformIndexToPhysicalPoint(irc[::-1])
        np.testing.assert_allclose(irc_to_xyz(irc, scan.grid), place, atol=1e-4)
    assert source_files(path) == (path,)


@pytest.mark.parametrize("order", ["coronal", "sagittal"])
def test_a_volume_stored_along_another_axis_is_turned_exactly(order: str, tmp_path: Path) -> None:
    axial = image()
    axes = [0, 2, 1] if order == "coronal" else [1, 2, 0]
    sitk.WriteImage(sitk.PermuteAxes(axial, axes), str(tmp_path / "a.nii"))
    sitk.WriteImage(sitk.PermuteAxes(axial, axes), str(tmp_path / "a.mhd"))
    for name in ("a.nii", "a.mhd"):
        scan = read_scan(tmp_path / name)
        np.testing.assert_array_equal(scan.hu, HU)
        expected = Grid(shape_irc=SHAPE, spacing_xyz=SPACING, origin_xyz=ORIGIN)
        for irc in [(0, 0, 0), (2, 1, 4)]:
            np.testing.assert_allclose(irc_to_xyz(irc, scan.grid), irc_to_xyz(irc, expected), atol=1e-5)


def test_scaling_is_exact_and_wide_types_pass_without_loss(tmp_path: Path) -> None:
    stored = ((HU.astype(np.int32) + 1000) // 20).astype(np.uint16)
    path = tmp_path / "a.nii"
    made = nib.Nifti1Image(stored.T, np.diag([-0.75, -0.5, 2.5, 1]))
    made.header.set_slope_inter(20, -1000)
    nib.save(made, path)
    np.testing.assert_array_equal(read_scan(path).hu, HU)
    for kind in (np.int32, np.float32, np.float64):
        nib.save(nib.Nifti1Image(HU.T.astype(kind), np.diag([-0.75, -0.5, 2.5, 1])), path)
        np.testing.assert_array_equal(read_scan(path).hu, HU)
    nib.save(nib.Nifti2Image(HU.T, np.diag([-0.75, -0.5, 2.5, 1])), path)
    np.testing.assert_array_equal(read_scan(path).hu, HU)
    big = nib.Nifti1Image(HU.T, np.diag([-0.75, -0.5, 2.5, 1]), nib.Nifti1Header(endianness=">"))
    nib.save(big, path)
    np.testing.assert_array_equal(read_scan(path).hu, HU)
    nib.save(nib.Nifti1Image(HU.T[..., None], np.diag([-0.75, -0.5, 2.5, 1])), path)
    np.testing.assert_array_equal(read_scan(path).hu, HU)


def test_the_fingerprint_follows_head_size_and_time(tmp_path: Path) -> None:
    path = write(tmp_path)
    first = scan_fingerprint(path)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))
    second = scan_fingerprint(path)
    write(tmp_path, descrip=b"another")
    assert len({first, second, scan_fingerprint(path)}) == 3


@settings(max_examples=200, deadline=None, derandomize=True)
@given(changes=st.lists(st.tuples(st.integers(0, 360), st.binary(min_size=1, max_size=8)), max_size=4))
def test_any_header_either_reads_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, bytes]]
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"fuzz-nifti-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    if not (folder / "good").exists():
        write(folder).rename(folder / "good")
    content = bytearray((folder / "good").read_bytes())
    for place, piece in changes:
        content[place : place + len(piece)] = piece
    for name, stored in (("1.2.3.nii", bytes(content)), ("1.2.3.nii.gz", gzip.compress(content, 1))):
        read_or_refuse(folder / name, stored)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4))
def test_any_gzip_stream_either_reads_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, bytes]]
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"fuzz-gz-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    if not (folder / "good").exists():
        write(folder, ".nii.gz").rename(folder / "good")
    content = bytearray((folder / "good").read_bytes())
    for place, piece in changes:
        place %= len(content)
        content[place : place + len(piece)] = piece
    read_or_refuse(folder / "1.2.3.nii.gz", bytes(content))


def read_or_refuse(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        assert read_scan(path).hu.size == 60
    except ct.ScanError as error:
        assert len(str(error).splitlines()) == 1


def test_a_metaimage_stored_as_nifti_is_the_same_scan(tmp_path: Path) -> None:
    # NIfTI keeps its matrix in float32: 1e-4 mm at 340 mm.
    for direction in (np.eye(3), np.diag([-1, 1, -1]), TILT):
        sitk.WriteImage(image(direction=direction), str(tmp_path / "a.mhd"))
        sitk.WriteImage(sitk.ReadImage(str(tmp_path / "a.mhd")), str(tmp_path / "a.nii.gz"))
        one, other = read_scan(tmp_path / "a.mhd"), read_scan(tmp_path / "a.nii.gz")
        np.testing.assert_array_equal(one.hu, other.hu)
        np.testing.assert_allclose(one.grid.spacing_xyz, other.grid.spacing_xyz, atol=1e-4)
        for irc in np.ndindex(2, 2, 2):
            far = np.multiply(irc, np.subtract(SHAPE, 1))
            np.testing.assert_allclose(irc_to_xyz(far, one.grid), irc_to_xyz(far, other.grid), atol=1e-4)


@pytest.mark.real
@pytest.mark.skipif("LUNGML_REAL_DATA" not in os.environ, reason="LUNGML_REAL_DATA is not set")
def test_a_real_scan_stored_as_nifti_is_the_same_scan(tmp_path: Path) -> None:
    for path in sorted((Path(os.environ["LUNGML_REAL_DATA"]) / "luna16" / "scans").glob("*.mhd")):
        sitk.WriteImage(sitk.ReadImage(str(path)), str(tmp_path / "a.nii"))
        one, other = read_scan(path), read_scan(tmp_path / "a.nii")
        np.testing.assert_array_equal(one.hu, other.hu)
        last = np.subtract(one.hu.shape, 1)
        np.testing.assert_allclose(irc_to_xyz(last, one.grid), irc_to_xyz(last, other.grid), atol=1e-4)
        assert other.warnings == ()
