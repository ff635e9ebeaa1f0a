"""How is a shape in mm laid down on a scan's voxels, and what does the scanner make of it?

Positions here are mm from the volume's corner along (index, row, col), `_zyx`; index runs from the feet to the head,
rows from front to back. Only `phantom.py` knows patient coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Box = tuple[slice, slice, slice]

AIR_HU = -1000.0
EDGE_MM = 0.9  # over which an edge goes from one tissue to the next; about a scanner's in-plane resolution
SUBSLICE_MM = 0.8  # thick slices are averaged over layers of about this thickness: partial volume
PADDING_HU = (0, -2048, -3024)  # none, or what scanners write outside the field of view


@dataclass(frozen=True)
class CoarseField:
    """A smooth volume known at every n-th voxel, linear in between.

    Attributes:
        values: (i, r, c) float32 at voxels (0, n, 2n, ...) of each axis, up to the last voxel or beyond.
        steps: n along (index, row, col).
        shape: of the fine volume, voxels.
    """

    values: npt.NDArray[np.float32]
    steps: tuple[int, int, int]
    shape: tuple[int, int, int]

    def plane(self, index: int) -> npt.NDArray[np.float32]:
        """(rows, cols) float32 of the fine slice `index`."""
        low, share = divmod(index, self.steps[0])
        plane = self.values[low]
        if share:
            plane = plane + np.float32(share / self.steps[0]) * (self.values[low + 1] - plane)
        for axis in (0, 1):
            at = np.arange(self.shape[axis + 1])
            first, rest = np.divmod(at, self.steps[axis + 1])
            weight = (rest / self.steps[axis + 1]).astype(np.float32)
            weight = weight[:, None] if axis == 0 else weight[None, :]
            second = np.minimum(first + 1, plane.shape[axis] - 1)
            near = plane.take(first, axis)
            plane = near + weight * (plane.take(second, axis) - near)
        return plane

    def at(self, voxels: Array) -> npt.NDArray[np.float32]:
        """(n,) values at the coarse point nearest to (n, 3) voxels; -99 outside the volume."""
        nearest = np.rint(voxels / self.steps).astype(int)
        inside = ((voxels > -0.5) & (voxels < np.array(self.shape) - 0.5)).all(axis=-1)
        nearest = np.clip(nearest, 0, np.array(self.values.shape) - 1)
        return np.where(inside, self.values[tuple(nearest.T)], np.float32(-99))


class Canvas:
    """A volume under the brush.

    Attributes:
        rng: the source of everything random.
        hu: (index, row, col) float32.
        spacing: (3,) mm along (index, row, col).
        size_mm: (3,) of the volume.
        axes: mm of the voxel centres along each axis, float32.
    """

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int, int], spacing: tuple[float, ...]) -> None:
        self.rng = rng
        self.shape = shape
        self.spacing = np.array(spacing)
        self.size_mm = np.array(shape) * self.spacing
        self.axes = [((np.arange(n) + 0.5) * mm).astype(np.float32) for n, mm in zip(shape, spacing)]
        self.hu = np.full(shape, AIR_HU, dtype=np.float32)
        layers = max(1, round(spacing[0] / SUBSLICE_MM))
        self.layers_mm = ((np.arange(layers) + 0.5) / layers - 0.5).astype(np.float32) * np.float32(spacing[0])

    def voxels(self, points_zyx: Array) -> Array:
        """mm from the corner to fractional voxels, whole numbers on voxel centres."""
        return points_zyx / self.spacing - 0.5

    def box(self, low: Array, high: Array) -> tuple[Box, list[npt.NDArray[np.float32]]] | None:
        """The voxels between two corners and their offsets in mm, shaped to broadcast; slices are split in layers."""
        start = np.maximum(np.floor(low / self.spacing).astype(int), 0).tolist()
        stop = np.minimum(np.ceil(high / self.spacing).astype(int) + 1, self.shape).tolist()
        if any(a >= b for a, b in zip(start, stop)):
            return None
        box = (slice(start[0], stop[0]), slice(start[1], stop[1]), slice(start[2], stop[2]))
        z, y, x = (axis[part] for axis, part in zip(self.axes, box))
        z = (z[:, None] + self.layers_mm).ravel()
        return box, [z[:, None, None], y[None, :, None], x[None, None, :]]

    def lay(
        self, box: Box, outside_mm: npt.NDArray[np.float32], value: float, *, only_brighter: bool, edge_mm: float
    ) -> None:
        """Mix `value` in where the (layered) signed distance is negative, softly at its edge."""
        cover = outside_mm
        cover *= -1 / edge_mm
        cover += 0.5
        np.minimum(np.maximum(cover, 0, out=cover), 1, out=cover)
        layers = len(self.layers_mm)
        if layers > 1:
            cover = cover.reshape(-1, layers, *cover.shape[1:]).mean(axis=1)
        patch = self.hu[box]
        change = (value - patch) * cover
        # A vessel thinner than the edge is wide never covers a voxel wholly: it fades, as partial volume makes it.
        patch += np.maximum(change, 0) if only_brighter else change

    def capsule(
        self, start: Array, end: Array, radii: tuple[float, float], value: float, *, only_brighter: bool = False
    ) -> None:
        """A rod with round ends, its radius in mm running from the first to the second."""
        reach = max(radii) + EDGE_MM
        found = self.box(np.minimum(start, end) - reach, np.maximum(start, end) + reach)
        if found is None:
            return
        box, (z, y, x) = found
        along = (end - start).tolist()
        squared = max(sum(a * a for a in along), 1e-6)
        z, y, x = (axis - np.float32(c) for axis, c in zip((z, y, x), start))
        ahead = (z * along[0] + y * along[1]) + x * along[2]
        t = ahead * (1 / squared)
        np.minimum(np.maximum(t, 0, out=t), 1, out=t)
        distance = (z * z + y * y) + x * x - t * (2 * ahead - t * squared)
        np.sqrt(np.maximum(distance, 0, out=distance), out=distance)
        distance -= radii[0] + (radii[1] - radii[0]) * t
        self.lay(box, distance, value, only_brighter=only_brighter, edge_mm=EDGE_MM)

    def blob(self, center: Array, reach: Array, value: float, *, edge_mm: float = EDGE_MM) -> None:
        """An ellipsoid with the half axes `reach` in mm."""
        found = self.box(center - reach - edge_mm, center + reach + edge_mm)
        if found is None:
            return
        box, axes = found
        z, y, x = (((axis - np.float32(c)) / np.float32(r)) ** 2 for axis, c, r in zip(axes, center, reach))
        outside = (np.sqrt((z + y) + x) - 1) * float(reach.min())
        self.lay(box, outside, value, only_brighter=False, edge_mm=edge_mm)

    def scan(self, noise_hu: float) -> tuple[npt.NDArray[np.int16], int]:
        """What the scanner makes of the drawing: blur, correlated noise, rounding, and padding in half of the scans.

        Args:
            noise_hu: standard deviation.

        Returns:
            (index, row, col) int16 within -1024..3071, and the padding value outside the circular field of view;
            0 when there is none.
        """
        rng = self.rng
        blur, grain = _kernel(rng.uniform(0.45, 0.75)), _kernel(rng.uniform(0.5, 0.9))
        noise_gain = np.float32(noise_hu / float((grain**2).sum()))  # two passes, each leaves sqrt(sum of squares)
        hu = np.empty(self.shape, dtype=np.int16)
        for index, plane in enumerate(self.hu):
            noise = _smooth(rng.standard_normal(plane.shape, dtype=np.float32), grain)
            noise *= noise_gain
            noise += _smooth(plane, blur)
            hu[index] = np.clip(np.rint(noise, out=noise), -1024, 3071, out=noise)
        padding = int(rng.choice(PADDING_HU, p=[0.5, 0.25, 0.25]))
        if padding:
            rows, cols = (np.arange(n) - (n - 1) / 2 for n in self.shape[1:])
            hu[:, np.hypot(rows[:, None], cols[None, :]) > min(self.shape[1:]) / 2] = padding
        return hu, padding


def _kernel(sigma: float) -> npt.NDArray[np.float32]:
    """Five taps of a Gaussian, sigma in voxels; enough up to a sigma of about 0.9."""
    taps = np.exp(-(np.arange(-2, 3) ** 2) / (2 * sigma**2))
    return (taps / taps.sum()).astype(np.float32)


def _smooth(plane: npt.NDArray[np.float32], kernel: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Filter rows, then columns; edges repeat."""
    for axis in (0, 1):
        n = plane.shape[axis]
        padded = np.pad(plane, [(2, 2) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        views = [padded[k : k + n] if axis == 0 else padded[:, k : k + n] for k in range(5)]
        plane = views[2] * kernel[2]
        for k in (0, 1):
            plane += (views[k] + views[4 - k]) * kernel[k]
    return plane
