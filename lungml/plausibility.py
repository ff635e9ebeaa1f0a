"""Can these voxels be a chest CT in HU?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lungml.geometry import Grid
from lungml.scan_errors import (
    ByteOrderError,
    ElementTypeError,
    EmptyScanError,
    ImplausibleScanError,
    ScanGeometryError,
)

AIR_BELOW_HU = -500  # every chest CT goes below: lung is about -850
TISSUE_ABOVE_HU = -200  # and above: fat is about -100, water 0
PLAUSIBLE_HU = (-4096, 8192)  # padding goes to -3024, metal in LUNA16 to +5892
AIR_ABOVE_HU = -1100  # padding lies below; air is -1000 with noise
MIN_SHARE = 1e-3  # of the voxels must be air, and as many tissue; the real scans have 0.4 and 0.36
MAX_IMPLAUSIBLE = 0.05  # of the voxels; int16 in the wrong byte order is nearly uniform: about 0.6
SAMPLED = 2**17  # voxels looked at where a share is asked for
ROUGHER = 2.0  # times: real scans in the wrong byte order are some hundred times as rough as in the right one
MIN_SLICES = 2  # with one there is no spacing between slices, and nothing to look at in 3D

SAME_MM = 0.01  # spacings are rounded: LUNA16 has 2.5000001
THICK_MM = 2.5  # LUNA16 left out scans of thicker slices
MIN_EXTENT_MM = 100.0  # a lung is about 250 mm high and 300 mm wide
COARSE = 4  # every 4th voxel in plane and every 4th slice are enough to see a lung
MIN_LUNG = 0.01  # of the voxels; the real scans have 0.10 and more


def as_int16(stored: npt.NDArray[Any], path: Path, where: str = "") -> npt.NDArray[np.int16]:
    """The same values as native int16; other types only when nothing is lost.

    Args:
        stored: of any shape and number type.
        path: of the scan.
        where: which part of it, as the error's text begins.

    Raises:
        ElementTypeError: values that are not whole HU in the range of int16.
    """
    if stored.dtype.kind == "i" and stored.dtype.itemsize == 2:
        return stored.astype(np.int16, copy=False)
    with np.errstate(invalid="ignore"):  # NaN and too large values are what the comparison below finds
        hu = stored.astype(np.int16)
    if not np.array_equal(hu, stored):
        raise ElementTypeError(
            path, f"{where}{stored.dtype.name} values that are not whole HU in -32768..32767", "store it as int16"
        )
    return hu


def check_plausible(hu: npt.NDArray[np.int16], path: Path) -> None:
    """Refuse values that no chest CT has. Padding and metal pass; whether there are lungs is not asked.

    Raises:
        ScanGeometryError: a single slice.
        EmptyScanError: one value everywhere, or nothing that is tissue.
        ByteOrderError: the values make sense with their bytes swapped, and none as they are.
        ImplausibleScanError: no air, or values far outside HU.
    """
    if len(hu) < MIN_SLICES:
        raise ScanGeometryError(path, f"{len(hu)} slice is no volume", "give the whole series")
    low, high = int(hu.min()), int(hu.max())
    if low == high:
        raise EmptyScanError(path, f"every voxel is {low} HU: an empty scan", "export the scan again")
    if _is_swapped(hu):
        raise ByteOrderError(
            path, "the values are a CT only with their bytes swapped", "check the byte order (BinaryDataByteOrderMSB)"
        )
    if low >= AIR_BELOW_HU:
        raise ImplausibleScanError(
            path,
            f"no air: the lowest value is {low} HU, every chest CT goes below {AIR_BELOW_HU}",
            "check that the values are HU (a missing rescale intercept of -1024?)",
        )
    if high <= TISSUE_ABOVE_HU:
        raise EmptyScanError(
            path,
            f"no tissue: the highest value is {high} HU, every chest CT goes above {TISSUE_ABOVE_HU}",
            "check that the values are HU and the field of view is not empty",
        )
    air, tissue = _shares(hu)
    if tissue < MIN_SHARE:
        raise EmptyScanError(
            path, f"{tissue:.2%} of the voxels are tissue: an empty field of view", "give the series of the patient"
        )
    if low < PLAUSIBLE_HU[0] or high > PLAUSIBLE_HU[1]:
        # The lowest value may be padding of any size, so it does not count.
        wild = int(np.count_nonzero((hu > PLAUSIBLE_HU[1]) | ((hu < PLAUSIBLE_HU[0]) & (hu != low))))
        if wild > MAX_IMPLAUSIBLE * hu.size:
            raise ImplausibleScanError(
                path,
                f"{wild / hu.size:.0%} of the voxels lie outside {PLAUSIBLE_HU[0]}..{PLAUSIBLE_HU[1]} HU",
                "check the byte order (BinaryDataByteOrderMSB) and the rescaling",
            )
    if air < MIN_SHARE:
        raise ImplausibleScanError(
            path,
            f"{air:.2%} of the voxels are air ({AIR_ABOVE_HU}..{AIR_BELOW_HU} HU), the rest of what is low is padding",
            "check that the values are HU (a missing rescale intercept of -1024?)",
        )


def _shares(hu: npt.NDArray[np.int16]) -> tuple[float, float]:
    """Which part of the voxels is air, and which is tissue or denser; of a large volume an even sample counts."""
    # An odd stride: an even one would look at the same columns of every row.
    sample = hu.ravel(order="K")[:: (hu.size // SAMPLED) | 1]
    air = np.count_nonzero((sample >= AIR_ABOVE_HU) & (sample < AIR_BELOW_HU))
    return air / sample.size, np.count_nonzero(sample > TISSUE_ABOVE_HU) / sample.size


def _is_swapped(hu: npt.NDArray[np.int16]) -> bool:
    """Whether the values were written in the other byte order.

    Neighbours in a CT are alike. With their bytes swapped the fine differences come first, and a row is as rough as
    noise: the order in which it is smooth is the right one, provided that it is also one of air and tissue.
    """
    count, rows, _ = hu.shape
    sample = np.ascontiguousarray(hu[:: max(1, count // 8), :: max(1, rows // 64)])
    swapped = sample.byteswap()
    roughness = [float(np.abs(np.diff(values.astype(np.int32), axis=2)).mean()) for values in (sample, swapped)]
    return roughness[0] > ROUGHER * roughness[1] and min(_shares(swapped)) >= MIN_SHARE


def doubts(hu: npt.NDArray[np.int16], grid: Grid) -> tuple[str, ...]:
    """What a person should know of a scan that can be read: no lungs, too little of a chest, or slices far apart.

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
    if grid.spacing_irc[0] > THICK_MM + SAME_MM:
        found.append(
            f"slices {grid.spacing_irc[0]:.3g} mm apart: LUNA16's are {THICK_MM:g} mm at most, and a small nodule may "
            "lie between two of these"
        )
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
