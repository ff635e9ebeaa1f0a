"""Which prepared files does a training stage read?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lungml.crop_cache import CropCache
from lungml.frozen_split import Split
from lungml.groups import StoreError, key_digest, read_attributes
from lungml.luna import Annotation, Excluded, Nodule
from lungml.remote import Location

__all__ = ["PreparedScan", "Reads", "Split", "Stage", "data_read", "of_split", "open_crops"]

Stage = Literal["segmentation", "classification", "malignancy"]


@dataclass(frozen=True, kw_only=True)
class Reads:
    """Digests of what the stages read of one scan: where one stays, a model learns and is judged as before.

    Attributes:
        slices: what the U-Net reads: voxels, masks, the places of nodules; of a training scan the non-nodules that get
            slabs, of others the excluded findings. Nobody's malignancy.
        crops: what the nodule classifier reads: voxels, nodules and non-nodules. The malignancy of a training scan's
            nodules is not among it, that of others is: it stands below the pictures of the worst errors.
        labels: what a malignancy classifier reads: voxels, and the nodules whose malignancy is known with all that is.
    """

    slices: str
    crops: str
    labels: str


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
        reads: which part of it each stage reads; None where that is not told: all of `digest`.
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
    reads: Reads | None = None


def of_split(scans: Sequence[PreparedScan], split: Split) -> list[PreparedScan]:
    """The scans of one split, in the given order."""
    return [scan for scan in scans if scan.split == split]


def data_read(scan: PreparedScan, stage: Stage, *, mined: bool = False, non_nodules: bool = True) -> str:
    """A digest of what a stage's training reads of a scan, and of nothing else.

    Args:
        scan: of any split.
        stage: which of the three.
        mined: whether the nodule classifier also learns from mined crops.
        non_nodules: whether a malignancy classifier also learns from what is no nodule.

    Raises:
        StoreError: another run has put other mined crops in their place since they were mined.
    """
    if scan.reads is None:
        return scan.digest
    if stage == "segmentation":
        return scan.reads.slices
    if stage == "malignancy":
        with_others = non_nodules and scan.split == "train"  # only nodules are judged
        return key_digest([scan.reads.labels, scan.reads.crops]) if with_others else scan.reads.labels
    return key_digest([scan.reads.crops, _mining(scan)]) if mined and scan.mined is not None else scan.reads.crops


def _mining(scan: PreparedScan) -> dict[str, Any]:
    """What a scan's mined crops were made from but for its own crops, whose key holds malignancies."""
    assert scan.mined is not None
    key: dict[str, Any] = read_attributes(scan.mined)["key"]
    if key_digest(key) != scan.digest:
        raise StoreError(f"{scan.mined}: changed by another run since this one prepared it; run again")
    return {name: value for name, value in key.items() if name != "crops"}


def open_crops(scans: Sequence[PreparedScan], arrays: Sequence[str], *, mined: bool = False) -> CropCache:
    """The crops of some scans, and behind them those mined from them.

    Raises:
        StoreError: another run has put other crops in their place since these scans were prepared.
    """
    wanted = [(scan.crops, scan.crops_digest) for scan in scans]
    if mined:
        wanted += [(scan.mined, scan.digest) for scan in scans if scan.mined is not None]
    return CropCache([group for group, _ in wanted], arrays, digests=[digest for _, digest in wanted])
