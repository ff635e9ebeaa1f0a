"""How do a scan's voxels and the segmentation's marks become text small enough to lie inside a page?

The pictures are lossy: HU are rounded to 256 levels, fine where soft tissue and lung are told apart and coarser in
bone, and every slice is a JPEG. Two real scans of 512 x 512 x 133 are 9.1 and 10.1 MB of text, and every eighth slice
is off by, as root of the mean square and at most: 8 to 10 HU and 109 HU in the lung window (-1350 to 150 HU), 6 to
7 HU and 113 HU in the mediastinal one (-160 to 240), 32 to 37 HU and 209 HU in bone (240 to 1050).
They are for looking at: nothing is measured in HU from them.
"""

from __future__ import annotations

import base64
import io
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from lungml.geometry import Grid, as_triple, irc_to_xyz
from lungml.marked import Marked

# (HU, level), straight between; what lies beyond an end is shown as the end. Air and lung take 9 HU a level, soft
# tissue 4, bone and metal 22: the steps of the lung window's 256 greys are 6 HU, of the
# mediastinum's 1.6, below CT's noise.
LEVELS = ((-1100, 0), (-160, 104), (240, 204), (1360, 255))
QUALITIES = (94, 92, 89, 85, 80, 72)  # of JPEG, the best first
TEXT_BYTES_PER_VOXEL = 0.3  # base64: 79 kB for a slice of 512 x 512, 10.5 MB for 133 of them
SAMPLED = 8  # slices that the quality is chosen on
HUNDREDTHS = 100  # the steps of the page's sliders
LONGEST_STEP = 256  # between marked voxels that a byte holds


@dataclass(frozen=True, kw_only=True)
class Upright:
    """Which of a scan's axes run the other way round, so that a person sees it as radiologists do.

    Attributes:
        grid: of the turned volume: index runs to the head, row to the back, col to the patient's left, each as nearly
            as an axis of the scan does.
        turned_round: whether index, row and col run the other way than in the scan.
    """

    grid: Grid
    turned_round: tuple[bool, bool, bool]

    def apply(self, volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A volume on the scan's grid, (index, row, col), on the turned one; a view."""
        return volume[tuple(slice(None, None, -1 if back else 1) for back in self.turned_round)]


def upright(grid: Grid) -> Upright:
    """Which axes of a scan to turn round; a tilted grid stays tilted, nothing is resampled.

    `lungml.ct.read_scan` has made the slices axial, but leaves an axis that is stored backwards as it is: a NIfTI runs
    to the right and the front as a rule, a scan that was taken feet first or prone may run either way. Those are
    turned here. No axes change places: a scan so oblique that reading it could not tell which is which is shown along
    its own axes, and the letters at its sides say so.

    Args:
        grid: of slices that are axial, as nearly as they can be.
    """
    direction = np.asarray(grid.direction, dtype=np.float64)  # columns: col, row, index
    index_back, row_back, col_back = (bool(direction[axis, axis] < 0) for axis in (2, 1, 0))
    back = (index_back, row_back, col_back)
    corner = np.where(back, np.array(grid.shape_irc) - 1, 0)
    return Upright(
        grid=replace(
            grid,
            origin_xyz=as_triple(irc_to_xyz(corner, grid)),
            direction=tuple(as_triple(row) for row in direction * np.where(back[::-1], -1.0, 1.0)),
        ),
        turned_round=back,
    )


@dataclass(frozen=True, kw_only=True)
class PackedSlices:
    """The slices of a volume as JPEGs.

    Attributes:
        texts: base64 of each slice.
        quality: of the JPEGs.
    """

    texts: tuple[str, ...]
    quality: int


def to_levels(hu: npt.NDArray[np.int16]) -> npt.NDArray[np.uint8]:
    """HU as the levels of `LEVELS`, the same shape."""
    known_hu, levels = np.array(LEVELS, dtype=np.float64).T
    table = np.rint(np.interp(np.arange(-(2**15), 2**15), known_hu, levels)).astype(np.uint8)
    # The same bits read as unsigned: negative HU are in the upper half.
    return np.roll(table, 2**15)[np.ascontiguousarray(hu).view(np.uint16)]


def level_hu() -> tuple[float, ...]:
    """The HU that each of the 256 levels stands for."""
    known_hu, levels = np.array(LEVELS, dtype=np.float64).T
    return tuple(np.round(np.interp(np.arange(256), levels, known_hu), 2).tolist())


def pack_slices(levels: npt.NDArray[np.uint8]) -> PackedSlices:
    """Slices, (index, row, col), in the best quality that stays within `TEXT_BYTES_PER_VOXEL`, or the last one."""
    workers = min(4, os.cpu_count() or 1)
    sample = levels[:: max(1, len(levels) // SAMPLED)]
    with ThreadPoolExecutor(workers, thread_name_prefix="slices") as pool:
        for quality in QUALITIES:
            size = sum(pool.map(lambda plane, q=quality: len(_jpeg_text(plane, q)), sample))
            if size <= TEXT_BYTES_PER_VOXEL * sample.size:
                break
        return PackedSlices(texts=tuple(pool.map(lambda plane: _jpeg_text(plane, quality), levels)), quality=quality)


def _jpeg_text(plane: npt.NDArray[np.uint8], quality: int) -> str:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(plane)).save(stream, "JPEG", quality=quality)
    return base64.b64encode(stream.getbuffer()).decode("ascii")


@dataclass(frozen=True, kw_only=True)
class PackedMarks:
    """Marked voxels, deflated.

    Attributes:
        text: base64 of a zlib stream of three parts: a byte per voxel, the step from the voxel before (the first from
            voxel -1) or 0 where it is longer; a byte per voxel, the hundredths that its probability is above; and those
            longer steps, little-endian uint32, in order.
        count: voxels.
        long_steps: how many.
        floor: no voxel at or below it is held.
    """

    text: str
    count: int
    long_steps: int
    floor: float


def pack_marks(marked: Marked, turn: Upright) -> PackedMarks:
    """The segmentation's marks on the turned grid, their probabilities in steps of 0.01.

    Whether a voxel lies above a threshold of whole hundredths is what `Marked.above` says.
    """
    voxels, order = _turned(marked.voxels, turn)
    edges = (np.arange(HUNDREDTHS) / HUNDREDTHS).astype(np.float32)
    above = np.maximum(np.searchsorted(edges, marked.probs[order], side="left") - 1, 0).astype(np.uint8)
    steps = np.diff(voxels, prepend=-1)
    long = steps >= LONGEST_STEP
    parts = (np.where(long, 0, steps).astype(np.uint8), above, steps[long].astype("<u4"))
    packed = zlib.compress(b"".join(part.tobytes() for part in parts), 4)
    return PackedMarks(
        text=base64.b64encode(packed).decode("ascii"),
        count=len(voxels),
        long_steps=int(np.count_nonzero(long)),
        floor=marked.floor,
    )


def _turned(voxels: npt.NDArray[np.int64], turn: Upright) -> tuple[npt.NDArray[np.int64], Any]:
    """Flat places on the turned grid, ascending, and which of `voxels` each was."""
    if not any(turn.turned_round):
        return voxels, slice(None)
    shape = turn.grid.shape_irc
    places = np.unravel_index(voxels, shape)
    turned = [size - 1 - at if back else at for at, size, back in zip(places, shape, turn.turned_round)]
    flat = np.ravel_multi_index(turned, shape)
    order = np.argsort(flat, kind="stable")
    return flat[order], order
