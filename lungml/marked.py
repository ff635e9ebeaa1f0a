"""Which voxels of a scan did the segmentation mark, and how surely?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True, eq=False)
class Marked:
    """The voxels above a floor, of which a scan has few: a hundredth of the memory of its probabilities.

    Attributes:
        shape: of the scan, (index, row, col).
        voxels: (n,) int64, flat places in C order, ascending.
        probs: (n,) float32, probability of each.
        floor: nothing at or below it is held.
    """

    shape: tuple[int, int, int]
    voxels: npt.NDArray[np.int64]
    probs: npt.NDArray[np.float32]
    floor: float

    @classmethod
    def of(cls, probs: npt.NDArray[np.floating], floor: float) -> Marked:
        """The voxels of a whole volume of probabilities, (index, row, col), that lie above the floor."""
        index, rows, cols = probs.shape
        voxels = np.flatnonzero(probs > floor)
        return cls(
            shape=(index, rows, cols),
            voxels=voxels,
            probs=probs.reshape(-1)[voxels].astype(np.float32),
            floor=floor,
        )

    @classmethod
    def of_mask(cls, mask: npt.NDArray[np.bool_]) -> Marked:
        """A mask, (index, row, col) bool, as if its voxels were certain."""
        index, rows, cols = mask.shape
        voxels = np.flatnonzero(mask)
        return cls(shape=(index, rows, cols), voxels=voxels, probs=np.ones(len(voxels), np.float32), floor=0.0)

    def at(self, threshold: float) -> Marked:
        """What a higher floor would have left; the threshold is exclusive.

        Raises:
            ValueError: when it lies below the floor.
        """
        if threshold < self.floor:
            raise ValueError(f"voxels above {threshold} were asked for, only those above {self.floor} were kept")
        if threshold == self.floor:
            return self
        higher = self.probs > threshold
        return Marked(shape=self.shape, voxels=self.voxels[higher], probs=self.probs[higher], floor=threshold)

    def above(self, threshold: float) -> npt.NDArray[np.int64]:
        """Flat places of the voxels above a threshold, ascending; errors as of `at`."""
        return self.at(threshold).voxels

    def mask(self, threshold: float) -> npt.NDArray[np.bool_]:
        """(index, row, col) bool, true above a threshold; errors as of `above`."""
        mask = np.zeros(self.shape, dtype=np.bool_)
        mask.reshape(-1)[self.above(threshold)] = True
        return mask
