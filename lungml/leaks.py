"""Does anything that validation or test is judged on also stand where training learns from?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from lungml.errors import LunaError, one_line
from lungml.groups import checksum, key_digest, read_attributes
from lungml.recipes.data import PreparedScan
from lungml.remote import Location, RemoteFolder
from lungml.store import read_volume

# Chosen so that with 10 of each class not one pair may be in the wrong order (it would cost 0.01 of AUC), and in a
# large validation one pair in 2000.
PERFECT = {"auc": 0.9995, "f1": 0.999}
ENOUGH_OF_EACH = 10  # with fewer of a class, an easy handful explains a perfect score
REMOTE_READS_AT_ONCE = 16
PREPARE_AGAIN = "run `luna data prepare` again"
EMPTY_KEY = key_digest({})  # of a group that says nothing of what it was made from


class LeakError(LunaError):
    """Something stands on two sides of the split; one line: what, on which sides, and what to do."""


@dataclass(frozen=True, kw_only=True)
class _Group:
    """What a crop group, or a scan's store, says of itself."""

    scan: PreparedScan
    key: Mapping[str, Any]
    volume_bytes: int  # of a store: its compressed voxels; 0 where it does not say


def check_splits(scans: Sequence[PreparedScan]) -> None:
    """Refuse prepared scans of which anything stands on two sides of the split; before any training.

    A series stands on one side, and so does its patient where it is known. No two sides share a store, a crop group, a
    source, or a volume that was copied under another series_uid. What training opens, mined crops included, was cut
    from training scans: the keys that the groups were written under say so, not only their paths.

    Reads the descriptions of all stores and crop groups, and voxels only of scans whose stores are of equal size.

    Args:
        scans: of all splits, with their mined crops once there are any.

    Raises:
        LeakError: names the series or the patient's mark, the splits, and what to do.
        StoreError: a store or a crop group is not there, or not whole.
    """
    _refuse_shared(
        ((scan.series_uid, scan) for scan in scans),
        "series {what} stands in two splits: {splits}; delete all but its first line in split.csv",
        name_series=False,
    )
    _refuse_shared(
        ((scan.patient, scan) for scan in scans if scan.patient),
        "patient {what} stands in two splits: {splits}; leave the scan of the less held-out split out",
    )
    _refuse_shared(
        ((_place(scan.store), scan) for scan in scans),
        f"one store stands in two splits: {{splits}} share {{what}}; {PREPARE_AGAIN}",
    )
    _refuse_shared(
        ((_place(group), scan) for scan in scans for group in (scan.crops, scan.mined) if group),
        f"one group of crops stands in two splits: {{splits}} share {{what}}; {PREPARE_AGAIN}",
    )
    _refuse_shared(
        ((scan.crops_digest, scan) for scan in scans if scan.crops_digest != EMPTY_KEY),
        "crops of one making stand in two splits: {splits}; one scan may lie there under two names: keep one",
    )
    for scan in scans:
        if scan.mined is not None and scan.split != "train":
            raise LeakError(
                f"candidates were mined from {scan.series_uid}, a {scan.split} scan: they would be learned from; "
                "mine training scans only"
            )
    stores = list(_described(scans, [scan.store for scan in scans]))
    _check_keys(stores, list(_described(scans, [scan.crops for scan in scans])))
    mined = [scan for scan in scans if scan.mined is not None]
    _check_mined(list(_described(mined, [scan.mined for scan in mined if scan.mined is not None])))
    _refuse_shared(
        ((str(group.key["source"]), group.scan) for group in stores if group.key.get("source")),
        "one scan's files stand in two splits: {splits} were read from the same files; keep one of the two",
    )
    _check_copies(stores)


def too_good(stage: str, metrics: Mapping[str, float], positives: int, negatives: int) -> str | None:
    """What to say of a validation that is perfect, or nearly; None where it is not, or is on too few samples to tell.

    Nearly perfect is an AUC of 0.9995 or an F1 of 0.999 (see `PERFECT`), on at least 10 of either class.

    Args:
        stage: of the model.
        metrics: of the validation, by bare names; NaN is nothing to speak of.
        positives: how many samples of class 1 were judged.
        negatives: how many of class 0.
    """
    if min(positives, negatives) < ENOUGH_OF_EACH:
        return None
    reached = [name for name, limit in PERFECT.items() if metrics.get(name, math.nan) >= limit]
    if not reached:
        return None
    scores = " and ".join(f"{name} {metrics[name]:.4f}" for name in reached)
    return (
        f"{stage}: validation {scores} on {positives} positives and {negatives} negatives is too good to be true: "
        "look for a leak between the splits, or for something other than the finding that gives the label away"
    )


def _refuse_shared(marked: Iterable[tuple[str, PreparedScan]], problem: str, *, name_series: bool = True) -> None:
    """Raise for the first mark that scans of two splits bear; a mark within one split may repeat."""
    seen: dict[str, PreparedScan] = {}
    for mark, scan in marked:
        first = seen.setdefault(mark, scan)
        if first.split != scan.split:
            sides = [f"{one.series_uid} ({one.split})" if name_series else one.split for one in (first, scan)]
            raise LeakError(one_line(problem.format(what=mark, splits=" and ".join(sides))))


def _place(location: Location) -> str:
    """Where something lies, whatever links lead there."""
    return location.url if isinstance(location, RemoteFolder) else str(location.resolve())


def _described(scans: Sequence[PreparedScan], groups: Sequence[Location]) -> Iterator[_Group]:
    """What the groups, one for each scan, say of themselves; those on an object store are asked several at once."""
    if any(isinstance(group, RemoteFolder) for group in groups):
        with ThreadPoolExecutor(REMOTE_READS_AT_ONCE, thread_name_prefix="describe") as pool:
            found = list(pool.map(read_attributes, groups))
    else:
        found = [read_attributes(group) for group in groups]
    for scan, attributes in zip(scans, found, strict=True):
        yield _Group(
            scan=scan,
            key=attributes.get("key", {}),
            volume_bytes=int(attributes.get("bytes", {}).get("volume", 0)),
        )


def _check_keys(stores: Sequence[_Group], crops: Sequence[_Group]) -> None:
    """See that each scan's crops are of that scan, as far as their key tells."""
    owner = {key_digest(store.key): store.scan for store in stores}
    for store, group in zip(stores, crops, strict=True):
        _check_uid(group, "crops")
        if "scan" not in group.key or key_digest(group.key["scan"]) == key_digest(store.key):
            continue
        scan, other = group.scan, owner.get(key_digest(group.key["scan"]))
        raise LeakError(
            f"the crops of {scan.series_uid} ({scan.split}) were not cut from its store but from "
            + (f"{other.series_uid} ({other.split})" if other else "another scan, or another reading of it")
            + f"; {PREPARE_AGAIN}"
        )


def _check_mined(mined: Sequence[_Group]) -> None:
    """See that mined crops are of the training scan that they are given with, as far as their key tells."""
    for group in mined:
        _check_uid(group, "mined crops")
        made_of, scan = group.key.get("crops"), group.scan
        if made_of is not None and made_of != scan.crops_digest:
            raise LeakError(
                f"the mined crops of {scan.series_uid} ({scan.split}) were mined from another scan, or from other "
                "crops of it; run again"
            )


def _check_uid(group: _Group, what: str) -> None:
    of = group.key.get("series_uid", group.scan.series_uid)
    if of != group.scan.series_uid:
        raise LeakError(
            one_line(f"the {what} given as {group.scan.series_uid} ({group.scan.split}) are of {of}; {PREPARE_AGAIN}")
        )


def _check_copies(stores: Sequence[_Group]) -> None:
    """Refuse a volume that lies in two splits under two uids, its files under other names.

    Packed volumes of one size are rare (two scans differ in their noise), so only of those voxels are compared.
    """
    by_size: dict[int, list[PreparedScan]] = {}
    for store in stores:
        by_size.setdefault(store.volume_bytes, []).append(store.scan)
    by_size.pop(0, None)
    for alike in by_size.values():
        if len({scan.split for scan in alike}) > 1:
            _refuse_shared(
                ((checksum(read_volume(scan.store)), scan) for scan in alike),
                "one volume stands in two splits: {splits} hold the same voxels; keep one of the two",
            )
