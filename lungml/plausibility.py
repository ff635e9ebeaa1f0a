"""Can these voxels be a chest CT in HU?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lungml.geometry import Grid
from lungml.scan_errors import ElementTypeError, ImplausibleScanError, ScanGeometryError

AIR_BELOW_HU = -500  # every chest CT goes below: lung is about -850
TISSUE_ABOVE_HU = -200  # and above: fat is about -100, water 0
PLAUSIBLE_HU = (-4096, 8192)  # padding goes to -3024, metal in LUNA16 to +5892
MAX_IMPLAUSIBLE = 0.05  # of the voxels; int16 in the wrong byte order is nearly uniform: about 0.8
MIN_SLICES = 2  # with one there is no spacing between slices, and nothing to look at in 3D

MIN_EXTENT_MM = 100.0  # a lung is about 250 mm high and 300 mm wide
COARSE = 4  # every 4th voxel in plane and every 4th slice are enough to see a lung
MIN_LUNG = 0.01  # of the voxels; the real scans have 0.10 and more


def as_int16(stored: npt.NDArray[Any], path: Path) -> npt.NDArray[np.int16]:
    """The same values as native int16; other types only when nothing is lost.

    Raises:
        ElementTypeError: values that are not whole HU in the range of int16.
    """
    if stored.dtype.kind == "i" and stored.dtype.itemsize == 2:
        return stored.astype(np.int16, copy=False)
    with np.errstate(invalid="ignore"):  # NaN and too large values are what the comparison below finds
        hu = stored.astype(np.int16)
    if not np.array_equal(hu, stored):
        raise ElementTypeError(
            path, f"{stored.dtype.name} values that are not whole HU in -32768..32767", "store it as int16"
        )
    return hu


def check_plausible(hu: npt.NDArray[np.int16], path: Path) -> None:
    """Refuse values that no chest CT has. Padding and metal pass; whether there are lungs is not asked.

    Raises:
        ScanGeometryError: a single slice.
        ImplausibleScanError: an empty scan, one without air or tissue, or values far outside HU.
    """
    if len(hu) < MIN_SLICES:
        raise ScanGeometryError(path, f"{len(hu)} slice is no volume", "give the whole series")
    low, high = int(hu.min()), int(hu.max())
    if low == high:
        raise ImplausibleScanError(path, f"every voxel is {low} HU: an empty scan", "export the scan again")
    if low >= AIR_BELOW_HU:
        raise ImplausibleScanError(
            path,
            f"no air: the lowest value is {low} HU, every chest CT goes below {AIR_BELOW_HU}",
            "check that the values are HU (a missing rescale intercept of -1024?)",
        )
    if high <= TISSUE_ABOVE_HU:
        raise ImplausibleScanError(
            path,
            f"no tissue: the highest value is {high} HU, every chest CT goes above {TISSUE_ABOVE_HU}",
            "check that the values are HU and the field of view is not empty",
        )
    if low >= PLAUSIBLE_HU[0] and high <= PLAUSIBLE_HU[1]:
        return
    # The lowest value may be padding of any size, so it does not count.
    wild = int(np.count_nonzero((hu > PLAUSIBLE_HU[1]) | ((hu < PLAUSIBLE_HU[0]) & (hu != low))))
    if wild > MAX_IMPLAUSIBLE * hu.size:
        raise ImplausibleScanError(
            path,
            f"{wild / hu.size:.0%} of the voxels lie outside {PLAUSIBLE_HU[0]}..{PLAUSIBLE_HU[1]} HU",
            "check the byte order (BinaryDataByteOrderMSB)",
        )


def doubts(hu: npt.NDArray[np.int16], grid: Grid) -> tuple[str, ...]:
    """What a person should know of a scan that can be read: no lungs in it, or too little of a chest.

    Lung is air that the body encloses within its slice, looked for in every 4th voxel along each axis.

    Args:
        hu: (index, row, col) int16.
        grid: the scan's sampling grid.

    Returns:
        one line each; none for an ordinary chest CT.
    """
    found = []
    extents = grid.spacing_irc * hu.shape
    if extents.min() < MIN_EXTENT_MM:
        size = " x ".join(f"{mm:.0f}" for mm in extents)
        found.append(f"only {size} mm (index x row x col): not a whole chest")
    air = hu[::COARSE, ::COARSE, ::COARSE] < AIR_BELOW_HU
    in_slice = np.zeros((3, 3, 3), dtype=bool)
    in_slice[1] = ndimage.generate_binary_structure(2, 1)
    parts, count = ndimage.label(air, structure=in_slice)
    outside = np.zeros(count + 1, dtype=bool)
    outside[0] = True
    for border in (parts[:, 0], parts[:, -1], parts[:, :, 0], parts[:, :, -1]):
        outside[border] = True
    enclosed = np.count_nonzero(~outside[parts])
    if enclosed < MIN_LUNG * air.size:
        found.append(f"no lungs seen: the body encloses air in {enclosed / air.size:.1%} of the voxels; is it a chest?")
    return tuple(found)
