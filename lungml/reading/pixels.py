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
import itertools
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
    """How a scan is turned so that a person sees it as radiologists do: only axes change places or turn round.

    Attributes:
        grid: of the turned volume: index runs to the head, row to the back, col to the patient's left, each as nearly
            as an axis of the scan does.
        axes: the scan's axis (0 index, 1 row, 2 col) behind each of the turned ones.
        turned_round: whether it runs the other way.
    """

    grid: Grid
    axes: tuple[int, int, int]
    turned_round: tuple[bool, bool, bool]

    def apply(self, volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A volume on the scan's grid, (index, row, col), on the turned one; a view."""
        steps = tuple(slice(None, None, -1 if back else 1) for back in self.turned_round)
        return volume.transpose(self.axes)[steps]


def upright(grid: Grid) -> Upright:
    """How to turn a scan; a tilted grid stays tilted, nothing is resampled."""
    direction = np.asarray(grid.direction, dtype=np.float64)
    # Rows: patient axes z, y, x; columns: the scan's axes index, row, col.
    along = direction[::-1, ::-1]
    axes = max(itertools.permutations(range(3)), key=lambda order: sum(abs(along[k, order[k]]) for k in range(3)))
    back = tuple(bool(along[k, axes[k]] < 0) for k in range(3))
    corner = np.zeros(3)
    for k, axis in enumerate(axes):
        corner[axis] = grid.shape_irc[axis] - 1 if back[k] else 0
    signs = np.where(back, -1.0, 1.0)
    columns = (along[:, axes] * signs)[::-1, ::-1]
    return Upright(
        grid=Grid(
            shape_irc=(grid.shape_irc[axes[0]], grid.shape_irc[axes[1]], grid.shape_irc[axes[2]]),
            spacing_xyz=as_triple(grid.spacing_irc[list(axes)][::-1]),
            origin_xyz=as_triple(irc_to_xyz(corner, grid)),
            direction=tuple(as_triple(row) for row in columns),
        ),
        axes=(axes[0], axes[1], axes[2]),
        turned_round=(back[0], back[1], back[2]),
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


def unpack_slices(packed: PackedSlices) -> npt.NDArray[np.uint8]:
    """(index, row, col) levels, as a browser decodes them, give or take one."""
    return np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in packed.texts])


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
    if turn.axes == (0, 1, 2) and not any(turn.turned_round):
        return voxels, slice(None)
    shape = [0, 0, 0]
    for axis, size in zip(turn.axes, turn.grid.shape_irc):
        shape[axis] = size
    places = np.unravel_index(voxels, shape)
    turned = [
        turn.grid.shape_irc[k] - 1 - places[axis] if turn.turned_round[k] else places[axis]
        for k, axis in enumerate(turn.axes)
    ]
    flat = np.ravel_multi_index(turned, turn.grid.shape_irc)
    order = np.argsort(flat, kind="stable")
    return flat[order], order


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
