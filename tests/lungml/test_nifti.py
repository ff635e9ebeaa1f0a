"""A NIfTI file of 3 x 4 x 5 voxels, and everything that can be wrong with one."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
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


def cut(folder: Path, by: int) -> Path:
    path = write(folder)
    content = path.read_bytes()
    path.write_bytes(content[:by] if by < 0 else content + bytes(by))
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


def changed(**change: Any) -> Callable[[Path], Path]:
    return lambda folder: write(folder, **change)


def packed_wrongly(folder: Path) -> Path:
    path = write(folder, ".nii.gz")
    path.write_bytes(path.read_bytes()[:-9])
    return path


def packed_twice(folder: Path) -> Path:
    path = write(folder, ".nii.gz")
    path.write_bytes(path.read_bytes() + path.read_bytes())
    return path


def misnamed(folder: Path) -> Path:
    return write(folder).rename(folder / "1.2.3.nii.gz")


def renamed(name: str) -> Callable[[Path], Path]:
    return lambda folder: write(folder).rename(folder / name)


# fmt: off
DAMAGE: dict[str, tuple[Callable[[Path], Path], type[ct.ScanError], str]] = {
    "short": (lambda f: cut(f, -2), ct.ByteCountError, "too short: 470 bytes, the header says 472"),
    "long": (lambda f: cut(f, 1), ct.ByteCountError, "too long: 473 bytes"),
    "gz cut": (packed_wrongly, ct.ByteCountError, "breaks off"),
    "gz with more behind": (packed_twice, ct.ByteCountError, "goes on after its voxels"),
    "gz that is none": (misnamed, ct.FormatError, "is not compressed"),
    "8 bit": (changed(datatype=2, bitpix=8), ct.ElementTypeError, "8-bit or colour"),
    "colour": (changed(datatype=128, bitpix=24), ct.ElementTypeError, "8-bit or colour"),
    "complex": (changed(datatype=32, bitpix=64), ct.ElementTypeError, "data type 32"),
    "bits that do not match": (changed(bitpix=32), ct.HeaderError, "bitpix 32 does not go with int16"),
    "2D": (changed(dim=[2, 5, 12, 1, 1, 1, 1, 1]), ct.ScanGeometryError, "5 x 12 voxels in 2 dimensions"),
    "4D": (changed(dim=[4, 5, 4, 1, 3, 1, 1, 1]), ct.ScanGeometryError, "5 x 4 x 1 x 3 voxels in 4 dimensions"),
    "no slices": (changed(dim=[3, 5, 4, 0, 1, 1, 1, 1]), ct.ScanGeometryError, "not 1..4096"),
    "terabytes": (changed(dim=[3, 4096, 4096, 4096, 1, 1, 1, 1]), ct.ScanGeometryError, "at most"),
    "one slice": (changed(dim=[3, 5, 12, 1, 1, 1, 1, 1]), ct.ScanGeometryError, "1 slice is no volume"),
    "metres": (changed(xyzt_units=1), ct.ScanGeometryError, "lengths in metre, not mm"),
    "no place": (changed(sform_code=0, qform_code=0), ct.ScanGeometryError, "neither sform nor qform"),
    "two places": (changed(srow_x=[-0.75, 0, 0, 15]), ct.ScanGeometryError, "sform and qform put voxels"),
    "shear": (changed(srow_x=[-0.75, 0.1, 0, 10], qform_code=0), ct.ScanGeometryError, "pixdim"),
    "singular": (changed(srow_x=[0, 0, 0, 0], qform_code=0), ct.ScanGeometryError, "spacing"),
    "nan in the matrix": (changed(srow_x=[np.nan, 0, 0, 0]), ct.ScanGeometryError, "not finite"),
    "spacing that disagrees": (changed(pixdim=[1, 0.8, 0.5, 2.5, 0, 0, 0, 0]), ct.ScanGeometryError, ""),
    "spacing in m": (changed(srow_x=[-7e-4, 0, 0, 0], qform_code=0), ct.ScanGeometryError, "check its unit"),
    "half HU": (changed(scl_slope=0.3), ct.ElementTypeError, "not whole HU"),
    "no intercept": (changed(scl_slope=1, scl_inter=np.nan), ct.HeaderError, "scl_inter is nan"),
    "voxels in the header": (changed(vox_offset=100), ct.HeaderError, "cannot begin at byte 100"),
    "no magic": (changed(magic=b"xyz"), ct.HeaderError, "no NIfTI header"),
    "pair": (changed(magic=b"ni1"), ct.FormatError, ".hdr/.img pair"),
    "no air": (changed(scl_slope=1, scl_inter=1024), ct.ImplausibleScanError, "no air"),
    "empty file": (lambda f: ((f / "a.nii").write_bytes(b"") and f) or f / "a.nii", ct.HeaderError, "no NIfTI header"),
    "missing": (lambda f: f / "none.nii", ct.MissingDataError, "no such file"),
    "long name": (renamed("a" * 200 + ".nii"), ct.SeriesUidError, "200 characters, not 128 at most"),
    "no name": (renamed("a b$c.nii"), ct.SeriesUidError, "is no series_uid"),
}
# fmt: on


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file_is_one_clear_line(case: str, tmp_path: Path) -> None:
    make, kind, message = DAMAGE[case]
    path = make(tmp_path)
    with pytest.raises(kind) as caught:
        read_scan(path)
    line = str(caught.value)
    assert message in line
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    assert "; " in line


# What SimpleITK makes of these is not the scan, and it says nothing, or a warning at the most.
SILENT = ["long", "4D", "metres", "two places", "half HU", "spacing that disagrees", "8 bit"]


@pytest.mark.parametrize("case", SILENT)
def test_simpleitk_reads_it_all_the_same(case: str, tmp_path: Path) -> None:
    assert sitk.ReadImage(str(DAMAGE[case][0](tmp_path))).GetSize()


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
    path = folder / "1.2.3.nii"
    path.write_bytes(content)
    try:
        assert read_scan(path).hu.size == 60
    except ct.ScanError as error:
        assert len(str(error).splitlines()) == 1
