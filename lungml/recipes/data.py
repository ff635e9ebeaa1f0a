"""Which prepared files does a training stage read?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lungml.crop_cache import CropCache
from lungml.luna import Annotation, Excluded, Nodule, Split
from lungml.remote import Location

__all__ = ["PreparedScan", "Split", "Stage", "of_split", "open_crops"]

Stage = Literal["segmentation", "classification", "malignancy"]


@dataclass(frozen=True, kw_only=True)
class PreparedScan:
    """One scan, ready for training: paths travel between tasks, voxels never do.

    Attributes:
        series_uid: of the scan.
        split: train, val or test.
        store: the scan's Zarr group, on a disk or an object store.
        mask_name: which of its masks is the segmentation target.
        crops: the scan's crop group.
        crops_digest: the `key_digest` that it was cut under.
        digest: what all of it was made from; equal digests mean equal training data.
        nodules: the scan's annotated nodules.
        excluded: findings that are neither hits nor false positives; those of `unrated` are among them.
        mined: crops at the segmenter's own candidates, where there are any; they were cut under `digest`.
        patient: an anonymous mark of the scan's patient; empty where it is not known.
        unrated: annotated nodules without a malignancy rating: nothing learns from them, the official score counts
            them.
        textures: of each nodule, "" where it is not known; empty where nothing is known of any.
        unjudged: nodules of unknown malignancy that readers added: learned from as nodules, on training scans only.
    """

    series_uid: str
    split: Split
    store: Location
    mask_name: str
    crops: Path
    crops_digest: str
    digest: str
    nodules: tuple[Nodule, ...]
    excluded: tuple[Excluded, ...]
    mined: Path | None = None
    patient: str = ""
    unrated: tuple[Annotation, ...] = ()
    textures: tuple[str, ...] = ()
    unjudged: tuple[Annotation, ...] = ()


def of_split(scans: Sequence[PreparedScan], split: Split) -> list[PreparedScan]:
    """The scans of one split, in the given order."""
    return [scan for scan in scans if scan.split == split]


def open_crops(scans: Sequence[PreparedScan], arrays: Sequence[str], *, mined: bool = False) -> CropCache:
    """The crops of some scans, and behind them those mined from them.

    Raises:
        StoreError: another run has put other crops in their place since these scans were prepared.
    """
    wanted = [(scan.crops, scan.crops_digest) for scan in scans]
    if mined:
        wanted += [(scan.mined, scan.digest) for scan in scans if scan.mined is not None]
    return CropCache([group for group, _ in wanted], arrays, digests=[digest for _, digest in wanted])
