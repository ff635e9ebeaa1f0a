"""Which prepared files does a training stage read?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lungml.luna import Excluded, Nodule
from lungml.remote import Location

Split = Literal["train", "val", "test"]


@dataclass(frozen=True, kw_only=True)
class PreparedScan:
    """One scan, ready for training: paths travel between tasks, voxels never do.

    Attributes:
        series_uid: of the scan.
        split: train, val or test.
        store: the scan's Zarr group, on a disk or an object store.
        mask_name: which of its masks is the segmentation target.
        crops: the scan's crop group.
        digest: what all of it was made from; equal digests mean equal training data.
        nodules: the scan's annotated nodules.
        excluded: findings that are neither hits nor false positives.
        mined: crops at the segmenter's own candidates, where there are any.
    """

    series_uid: str
    split: Split
    store: Location
    mask_name: str
    crops: Path
    digest: str
    nodules: tuple[Nodule, ...]
    excluded: tuple[Excluded, ...]
    mined: Path | None = None


def of_split(scans: Sequence[PreparedScan], split: Split) -> list[PreparedScan]:
    """The scans of one split, in the given order."""
    return [scan for scan in scans if scan.split == split]
